/** The list after `-o`: mount(8)'s options that make sense for an image, and FUSE's own. */

import { Qcow2Error } from '../errors.ts';

/** Options of a mount that say how it looks to others. */
export interface FuseOptions {
  /** Names of mount flags, as in `noatime`. */
  flags: string[];
  /** Other users may look into it. */
  allowOther: boolean;
  /** The directory may hold files, which the mount hides. */
  nonempty: boolean;
  /** Reads go past the kernel's cache. */
  directIo: boolean;
  /** Owner of everything; default: who mounts. */
  uid?: number;
  gid?: number;
  /** Permission bits of files; those for writing count for files that accept writes. */
  fileMode: number;
  /** Source that the mount table shows; default: the image. */
  source?: string;
  /** The mount table shows the type `fuse.` and this. */
  subtype: string;
}

const MAX_ID = 0xffff_fffe;
/** All that a read-only file can grant. */
const ALL_MAY_READ = 0o444;
/** All that a file that accepts writes can grant, and what it grants if nothing is said. */
const ALL_MAY_WRITE = 0o666;
const OWNER_WRITES = 0o644;

/** Flags that only say what is so anyway. */
const IMPLIED = new Set(['defaults', 'nosuid', 'nodev', 'default_permissions']);
/** Those that must agree with how the image is mounted. */
const ACCESS = ['ro', 'rw'];
const FLAGS = new Set(['noexec', 'noatime', 'nodiratime', 'relatime', 'strictatime']);
const VALUES = ['uid', 'gid', 'umask', 'mode', 'fsname', 'subtype'];

/** The names of all options, for suggestions. */
export const FUSE_OPTION_NAMES: readonly string[] = [
  ...IMPLIED,
  ...ACCESS,
  ...FLAGS,
  'allow_other',
  'nonempty',
  'direct_io',
  ...VALUES,
];

/**
 * Parses the values of all `-o` options, comma-separated; `\,` is a comma within a value.
 *
 * @param suggest finds the known name that is most like a wrong one
 * @param writable whether the mount accepts writes
 * @throws {Qcow2Error} `INVALID_OPTION`
 */
export function parseFuseOptions(
  lists: readonly string[],
  suggest: (wrong: string, names: readonly string[]) => string | undefined,
  { writable = false }: { writable?: boolean } = {},
): FuseOptions {
  const options: FuseOptions = {
    flags: [...(writable ? [] : ['ro']), 'nosuid', 'nodev'],
    allowOther: false,
    nonempty: false,
    directIo: false,
    fileMode: writable ? OWNER_WRITES : ALL_MAY_READ,
    subtype: 'qcow2',
  };
  const mostMode = writable ? ALL_MAY_WRITE : ALL_MAY_READ;
  for (const item of lists.flatMap(splitList)) {
    const equals = item.indexOf('=');
    const name = equals < 0 ? item : item.slice(0, equals);
    const value = equals < 0 ? undefined : item.slice(equals + 1);
    if (ACCESS.includes(name) && value === undefined) checkAccess(name, writable);
    else if (name === 'mode') options.fileMode = octalOf(name, value) & mostMode;
    else if (name === 'umask') options.fileMode = mostMode & ~octalOf(name, value);
    else if (VALUES.includes(name)) setValue(options, name, value);
    else if (value !== undefined && FUSE_OPTION_NAMES.includes(name)) {
      throw invalid(`-o ${name} takes no value`);
    } else setFlag(options, item, suggest);
  }
  return options;
}

function splitList(list: string): string[] {
  const items = list.match(/(?:\\.|[^,\\]|\\$)+/gs) ?? [];
  return items.map((item) => item.replace(/\\(.)/gs, '$1'));
}

function setFlag(
  options: FuseOptions,
  name: string,
  suggest: (wrong: string, names: readonly string[]) => string | undefined,
): void {
  if (name === 'allow_other') options.allowOther = true;
  else if (name === 'nonempty') options.nonempty = true;
  else if (name === 'direct_io') options.directIo = true;
  else if (FLAGS.has(name)) options.flags.push(name);
  else if (!IMPLIED.has(name)) {
    const key = name.split('=')[0]!;
    const nearest = suggest(key, FUSE_OPTION_NAMES);
    const end = nearest === undefined ? '' : `; did you mean ${nearest}?`;
    throw invalid(`unknown mount option -o ${key}${end}`);
  }
}

function checkAccess(name: string, writable: boolean): void {
  if ((name === 'rw') === writable) return;
  if (writable)
    throw invalid('-o ro: the image is mounted for writing too, by --rw or another option');
  throw invalid('-o rw: the image is mounted for reading only; --rw makes it writable');
}

function setValue(options: FuseOptions, name: string, given: string | undefined): void {
  const value = valueOf(name, given);
  switch (name) {
    case 'uid':
      options.uid = parseId(name, value);
      break;
    case 'gid':
      options.gid = parseId(name, value);
      break;
    case 'subtype':
      if (!/^[\w.-]{1,32}$/.test(value)) {
        throw invalid(`-o subtype must be letters, digits, '.', '_' and '-', not '${value}'`);
      }
      options.subtype = value;
      break;
    default:
      options.source = value;
  }
}

function parseId(name: string, value: string): number {
  const id = /^\d+$/.test(value) ? Number(value) : NaN;
  if (!(id <= MAX_ID)) throw invalid(`-o ${name} must be a number, not '${value}'`);
  return id;
}

function valueOf(name: string, value: string | undefined): string {
  if (value === undefined || value === '') throw invalid(`-o ${name} needs a value: ${name}=…`);
  return value;
}

function octalOf(name: string, given: string | undefined): number {
  const value = valueOf(name, given);
  if (!/^[0-7]{1,4}$/.test(value)) {
    throw invalid(`-o ${name} must be an octal number like 022, not '${value}'`);
  }
  return Number.parseInt(value, 8);
}

function invalid(problem: string): Qcow2Error {
  return new Qcow2Error('INVALID_OPTION', problem);
}
