/** A regular file or block device of the host. */

import {
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  openSync,
  readFileSync,
  readSync,
  writeSync,
} from 'node:fs';
import type { Stats } from 'node:fs';
import { hostError, Qcow2Error } from '../errors.ts';
import { hostRunAt } from '../host/seek-hole.ts';
import { checkRange } from './block-device.ts';
import type { BlockDevice, Extent, HostRange, WriteZeroesOptions } from './block-device.ts';

/** Options of {@link FileDevice}. */
export interface FileDeviceOptions {
  /** Open for writing too (default false). */
  writable?: boolean;
}

const ZEROES = Buffer.alloc(1024 * 1024);

/** A host file as a device. Its size is the file's at the time it was opened. */
export class FileDevice implements BlockDevice {
  /** Path that it was opened by. */
  readonly path: string;
  readonly readOnly: boolean;
  readonly size: number;
  /** Device and inode of the file, which tell whether two paths are one file. */
  readonly identity: string;
  /** Whether it is a block device rather than a regular file. */
  readonly isBlockDevice: boolean;
  #fd: number;

  /**
   * @throws {Qcow2Error} `HOST` if it cannot be opened, `UNKNOWN_FORMAT` if it is neither a file
   * nor a block device
   */
  constructor(path: string, { writable = false }: FileDeviceOptions = {}) {
    this.path = path;
    this.readOnly = !writable;
    // Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
    const flags = (writable ? constants.O_RDWR : constants.O_RDONLY) | constants.O_NONBLOCK;
    let fd: number | undefined;
    try {
      fd = openSync(path, flags);
      const stats = fstatSync(fd);
      this.size = sizeOf(path, stats);
      this.identity = `${stats.dev}:${stats.ino}`;
      this.isBlockDevice = stats.isBlockDevice();
      this.#fd = fd;
    } catch (error) {
      if (fd !== undefined) closeSync(fd);
      throw error instanceof Qcow2Error ? error : hostError('cannot open', path, error);
    }
  }

  /** Bytes that the file occupies on its filesystem. */
  get allocatedSize(): number {
    return fstatSync(this.descriptor).blocks * 512;
  }

  /** The open file descriptor. */
  get descriptor(): number {
    if (this.#fd < 0) {
      throw new Qcow2Error('CLOSED', 'the device was closed', { file: this.path });
    }
    return this.#fd;
  }

  read(target: Uint8Array, offset: number): void {
    const { length } = target;
    checkRange(offset, length, this.size);
    const fd = this.descriptor;
    let done = 0;
    while (done < length) {
      let count: number;
      try {
        count = readSync(fd, target, done, length - done, offset + done);
      } catch (error) {
        throw hostError(`cannot read ${length} bytes at offset ${offset}`, this.path, error);
      }
      if (count === 0) {
        throw new Qcow2Error('TRUNCATED', 'the file became shorter while it was open', {
          file: this.path,
          offset: offset + done,
        });
      }
      done += count;
    }
  }

  /**
   * Stores all of `source` at `offset`.
   * @throws {Qcow2Error} `READ_ONLY`, `OUT_OF_RANGE`, or `HOST` if the host refuses
   */
  write(source: Uint8Array, offset: number): void {
    const { length } = source;
    this.#checkWritable();
    checkRange(offset, length, this.size);
    const fd = this.descriptor;
    let done = 0;
    try {
      while (done < length) done += writeSync(fd, source, done, length - done, offset + done);
    } catch (error) {
      throw hostError(`cannot write ${length} bytes at offset ${offset}`, this.path, error);
    }
  }

  writeZeroes(offset: number, length: number, _options?: WriteZeroesOptions): void {
    checkRange(offset, length, this.size);
    for (let done = 0; done < length; done += ZEROES.length) {
      this.write(ZEROES.subarray(0, Math.min(ZEROES.length, length - done)), offset + done);
    }
  }

  discard(offset: number, length: number): void {
    // A hint: keeping the bytes honours it.
    this.#checkWritable();
    checkRange(offset, length, this.size);
  }

  /**
   * Returns once everything written would survive a power cut (fsync(2)).
   * @throws {Qcow2Error} `HOST` if the host cannot promise it
   */
  flush(): void {
    if (this.readOnly) return;
    try {
      fsyncSync(this.descriptor);
    } catch (error) {
      throw hostError('cannot flush', this.path, error);
    }
  }

  *extents(offset: number, length: number): Generator<Extent> {
    checkRange(offset, length, this.size);
    const end = offset + length;
    for (let at = offset; at < end;) {
      const run = hostRunAt(this.descriptor, at, this.size);
      const runEnd = Math.min(run.end, end);
      yield {
        offset: at,
        length: runEnd - at,
        kind: run.isHole ? 'zero' : 'data',
        zero: run.isHole,
        present: true,
        depth: 0,
        hostOffset: at,
        hostFile: this.path,
      };
      at = runEnd;
    }
  }

  hostRange(offset: number, length: number): HostRange | undefined {
    checkRange(offset, length, this.size);
    return this.readOnly ? { descriptor: this.descriptor, hostOffset: offset } : undefined;
  }

  close(): void {
    if (this.#fd < 0) return;
    closeSync(this.#fd);
    this.#fd = -1;
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #checkWritable(): void {
    if (this.readOnly) {
      throw new Qcow2Error('READ_ONLY', 'the file was opened for reading', { file: this.path });
    }
  }
}

function sizeOf(path: string, stats: Stats): number {
  if (stats.isFile()) return stats.size;
  if (stats.isBlockDevice()) return blockDeviceSize(stats.rdev);
  const kind = stats.isDirectory() ? 'a directory' : 'neither a file nor a block device';
  throw new Qcow2Error('UNKNOWN_FORMAT', `it is ${kind}, not a disk image`, { file: path });
}

/** Size of a block device by its number; stat(2) says 0 for all of them. */
function blockDeviceSize(rdev: number): number {
  // The kernel's encoding: 12 bits of major, 20 of minor in two parts.
  const major = Math.floor(rdev / 256) & 0xfff;
  const minor = (rdev & 0xff) | (Math.floor(rdev / 4096) & 0xfff00);
  const sectors = readFileSync(`/sys/dev/block/${major}:${minor}/size`, 'utf8');
  return Number(sectors) * 512;
}
