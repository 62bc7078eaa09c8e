/** Finding the holes of sparse host files (lseek(2), SEEK_DATA and SEEK_HOLE). */

import { loadLibc } from './libc.ts';

const SEEK_DATA = 3;
const SEEK_HOLE = 4;

/** A run of a host file that is either all stored or all hole. */
export interface HostRun {
  /** One past the last byte of the run. */
  end: number;
  isHole: boolean;
}

let lseek: ((...values: unknown[]) => unknown) | undefined;

/**
 * The run of the file behind `fd` that starts at `offset`.
 *
 * Where holes cannot be asked for (no koffi, not Linux, a filesystem without support) the rest of
 * the file is said to be stored, which is always safe.
 *
 * @param size size of the file in bytes; `offset` is below it
 */
export function hostRunAt(fd: number, offset: number, size: number): HostRun {
  const stored: HostRun = { end: size, isHole: false };
  if (process.platform !== 'linux') return stored;
  const libc = loadLibc();
  if (libc === undefined) return stored;
  lseek ??= libc.func('int64_t lseek(int fd, int64_t offset, int whence)');
  const data = Number(lseek(fd, offset, SEEK_DATA));
  if (data < 0) {
    // ENXIO: no data from here to the end of the file. Anything else: the question is not known.
    return libc.errno() === libc.errnos['ENXIO'] ? { end: size, isHole: true } : stored;
  }
  if (data > offset) return { end: Math.min(data, size), isHole: true };
  const hole = Number(lseek(fd, offset, SEEK_HOLE));
  return hole > offset ? { end: Math.min(hole, size), isHole: false } : stored;
}
