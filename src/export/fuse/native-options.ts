/** The options that libfuse 2 gets through fuse-native, and what to do where it is missing. */

/** What {@link nativeOptions} makes its options of. */
export interface NativeMountOptions {
  directory: string;
  source: string;
  subtype: string;
  /** Names of mount flags. */
  flags: readonly string[];
  allowOther: boolean;
}

/** The C side of fuse-native copies its options into so many bytes. */
const MAX_OPTION_BYTES = 1000;
/** Flags that macOS's libfuse does not know. */
const LINUX_FLAGS = new Set(['nodiratime', 'relatime', 'strictatime']);
/** Longest name of a volume. */
const MAX_VOLUME_NAME = 64;

/**
 * fuse-native has no options for flags, but passes those of the name and type on as they are.
 * macOS knows no subtypes; it shows a volume by its name, and would put files of its own beside each.
 */
export function nativeOptions(
  { source, subtype, flags }: NativeMountOptions,
  platform: NodeJS.Platform = process.platform,
): Record<string, string> {
  const room = MAX_OPTION_BYTES - flags.join(',').length - subtype.length - 200;
  const name = escaped(source.length > room ? source.slice(-room) : source);
  if (platform !== 'darwin') return { fsname: name, subtype: [subtype, ...flags].join(',') };
  const volume = escaped(source.replace(/^.*\//, '').slice(0, MAX_VOLUME_NAME));
  const known = flags.filter((flag) => !LINUX_FLAGS.has(flag));
  return { fsname: [name, `volname=${volume}`, 'noappledouble', ...known].join(',') };
}

/** A comma would end the option. */
function escaped(text: string): string {
  return text.replace(/[\\,]/g, '\\$&');
}

/** Where macOS has the filesystem that the library in fuse-native speaks to, and its successor. */
const OSXFUSE = '/Library/Filesystems/osxfuse.fs';
const MACFUSE = '/Library/Filesystems/macfuse.fs';

/** What is missing, and how to get it. */
export interface MissingFuse {
  problem: string;
  hint: string;
}

/**
 * What macOS lacks for fuse-native; undefined if it is not known to lack anything.
 * @param exists tells whether there is something at a path
 */
export function missingFuse(
  exists: (path: string) => boolean,
  platform: NodeJS.Platform = process.platform,
): MissingFuse | undefined {
  if (platform !== 'darwin' || exists(OSXFUSE)) return undefined;
  const hint = 'install FUSE for macOS 3 from https://osxfuse.github.io, and allow its extension';
  return exists(MACFUSE)
    ? { problem: 'the library in fuse-native speaks to FUSE for macOS 3, not to macFUSE 4', hint }
    : { problem: 'FUSE for macOS is not installed', hint };
}
