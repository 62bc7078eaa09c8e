/** Opening regular files and block devices of the host: their size, and what to do if it fails. */

import { closeSync, constants, fstatSync, openSync, readFileSync } from 'node:fs';
import type { Stats } from 'node:fs';
import { hostError, Qcow2Error } from '../errors.ts';

/** An open file; the caller closes the descriptor. */
export interface OpenHostFile {
  fd: number;
  /** Bytes; of a block device those of the device. */
  size: number;
  stats: Stats;
}

/**
 * Opens a regular file or a block device.
 *
 * @throws {Qcow2Error} `HOST` if it cannot be opened, `UNKNOWN_FORMAT` if it is neither
 */
export function openHostFile(path: string, { writable }: { writable: boolean }): OpenHostFile {
  // Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
  const flags = (writable ? constants.O_RDWR : constants.O_RDONLY) | constants.O_NONBLOCK;
  let fd: number | undefined;
  try {
    fd = openSync(path, flags);
    const stats = fstatSync(fd);
    return { fd, size: sizeOf(path, stats), stats };
  } catch (error) {
    if (fd !== undefined) closeSync(fd);
    throw error instanceof Qcow2Error ? error : openError(path, error, writable);
  }
}

function openError(path: string, cause: unknown, writable: boolean): Qcow2Error {
  const error = hostError(writable ? 'cannot open for writing' : 'cannot open', path, cause);
  const hint = writable && WRITE_HINTS[(cause as NodeJS.ErrnoException).code ?? ''];
  return hint ? new Qcow2Error('HOST', error.problem, { file: path, hint, cause }) : error;
}

/** What to do if a file cannot be opened for writing. */
const WRITE_HINTS: Record<string, string> = {
  EACCES: 'give yourself the right to write to it, or open it for reading',
  EPERM: 'it may be immutable (see chattr) or sealed; make it writable, or open it for reading',
  EROFS: 'mount the filesystem read-write or copy the image elsewhere, or open it for reading',
  ETXTBSY: 'a program or the kernel (as swap) uses it; stop that, or open it for reading',
};

function sizeOf(path: string, stats: Stats): number {
  if (stats.isFile()) return stats.size;
  if (stats.isBlockDevice()) return blockDeviceSize(path, stats.rdev);
  const kind = stats.isDirectory() ? 'a directory' : 'neither a file nor a block device';
  throw new Qcow2Error('UNKNOWN_FORMAT', `it is ${kind}, not a disk image`, { file: path });
}

/** Size of a block device by its number; stat(2) says 0 for all of them. */
function blockDeviceSize(path: string, rdev: number): number {
  if (process.platform !== 'linux') {
    throw new Qcow2Error('UNSUPPORTED', 'only Linux tells the size of a block device', {
      file: path,
      hint: 'copy it to a file first',
    });
  }
  // The kernel's encoding: 12 bits of major, 20 of minor in two parts.
  const major = Math.floor(rdev / 256) & 0xfff;
  const minor = (rdev & 0xff) | (Math.floor(rdev / 4096) & 0xfff00);
  const sectors = readFileSync(`/sys/dev/block/${major}:${minor}/size`, 'utf8');
  return Number(sectors) * 512;
}
