/**
 * Who holds the locks on an image file.
 *
 * Locks of open files have no process in `/proc/locks`: several may share an open file. So the open
 * files of the processes that may be looked at are searched (proc(5), `fdinfo`).
 */

import { readdirSync, readFileSync } from 'node:fs';

/** A process that holds a lock. */
export interface LockHolder {
  pid: number;
  /** Name of its program; empty if it has ended since. */
  name: string;
}

/** Longest that is searched: this is for a message. */
const SEARCH_MS = 500;
/** Longest text of a program's name that is shown. */
const MAX_NAME_LENGTH = 32;

/** A byte of a file that is locked. */
export interface LockedByte {
  /** The file's inode. */
  ino: number;
  byte: number;
}

/** The processes, as far as this user may see, that hold the lock; empty if none can be seen. */
export function findLockHolders(locked: LockedByte, searchMs = SEARCH_MS): LockHolder[] {
  const end = performance.now() + searchMs;
  const isInTime = (): boolean => performance.now() <= end;
  const holds = (pid: number): boolean =>
    namesIn(`/proc/${pid}/fdinfo`).some(
      (file) => isInTime() && holdsLock(textOf(`/proc/${pid}/fdinfo/${file}`), locked),
    );
  const others = namesIn('/proc').map(Number).filter(Number.isInteger);
  // This one first: it is what a program can do something about, and found even on a busy machine.
  return [...new Set([process.pid, ...others])]
    .filter((pid) => isInTime() && holds(pid))
    .map((pid) => ({ pid, name: programName(pid) }));
}

/**
 * Whether the `fdinfo` of an open file lists the lock, as in
 * `lock: 1: OFDLCK ADVISORY READ -1 fe:00:2163442 100 101`.
 */
export function holdsLock(fdinfo: string, { ino, byte }: LockedByte): boolean {
  // The device's number is left out: on btrfs and overlayfs it differs from that of stat(2).
  return fdinfo.split('\n').some((line) => {
    const match = /^lock:\s+\d+: OFDLCK .* [0-9a-f]+:[0-9a-f]+:(\d+) (\d+) (\d+|EOF)$/.exec(line);
    if (match === null) return false;
    const [lockIno, start, end] = match
      .slice(1)
      .map((text) => (text === 'EOF' ? Infinity : Number(text)));
    return lockIno === ino && start! <= byte && byte <= end!;
  });
}

function programName(pid: number): string {
  const name = textOf(`/proc/${pid}/comm`).trimEnd();
  // Programs choose their names: no control characters of theirs reach a terminal.
  return name.replaceAll(/[^\x20-\x7e]/g, '?').slice(0, MAX_NAME_LENGTH);
}

function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch {
    return [];
  }
}

function textOf(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}
