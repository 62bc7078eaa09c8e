/**
 * Locks on image files, as QEMU takes them, so that it and this package keep out of each other's way.
 *
 * Whoever opens a file says what it does to it and what it lets others do meanwhile. Each of these
 * permissions is a bit; a read lock on byte 100 + bit tells that it is taken, one on byte 200 + bit
 * that others must not take it. Nobody ever waits for a lock or takes a write lock: after setting
 * its own, each side looks whether somebody else has set the opposite byte, and then gives up.
 *
 * The locks are `F_OFD_SETLK` locks of fcntl(2). They belong to the open file, not to the process:
 * closing it, or the end of the process, releases them, and two opens in one process exclude each
 * other as those of two processes do.
 */

import { fstatSync } from 'node:fs';
import { hostError, Qcow2Error } from '../errors.ts';
import { errnoName, loadLibc } from './libc.ts';
import type { Libc } from './libc.ts';
import { findLockHolders } from './lock-holders.ts';
import type { LockHolder } from './lock-holders.ts';

/** What can be taken from, or left to, others: bit numbers of QEMU's `BLK_PERM_*`. */
const Permission = { read: 0, write: 1, resize: 3 } as const;

/** One of the permissions of a file. */
export type LockPermission = keyof typeof Permission;

const TAKEN_BYTE = 100;
const DENIED_BYTE = 200;
/** All bytes that have a meaning; others belong to whoever uses them. */
const LOCK_BYTES = { start: TAKEN_BYTE, length: DENIED_BYTE + 4 - TAKEN_BYTE };

/** What the opener of a file does to it, and what nobody else may do meanwhile. */
export interface LockRequest {
  takes: readonly LockPermission[];
  denies: readonly LockPermission[];
}

/** What QEMU asks for each kind of file, by what it is opened for. */
export const LockRequests = {
  /** A file whose metadata must not change while it is read. */
  qcow2: {
    read: { takes: ['read'], denies: ['write', 'resize'] },
    write: { takes: ['read', 'write', 'resize'], denies: ['write', 'resize'] },
  },
  /** The external data file of a qcow2 image: the lock on the image keeps other writers away. */
  dataFile: {
    read: { takes: ['read'], denies: ['resize'] },
    write: { takes: ['read', 'write', 'resize'], denies: ['resize'] },
  },
  /** A raw image: read it who likes; written as by a virtual machine, not as by qemu-io. */
  raw: {
    read: { takes: ['read'], denies: [] },
    write: { takes: ['read', 'write', 'resize'], denies: ['write', 'resize'] },
  },
  /** Reading what may be changing (qemu-img's `-U`). */
  shared: {
    read: { takes: ['read'], denies: [] },
  },
} as const satisfies Record<string, Partial<Record<'read' | 'write', LockRequest>>>;

/** An open file to lock. */
export interface LockTarget {
  fd: number;
  /** Path, for errors. */
  path: string;
}

const F_OFD_GETLK = 36;
const F_OFD_SETLK = 37;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;

let fcntlFunction: ((...values: unknown[]) => unknown) | undefined;

/** `struct flock` of 64-bit Linux: type, whence (0: from the start), start, length, pid. */
const flock = new ArrayBuffer(32);
const flockBytes = new Uint8Array(flock);
const flockType = new Int16Array(flock, 0, 1);
const flockRange = new BigInt64Array(flock, 8, 2);

/**
 * Locks an open file for what `request` says, until it is closed.
 *
 * Where there can be no locks (no koffi, not Linux, a filesystem without), reading goes on without
 * one. Writing does so only outside Linux, where QEMU takes no locks either.
 *
 * @throws {Qcow2Error} `LOCKED` if somebody's use of the file excludes this; for writing also
 * `MISSING_DEPENDENCY` without koffi, and `HOST` on a filesystem without locks
 */
export function lockFile(target: LockTarget, request: LockRequest): void {
  if (process.platform !== 'linux') return;
  const isForWriting = request.takes.includes('write');
  const libc = loadLibc();
  if (libc === undefined) {
    if (isForWriting) throw missingLibc(target.path);
    return;
  }
  const own = [
    ...request.takes.map((permission) => TAKEN_BYTE + Permission[permission]),
    ...request.denies.map((permission) => DENIED_BYTE + Permission[permission]),
  ];
  for (const byte of own) {
    const errno = setLock(libc, target.fd, { type: F_RDLCK, start: byte });
    if (errno === 0) continue;
    unlock(libc, target.fd);
    // Reading goes on: a filesystem without locks has none of others that could be in the way.
    if (!isForWriting && errno !== libc.errnos['EAGAIN']) return;
    throw lockFailure(libc, target.path, errno);
  }
  const conflict = findConflict(libc, target.fd, request);
  if (conflict === undefined) return;
  // First, so that one's own locks are not taken for somebody's.
  unlock(libc, target.fd);
  throw lockedError(target, conflict, isForWriting);
}

/** A byte that somebody else has locked, and what that means. */
interface Conflict {
  byte: number;
  deed: string;
}

function findConflict(libc: Libc, fd: number, request: LockRequest): Conflict | undefined {
  const conflicts = [
    ...request.denies.map((permission) => ({
      byte: TAKEN_BYTE + Permission[permission],
      deed: TAKING[permission],
    })),
    ...request.takes.map((permission) => ({
      byte: DENIED_BYTE + Permission[permission],
      deed: DENYING[permission],
    })),
  ];
  return conflicts.find(({ byte }) => isLockedByOther(libc, fd, byte));
}

function isLockedByOther(libc: Libc, fd: number, byte: number): boolean {
  fillFlock({ type: F_WRLCK, start: byte });
  return fcntl(libc, fd, F_OFD_GETLK) === 0 && flockType[0] !== F_UNLCK;
}

function unlock(libc: Libc, fd: number): void {
  setLock(libc, fd, { type: F_UNLCK, ...LOCK_BYTES });
}

interface ByteLock {
  type: number;
  start: number;
  length?: number;
}

function setLock(libc: Libc, fd: number, lock: ByteLock): number {
  fillFlock(lock);
  return fcntl(libc, fd, F_OFD_SETLK);
}

function fillFlock({ type, start, length = 1 }: ByteLock): void {
  flockBytes.fill(0);
  flockType[0] = type;
  flockRange[0] = BigInt(start);
  flockRange[1] = BigInt(length);
}

/** 0, or the error's number. */
function fcntl(libc: Libc, fd: number, command: number): number {
  fcntlFunction ??= libc.func('int fcntl(int fd, int command, void *lock)');
  while (Number(fcntlFunction(fd, command, flockBytes)) !== 0) {
    const errno = libc.errno();
    if (errno !== libc.errnos['EINTR']) return errno;
  }
  return 0;
}

function missingLibc(path: string): Qcow2Error {
  return new Qcow2Error('MISSING_DEPENDENCY', 'locking it needs the optional package koffi', {
    file: path,
    hint: 'install it with: npm install koffi; or switch locking off if nothing else uses the image',
  });
}

function lockFailure(libc: Libc, path: string, errno: number): Qcow2Error {
  const { problem, cause } = hostError('cannot lock it', path, { code: errnoName(libc, errno) });
  return new Qcow2Error('HOST', problem, {
    file: path,
    hint: 'if its filesystem has no locks and nothing else uses the image, switch locking off',
    cause,
  });
}

const TAKING: Readonly<Record<LockPermission, string>> = {
  read: 'reads it',
  write: 'writes to it',
  resize: 'may change its size',
};

const DENYING: Readonly<Record<LockPermission, string>> = {
  read: 'lets nobody read it',
  write: 'reads it and needs it unchanged',
  resize: 'needs its size unchanged',
};

function lockedError({ fd, path }: LockTarget, { byte, deed }: Conflict, isForWriting: boolean) {
  const holders = findLockHolders({ ino: fstatSync(fd).ino, byte });
  const wait = 'wait until it is closed there';
  return new Qcow2Error('LOCKED', `it is in use: ${describeHolders(holders)} ${deed}`, {
    file: path,
    hint: isForWriting ? wait : `${wait}, or read it all the same with --force-share`,
  });
}

function describeHolders(holders: readonly LockHolder[]): string {
  if (holders.length === 0) return 'a process that cannot be seen from here';
  const names = holders.map(({ pid, name }) =>
    pid === process.pid ? 'this process itself' : `process ${pid} (${name})`,
  );
  return names.length > 4 ? [...names.slice(0, 4), 'another'].join(' or ') : names.join(' or ');
}
