/**
 * The record of running mounts: one JSON file each, in a directory of the user's own.
 *
 * A record is written by the process that serves the mount and removed by it at the end; one whose
 * process is gone is what a crash left behind. Records are found in places where other users can
 * write, so a directory counts only if it belongs to the right user and is closed to all others.
 */

import {
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { homedir, tmpdir, userInfo } from 'node:os';
import { join } from 'node:path';
import { hostError, Qcow2Error } from '../errors.ts';
import type { ChannelName, MountAccess } from './fuse-request.ts';

/** The record of what lies between an image and its files. */
export interface RecordedFiles {
  /** The private directory of the image. */
  inner: string;
  /** What is mounted, or about to be; the device is empty as long as it is not known. */
  mounts: { directory: string; device: string }[];
  /** Made for the mounts, within the directory of the record. */
  madeDirectories: string[];
}

/** The record of one mount. */
export interface MountState {
  /** Name of the record, without the suffix. */
  id: string;
  directory: string;
  image: string;
  pid: number;
  /** Start of the process in clock ticks since boot; null where that cannot be told. */
  startTime: string | null;
  uid: number;
  user: string;
  /** When it was mounted, ISO 8601. */
  since: string;
  channel: ChannelName;
  access: MountAccess;
  /** Device number of the mounted filesystem, as in `0:45`; empty where that cannot be told. */
  device: string;
  /** Whether the directory was made for the mount. */
  madeDirectory: boolean;
  /** Path of the log; null in the foreground. */
  log: string | null;
  /** For a mount that goes on to the files. */
  files?: RecordedFiles;
  /** It has ended, and what was written last may be lost, because of this. */
  failure?: string;
}

/** A record, and the directory it was found in. */
export interface FoundState extends MountState {
  /** Path of the record. */
  file: string;
}

/** A record is some hundred bytes and a few paths, or two for each of several partitions. */
const MAX_RECORD_BYTES = 64 * 1024;

/** Number of the user whose records are kept. */
function currentUid(): number {
  return process.geteuid?.() ?? 0;
}

/**
 * The directory of this user's records, made if need be.
 *
 * `QCOW2_STATE_DIR` if it is set; `/run/qcow2` for root; `$XDG_RUNTIME_DIR/qcow2`, or
 * `/tmp/qcow2-UID`, for others. On macOS `/var/run/qcow2`, and `~/Library/Application Support/qcow2`:
 * what is in temporary directories there goes after some days.
 *
 * @throws {Qcow2Error} `HOST` if none can be used, `REFUSED` if it is somebody else's
 */
export function stateDirectory(): string {
  const [directory, ...others] = ownDirectories();
  for (const candidate of [directory, ...others]) {
    try {
      mkdirSync(candidate!, { mode: 0o700 });
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'EEXIST') {
        if (candidate !== others.at(-1) && others.length > 0) continue;
        throw hostError('cannot make the directory for records of mounts', candidate!, error);
      }
    }
    checkPrivate(candidate!);
    return candidate!;
  }
  throw new Qcow2Error('HOST', 'there is no place for records of mounts');
}

function ownDirectories(): string[] {
  const explicit = process.env.QCOW2_STATE_DIR;
  if (explicit !== undefined && explicit !== '') return [explicit];
  const uid = currentUid();
  const fallback = join(process.platform === 'linux' ? '/tmp' : tmpdir(), `qcow2-${uid}`);
  if (process.platform === 'darwin') return [...placesOnMac(uid, homedir()), fallback];
  if (uid === 0) return ['/run/qcow2', fallback];
  const runtime = process.env.XDG_RUNTIME_DIR;
  const isOurs = runtime !== undefined && ownerOf(runtime) === uid;
  return isOurs ? [join(runtime, 'qcow2'), fallback] : [fallback];
}

/** Where macOS keeps what lasts for as long as the machine, or the user, does. */
export function placesOnMac(uid: number, home: string): string[] {
  return uid === 0 ? ['/var/run/qcow2'] : [join(home, 'Library/Application Support/qcow2')];
}

function ownerOf(path: string): number | undefined {
  return lstatSync(path, { throwIfNoEntry: false })?.uid;
}

/** @throws {Qcow2Error} `REFUSED` unless it is a directory that only this user can use */
function checkPrivate(directory: string): void {
  const stats = lstatSync(directory);
  if (stats.isDirectory() && stats.uid === currentUid() && (stats.mode & 0o077) === 0) return;
  throw new Qcow2Error('REFUSED', 'it is not a private directory of this user', {
    file: directory,
    hint: 'it should hold records of mounts; remove it or set QCOW2_STATE_DIR',
  });
}

/** Writes a record; it is there whole or not at all. */
export function writeState(state: MountState): void {
  const file = join(stateDirectory(), `${state.id}.json`);
  const temporary = `${file}.new`;
  writeFileSync(temporary, `${JSON.stringify(state, undefined, 2)}\n`, { mode: 0o600 });
  renameSync(temporary, file);
}

/** Removes a record, and its log unless that is to be kept. */
export function removeState(file: string, { keepsLog = false } = {}): void {
  rmSync(file, { force: true });
  if (!keepsLog) rmSync(file.replace(/\.json$/, '.log'), { force: true });
}

/** Path of a record of this user. */
export function stateFile(id: string): string {
  return join(stateDirectory(), `${id}.json`);
}

/** This user's records; for root, those of all users. The oldest first. */
export function listStates(): FoundState[] {
  const uid = currentUid();
  const places = ownDirectories().map((directory) => ({ directory, uid }));
  if (uid === 0 && process.env.QCOW2_STATE_DIR === undefined) places.push(...placesOfOthers());
  return places
    .flatMap(({ directory, uid }) => readDirectory(directory, uid))
    .sort((a, b) => (a.since < b.since ? -1 : 1));
}

function placesOfOthers(): { directory: string; uid: number }[] {
  const inTmp = listNames('/tmp')
    .map((name) => /^qcow2-(\d+)$/.exec(name))
    .filter((match) => match !== null)
    .map((match) => ({ directory: join('/tmp', match[0]), uid: Number(match[1]) }));
  const inRun = listNames('/run/user')
    .filter((name) => /^\d+$/.test(name))
    .map((name) => ({ directory: join('/run/user', name, 'qcow2'), uid: Number(name) }));
  return [...inTmp, ...inRun].filter(({ uid }) => uid !== 0);
}

function listNames(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}

function readDirectory(directory: string, uid: number): FoundState[] {
  if (ownerOf(directory) !== uid) return [];
  const found: FoundState[] = [];
  for (const name of listNames(directory)) {
    if (!/^[0-9a-f]+\.json$/.test(name)) continue;
    const file = join(directory, name);
    const state = readState(file, uid);
    if (state !== undefined) found.push({ ...state, file, uid });
  }
  return found;
}

/** A record, or undefined if it is gone, not `uid`'s, or not one. */
function readState(file: string, uid: number): MountState | undefined {
  let fd: number | undefined;
  try {
    fd = openSync(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK);
    const stats = fstatSync(fd);
    if (!stats.isFile() || stats.uid !== uid || stats.size > MAX_RECORD_BYTES) return undefined;
    const value: unknown = JSON.parse(readFileSync(fd, 'utf8'));
    // Records of versions without writable mounts do not tell the access.
    return isMountState(value) ? { ...value, access: value.access ?? 'ro' } : undefined;
  } catch {
    return undefined;
  } finally {
    if (fd !== undefined) closeSync(fd);
  }
}

function isMountState(value: unknown): value is MountState {
  if (typeof value !== 'object' || value === null) return false;
  const state = value as Record<string, unknown>;
  const strings = ['id', 'directory', 'image', 'user', 'since', 'channel', 'device'];
  return (
    strings.every((key) => typeof state[key] === 'string') &&
    Number.isSafeInteger(state.pid) &&
    (state.pid as number) > 1 &&
    (state.startTime === null || typeof state.startTime === 'string') &&
    typeof state.madeDirectory === 'boolean' &&
    (state.log === null || typeof state.log === 'string') &&
    (state.failure === undefined || typeof state.failure === 'string') &&
    (state.files === undefined || isRecordedFiles(state.files))
  );
}

function isRecordedFiles(value: unknown): value is RecordedFiles {
  if (typeof value !== 'object' || value === null) return false;
  const { inner, mounts, madeDirectories } = value as Record<string, unknown>;
  const isMount = (mount: unknown): boolean =>
    typeof mount === 'object' &&
    mount !== null &&
    ['directory', 'device'].every(
      (key) => typeof (mount as Record<string, unknown>)[key] === 'string',
    );
  return (
    typeof inner === 'string' &&
    Array.isArray(mounts) &&
    mounts.every(isMount) &&
    Array.isArray(madeDirectories) &&
    madeDirectories.every((directory) => typeof directory === 'string')
  );
}

/** What a record says is mounted, the topmost first. */
export function mountsOf({ directory, device, files }: MountState): RecordedFiles['mounts'] {
  if (files === undefined) return [{ directory, device }];
  return [...files.mounts.toReversed(), { directory: files.inner, device }];
}

/** Name of the user who runs this process. */
export function currentUser(): { uid: number; user: string } {
  const uid = currentUid();
  try {
    return { uid, user: userInfo().username };
  } catch {
    return { uid, user: String(uid) };
  }
}
