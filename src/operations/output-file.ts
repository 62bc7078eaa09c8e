/**
 * The file or block device that an operation writes a whole disk to.
 *
 * An existing file is truncated, but never before it is known to be neither an input nor a block
 * device that something else uses, and that nobody has it open as an image. A file that did not exist before is removed again if the
 * operation does not finish.
 */

import {
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  openSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import type { Stats } from 'node:fs';
import { FileDevice } from '../device/file.ts';
import { hostError, Qcow2Error } from '../errors.ts';
import { fallocate } from '../host/fallocate.ts';
import { lockFile, LockRequests } from '../host/locks.ts';
import { SpaceReserver } from '../host/reserve-space.ts';
import { firstBlockBytes } from './first-block.ts';

/** How an {@link OutputFile} is opened. */
export interface OutputFileOptions {
  /** Bytes of the disk that will be written. */
  size: number;
  /** `create` makes the file, or truncates it; `existing` writes into one that is large enough. */
  mode: 'create' | 'existing';
  /** Files that are read meanwhile: none of them may be the output. */
  inputs: readonly string[];
  /**
   * With `create`, whether a file has space for all of it (default off): `falloc` reserves it,
   * `full` writes zeroes to it.
   */
  preallocation?: 'off' | 'falloc' | 'full' | undefined;
}

const ZEROES = Buffer.alloc(1024 * 1024);

/** See the head of this file. */
export class OutputFile {
  readonly path: string;
  /** Whether the file was just made or emptied, so that what is not written reads as zeroes. */
  readonly isEmpty: boolean;
  /** Whether the file did not exist before. */
  readonly isNew: boolean;
  #fd: number;
  readonly #reserver: SpaceReserver;

  /**
   * @throws {Qcow2Error} `HOST` if it cannot be opened, `REFUSED` if it is an input, or a block
   * device that is mounted or otherwise used, `LOCKED` if somebody has it open as an image,
   * `OUT_OF_RANGE` if it is too small, `INVALID_OPTION` for a block device with preallocation
   */
  constructor(path: string, { size, mode, inputs, preallocation = 'off' }: OutputFileOptions) {
    this.path = path;
    const { fd, isNew } = openForWriting(path, mode);
    this.#fd = fd;
    this.isNew = isNew;
    this.#reserver = new SpaceReserver(path);
    try {
      const stats = fstatSync(fd);
      if (!stats.isFile() && !stats.isBlockDevice()) {
        throw new Qcow2Error('REFUSED', 'the output is neither a file nor a block device', {
          file: path,
        });
      }
      refuseInputs(path, stats, inputs);
      this.#lock();
      this.isEmpty = mode === 'create' && stats.isFile();
      if (this.isEmpty) {
        resize(fd, path, { from: stats.size, to: size });
        this.write(ZEROES.subarray(0, firstBlockBytes(size)), 0);
        this.#preallocate(size, preallocation);
      } else {
        if (preallocation !== 'off') throw notPreallocated(path, preallocation);
        using device = new FileDevice(path);
        const available = device.size;
        if (available < size) throw tooSmall(path, available, size);
      }
    } catch (error) {
      this.abandon();
      throw error;
    }
  }

  /** Writes all of `bytes` at `offset`. */
  write(bytes: Uint8Array, offset: number): void {
    const { length } = bytes;
    this.#reserver.prepare({ fd: this.#fd, offset, length, path: this.path });
    try {
      for (let done = 0; done < length;) {
        done += writeSync(this.#fd, bytes, done, length - done, offset + done);
      }
    } catch (error) {
      throw hostError(`cannot write ${length} bytes at offset ${offset}`, this.path, error);
    }
  }

  /**
   * Makes a range read as zeroes at once.
   *
   * @returns false if the filesystem cannot; nothing has changed then
   */
  tryZero(offset: number, length: number, space: 'free' | 'keep'): boolean {
    const mode = space === 'free' ? 'punch-hole' : 'zero-range';
    return fallocate(mode, { fd: this.#fd, offset, length, path: this.path });
  }

  /** Reserves space for a range, whose content stays. @returns false if the filesystem cannot */
  tryAllocate(offset: number, length: number): boolean {
    return fallocate('allocate', { fd: this.#fd, offset, length, path: this.path });
  }

  /** Writes zeroes, however long that takes. */
  writeZeroes(offset: number, length: number): void {
    for (let done = 0; done < length; done += ZEROES.length) {
      this.write(ZEROES.subarray(0, Math.min(ZEROES.length, length - done)), offset + done);
    }
  }

  /** Closes the finished file, after it is safe on the disk if `flush` says so. */
  finish({ flush }: { flush: boolean }): void {
    try {
      if (flush) fsyncSync(this.#fd);
    } catch (error) {
      throw hostError('cannot flush', this.path, error);
    }
    this.#close();
  }

  /** Gives the output up. @returns what became of it: a new file was removed */
  abandon(): 'removed' | 'kept' {
    this.#close();
    if (!this.isNew) return 'kept';
    try {
      unlinkSync(this.path);
      return 'removed';
    } catch {
      return 'kept';
    }
  }

  #lock(): void {
    try {
      lockFile({ fd: this.#fd, path: this.path }, LockRequests.raw.write);
    } catch (error) {
      // Nobody else knows of a file that was just made: it need not be possible to lock it.
      const isLocked = error instanceof Qcow2Error && error.code === 'LOCKED';
      if (!this.isNew || isLocked) throw error;
    }
  }

  #preallocate(size: number, mode: NonNullable<OutputFileOptions['preallocation']>): void {
    const isReserved = mode === 'falloc' && this.tryAllocate(0, size);
    if (mode !== 'off' && !isReserved) this.writeZeroes(0, size);
  }

  #close(): void {
    if (this.#fd < 0) return;
    closeSync(this.#fd);
    this.#fd = -1;
  }
}

function openForWriting(
  path: string,
  mode: OutputFileOptions['mode'],
): { fd: number; isNew: boolean } {
  const { O_RDWR, O_CREAT, O_EXCL, O_NONBLOCK } = constants;
  try {
    if (mode === 'create') {
      try {
        return { fd: openSync(path, O_RDWR | O_CREAT | O_EXCL, 0o644), isNew: true };
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
      }
    }
    // With O_EXCL Linux refuses to open a block device that is mounted or part of another one.
    // O_NONBLOCK: a pipe that nobody reads fails, rather than wait.
    const isBlockDevice = statSync(path, { throwIfNoEntry: false })?.isBlockDevice() ?? false;
    const create = mode === 'create' ? O_CREAT : 0;
    const flags = O_RDWR | O_NONBLOCK | (isBlockDevice ? O_EXCL : create);
    return { fd: openSync(path, flags, 0o644), isNew: false };
  } catch (error) {
    const isBusy = (error as NodeJS.ErrnoException).code === 'EBUSY';
    if (!isBusy) throw hostError('cannot open for writing', path, error);
    throw new Qcow2Error('REFUSED', 'the block device is mounted or in use', {
      file: path,
      cause: error,
    });
  }
}

function notPreallocated(path: string, mode: string): Qcow2Error {
  return new Qcow2Error('INVALID_OPTION', `preallocation=${mode} is for files only`, {
    file: path,
    hint: 'the space of a block device is its own already',
  });
}

/**
 * Makes sure that a file that is about to be written to is none of those that are read.
 *
 * @param path of that file
 * @param output what is known of it
 * @throws {Qcow2Error} `REFUSED` if it is one of `inputs`
 */
export function refuseInputs(path: string, output: Stats, inputs: readonly string[]): void {
  for (const input of inputs) {
    const stats = statSync(input, { throwIfNoEntry: false });
    if (stats === undefined || identityOf(stats) !== identityOf(output)) continue;
    const problem =
      input === path ? 'the output is also an input' : `the output is the same file as ${input}`;
    throw new Qcow2Error('REFUSED', problem, { file: path, hint: 'nothing was written' });
  }
}

/** An error for an output that exists and cannot hold the input. Sizes are in bytes. */
export function tooSmall(path: string, available: number, size: number): Qcow2Error {
  return new Qcow2Error(
    'OUT_OF_RANGE',
    `the output has ${available} bytes, fewer than the ${size} of the input`,
    { file: path },
  );
}

/** Tells whether two paths are one file; several device nodes may be one block device. */
function identityOf(stats: Stats): string {
  return stats.isBlockDevice() ? `block device ${stats.rdev}` : `${stats.dev}:${stats.ino}`;
}

function resize(fd: number, path: string, { from, to }: { from: number; to: number }): void {
  try {
    // Not for a new file: ext4 takes that for a replacement, and waits for the disk when it closes.
    if (from > 0) ftruncateSync(fd, 0);
    ftruncateSync(fd, to);
  } catch (error) {
    throw hostError(`cannot make the file ${to} bytes long`, path, error);
  }
}
