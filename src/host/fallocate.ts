/** Allocating and freeing parts of host files (fallocate(2)), which Node has no function for. */

import { hostError } from '../errors.ts';
import { loadLibc } from './libc.ts';

const FALLOC_FL_KEEP_SIZE = 0x01;
const FALLOC_FL_PUNCH_HOLE = 0x02;
const FALLOC_FL_ZERO_RANGE = 0x10;

/** Those that writing would meet too; EINTR is met by asking again. */
const ERRORS = ['EINTR', 'ENOSPC', 'EDQUOT', 'EIO', 'EFBIG'];

/** What to do with a range of a file. */
export type FallocateMode =
  /** Reserve space; bytes that exist keep their content, others read as zeroes. */
  | 'allocate'
  /** Give the space back; the range reads as zeroes. */
  | 'punch-hole'
  /** Make the range read as zeroes, and keep or reserve its space. */
  | 'zero-range';

const FLAGS: Readonly<Record<FallocateMode, number>> = {
  allocate: 0,
  'punch-hole': FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
  'zero-range': FALLOC_FL_ZERO_RANGE,
};

/** A part of an open file. */
export interface FileRange {
  fd: number;
  /** First byte. */
  offset: number;
  /** Bytes. */
  length: number;
  /** Path of the file, for errors. */
  path: string;
}

let fallocateFunction: ((...values: unknown[]) => unknown) | undefined;

/**
 * Asks the filesystem to allocate, free or zero a range at once.
 *
 * @returns false where that is not possible (no koffi, not Linux, a filesystem that cannot);
 * nothing has been changed then, and the caller writes zeroes instead
 * @throws {Qcow2Error} `HOST` if it failed for a reason that writing would meet too
 */
export function fallocate(mode: FallocateMode, { fd, offset, length, path }: FileRange): boolean {
  if (length === 0) return true;
  const libc = process.platform === 'linux' ? loadLibc() : undefined;
  if (libc === undefined) return false;
  fallocateFunction ??= libc.func(
    'int fallocate(int fd, int mode, int64_t offset, int64_t length)',
  );
  for (;;) {
    if (Number(fallocateFunction(fd, FLAGS[mode], offset, length)) === 0) return true;
    const errno = libc.errno();
    const name = ERRORS.find((key) => libc.errnos[key] === errno);
    if (name === undefined) return false;
    if (name !== 'EINTR') throw hostError(failedAction(mode, offset, length), path, { code: name });
  }
}

function failedAction(mode: FallocateMode, offset: number, length: number): string {
  const verb = { allocate: 'reserve', 'punch-hole': 'free', 'zero-range': 'zero' }[mode];
  return `cannot ${verb} ${length} bytes at offset ${offset}`;
}
