/** The mount table of this process, read without touching any of the mounted filesystems. */

import { readFileSync } from 'node:fs';
import { macMountTable } from './macos.ts';

/** A line of proc(5)'s `mountinfo`, or of what macOS has in its place. */
export interface MountEntry {
  /** Device number, as in `0:45`. macOS does not tell it: there it is the type and the source. */
  device: string;
  directory: string;
  /** As in `ext4` or `fuse.qcow2`. */
  type: string;
  source: string;
  /** Options of the filesystem, as in `user_id=1000`. */
  superOptions: readonly string[];
}

/** Everything that is mounted; later mounts hide earlier ones on the same directory. */
export function listMounts(): MountEntry[] {
  try {
    if (process.platform === 'darwin') return parseMountOutput(macMountTable());
    return parseMountinfo(readFileSync('/proc/self/mountinfo', 'utf8'));
  } catch {
    return [];
  }
}

/** What is mounted on a directory, the topmost; undefined if nothing is. */
export function findMount(directory: string): MountEntry | undefined {
  return listMounts().findLast((mount) => mount.directory === directory);
}

/** Parses `mountinfo`; lines that are not understood are left out. */
export function parseMountinfo(text: string): MountEntry[] {
  const mounts: MountEntry[] = [];
  for (const line of text.split('\n')) {
    const fields = line.split(' ');
    const separator = fields.indexOf('-', 6);
    const [, , device, , directory] = fields;
    const [type, source, superOptions] = fields.slice(separator + 1);
    if (separator < 0 || directory === undefined || type === undefined) continue;
    mounts.push({
      device: device!,
      directory: unescapeOctal(directory),
      type: unescapeOctal(type),
      source: unescapeOctal(source ?? ''),
      superOptions: (superOptions ?? '').split(','),
    });
  }
  return mounts;
}

/** Space, tab, newline and backslash are written as `\040` and so on, byte by byte. */
function unescapeOctal(text: string): string {
  if (!text.includes('\\')) return text;
  return text.replace(/\\([0-7]{3})/g, (_, digits: string) =>
    String.fromCharCode(Number.parseInt(digits, 8)),
  );
}

/** Parses the lines of macOS's mount(8): `SOURCE on DIRECTORY (TYPE, OPTION, …)`. */
export function parseMountOutput(text: string): MountEntry[] {
  const mounts: MountEntry[] = [];
  for (const line of text.split('\n')) {
    const match = /^(.*) on (\/.*) \(([^()]*)\)$/.exec(line);
    if (match === null) continue;
    const [type = '', ...superOptions] = match[3]!.split(', ');
    const [source, directory] = [match[1]!, match[2]!];
    mounts.push({ device: `${type} ${source}`, directory, type, source, superOptions });
  }
  return mounts;
}

/** Whether a mount is one of FUSE: `fuse.qcow2`, or `macfuse` and `osxfuse` on macOS. */
export function isFuse({ type }: MountEntry): boolean {
  return /^(?:fuse|macfuse|osxfuse)(?:\.|$)/.test(type);
}
