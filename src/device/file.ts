/** A regular file or block device of the host. */

import {
  closeSync,
  fdatasyncSync,
  fstatSync,
  ftruncateSync,
  readSync,
  writeSync,
  writevSync,
} from 'node:fs';
import { hostError, Qcow2Error } from '../errors.ts';
import { fallocate } from '../host/fallocate.ts';
import type { FallocateMode } from '../host/fallocate.ts';
import type { EarlyWriteback } from '../host/early-writeback.ts';
import type { SpaceReserver } from '../host/reserve-space.ts';
import { hostRunAt } from '../host/seek-hole.ts';
import { checkRange } from './block-device.ts';
import type { Extent, HostFile, HostRange, WriteZeroesOptions } from './block-device.ts';
import { openHostFile } from './open-file.ts';

/** Options of {@link FileDevice}. */
export interface FileDeviceOptions {
  /** Open for writing too (default false). */
  writable?: boolean;
  /** Let writes past the end of a regular file make it longer (default false: refuse them). */
  growable?: boolean;
  /** The part of the file that the device is (default: all of it). */
  window?: FileWindow | undefined;
  /** Name to show for it (default: its path). */
  shownName?: string | undefined;
}

/** A part of a host file. */
export interface FileWindow {
  /** Its first byte. */
  offset: number;
  /** Bytes, which stay that many; undefined for all up to the end of the file. */
  length: number | undefined;
}

/** A byte that nobody looks at. */
const PROBE = Buffer.alloc(1);
const ZEROES = Buffer.alloc(1024 * 1024);

/** Linux moves less than 2 GiB in one call, and Node refuses to ask for more. */
const MAX_TRANSFER_BYTES = 1024 * 1024 * 1024;

/**
 * A host file, or a part of one, as a device.
 *
 * Its size is what it was when the file was opened, and what writing and resizing by this object
 * made of it since. That somebody else made the file shorter is found where it shows: by reads, by
 * writes at the end, and by {@link flush}.
 */
export class FileDevice implements HostFile {
  /** Path that it was opened by. */
  readonly path: string;
  /** Name to show for it, where its path is not what it was given as. */
  readonly shownName: string | undefined;
  readonly readOnly: boolean;
  /** Device and inode of the file, which tell whether two paths are one file. */
  readonly identity: string;
  /** Whether it is a block device rather than a regular file. */
  readonly isBlockDevice: boolean;
  /** Whether writes past the end make the file longer. */
  growable: boolean;
  /**
   * Whether {@link flush} does so (default true). Without it what was written reaches the disk when
   * the host likes: for files that are made anew if the host fails before they are finished.
   */
  durable = true;
  /** Reserves space for long writes before they are made (default: nothing does). */
  reserver: SpaceReserver | undefined;
  /** Has long writes reach the disk before they are flushed (default: the host does as it likes). */
  earlyWriteback: EarlyWriteback | undefined;
  /**
   * How many reads there were, and how many bytes they gave. Who wants them added up elsewhere puts
   * two numbers of their own here.
   */
  readCounter: Float64Array = new Float64Array(2);
  /** The part of the file that this is; undefined for all of it. */
  readonly window: FileWindow | undefined;
  /** Byte of the file at which the device starts. */
  readonly #start: number;
  #fd: number;
  #size: number;
  /** The first flush that failed; see {@link flush}. */
  #lostWrites: unknown;
  #isFlushed = true;

  /**
   * @throws {Qcow2Error} `HOST` if it cannot be opened, `UNKNOWN_FORMAT` if it is neither a file
   * nor a block device, `OUT_OF_RANGE` if the window does not lie within it
   */
  constructor(path: string, options: FileDeviceOptions = {}) {
    const { writable = false, growable = false, window, shownName } = options;
    this.path = path;
    this.shownName = shownName;
    this.readOnly = !writable;
    this.growable = growable;
    this.window = window;
    this.#start = window?.offset ?? 0;
    const { fd, size, stats } = openHostFile(path, { writable });
    try {
      this.#size = this.#sizeWithin(size);
    } catch (error) {
      closeSync(fd);
      throw error;
    }
    this.#fd = fd;
    this.identity = `${stats.dev}:${stats.ino}`;
    this.isBlockDevice = stats.isBlockDevice();
  }

  /** Bytes that can be read. */
  get size(): number {
    return this.#size;
  }

  /**
   * Takes the size from the file anew: what it was before the file was locked may be out of date.
   * @throws {Qcow2Error} `CLOSED`
   */
  updateSize(): void {
    if (!this.isBlockDevice) this.#size = this.#sizeWithin(fstatSync(this.descriptor).size);
  }

  /** Bytes of the device in a file of so many. */
  #sizeWithin(fileSize: number): number {
    if (this.window === undefined) return fileSize;
    const { offset, length = fileSize - offset } = this.window;
    if (length >= 0 && offset + length <= fileSize) return length;
    throw new Qcow2Error(
      'OUT_OF_RANGE',
      `the part of ${Math.max(length, 0)} bytes at ${offset} is outside the file of ${fileSize}`,
      { file: this.path },
    );
  }

  /** Bytes that the file occupies on its filesystem. */
  get allocatedSize(): number {
    return fstatSync(this.descriptor).blocks * 512;
  }

  /** Whether {@link close} was called. */
  get isClosed(): boolean {
    return this.#fd < 0;
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
    const start = this.#start + offset;
    let done = 0;
    while (done < length) {
      let count: number;
      try {
        const wanted = Math.min(length - done, MAX_TRANSFER_BYTES);
        count = readSync(fd, target, done, wanted, start + done);
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
    const counter = this.readCounter;
    counter[0]! += 1;
    counter[1]! += length;
  }

  /**
   * Stores all of `source` at `offset`. If it fails, any part of the range may have been written.
   *
   * @throws {Qcow2Error} `READ_ONLY`; `OUT_OF_RANGE` past the end of a file that is not growable;
   * `TRUNCATED` where the file shrank; `HOST` if the host refuses or has no space
   */
  write(source: Uint8Array, offset: number): void {
    const { length } = source;
    this.#prepareWrite(offset, length);
    const fd = this.descriptor;
    this.reserver?.prepare({ fd, offset: this.#start + offset, length, path: this.path });
    this.#transfer(offset, length, (done) => {
      const count = Math.min(length - done, MAX_TRANSFER_BYTES);
      return writeSync(fd, source, done, count, this.#start + offset + done);
    });
  }

  /**
   * Stores all of `parts`, one after the other, at `offset`: one call to the host for all of them.
   * Otherwise as {@link write}.
   *
   * @throws {Qcow2Error} as {@link write}
   */
  writeParts(parts: readonly Uint8Array[], offset: number): void {
    const length = parts.reduce((sum, part) => sum + part.length, 0);
    this.#prepareWrite(offset, length);
    const fd = this.descriptor;
    this.reserver?.prepare({ fd, offset: this.#start + offset, length, path: this.path });
    this.#transfer(offset, length, (done) => {
      const at = this.#start + offset + done;
      return writevSync(fd, done === 0 ? parts : partsFrom(parts, done), at);
    });
  }

  /**
   * Makes a range read as zeroes, by the filesystem where it can and by writing them otherwise.
   * Grows a growable file as {@link write} does.
   *
   * @throws {Qcow2Error} as {@link write}
   */
  writeZeroes(offset: number, length: number, options: WriteZeroesOptions = {}): void {
    const { mayUnmap = false } = options;
    this.#prepareWrite(offset, length);
    const end = offset + length;
    const inside = Math.max(Math.min(end, this.#size) - offset, 0);
    const punched = mayUnmap && this.#fallocate('punch-hole', offset, inside);
    if (!punched && !this.#fallocate('zero-range', offset, inside)) {
      this.#storeZeroes(offset, inside);
    }
    if (end <= this.#size || length === 0) return;
    if (mayUnmap) this.resize(end);
    else this.#appendZeroes(offset + inside, end);
  }

  /**
   * Gives the space of a range back to the filesystem if that is possible; keeps it otherwise.
   * @throws {Qcow2Error} `READ_ONLY` or `OUT_OF_RANGE`
   */
  discard(offset: number, length: number): void {
    this.#prepareChange();
    checkRange(offset, length, this.#size);
    try {
      this.#fallocate('punch-hole', offset, length);
    } catch (error) {
      // A hint: keeping the bytes honours it. Filesystems may need space even to free some.
      if (!(error instanceof Qcow2Error && error.code === 'HOST')) throw error;
    }
  }

  /**
   * Makes the file `size` bytes long; new bytes read as zeroes. A block device keeps its size.
   *
   * @throws {Qcow2Error} `READ_ONLY`; `UNSUPPORTED` for a part of a fixed length; `HOST` if the host refuses,
   * or a block device is smaller
   */
  resize(size: number): void {
    this.#prepareChange();
    checkRange(0, size, Number.MAX_SAFE_INTEGER);
    if (this.window?.length !== undefined) throw this.#fixedSize();
    if (this.isBlockDevice) {
      if (size > this.#size) throw this.#cannotGrow(size);
      return;
    }
    this.#isFlushed = false;
    try {
      ftruncateSync(this.descriptor, this.#start + size);
    } catch (error) {
      throw hostError(`cannot make the file ${size} bytes long`, this.path, error);
    }
    this.#size = size;
  }

  /**
   * Returns once everything written would survive a power cut (fdatasync(2)).
   *
   * Once this has failed it goes on failing: the kernel reports lost writes only once, and a later
   * success would not mean that they reached the disk.
   *
   * @throws {Qcow2Error} `HOST` if the host cannot promise it, `TRUNCATED` if the file shrank
   */
  flush(): void {
    if (this.readOnly || !this.durable) return;
    if (this.#lostWrites !== undefined) {
      throw new Qcow2Error('HOST', 'an earlier flush failed, and what was written may be lost', {
        file: this.path,
        hint: 'close the image, check the disk and its cable, then check the image',
        cause: this.#lostWrites,
      });
    }
    this.#checkNotShrunk();
    try {
      fdatasyncSync(this.descriptor);
      this.#isFlushed = true;
    } catch (error) {
      this.#lostWrites = error;
      throw hostError('cannot flush', this.path, error);
    }
  }

  *extents(offset: number, length: number): Generator<Extent> {
    checkRange(offset, length, this.size);
    const end = offset + length;
    const start = this.#start;
    for (let at = offset; at < end;) {
      const run = hostRunAt(this.descriptor, start + at, start + this.size);
      const runEnd = Math.min(run.end - start, end);
      yield {
        offset: at,
        length: runEnd - at,
        kind: run.isHole ? 'zero' : 'data',
        zero: run.isHole,
        present: true,
        depth: 0,
        hostOffset: start + at,
        hostFile: this.path,
      };
      at = runEnd;
    }
  }

  hostRange(offset: number, length: number): HostRange | undefined {
    checkRange(offset, length, this.size);
    if (!this.readOnly) return undefined;
    return { descriptor: this.descriptor, hostOffset: this.#start + offset };
  }

  /**
   * Flushes what was written since the last flush, and closes the file whether that works or not.
   * @throws {Qcow2Error} as {@link flush}
   */
  close(): void {
    if (this.#fd < 0) return;
    try {
      if (!this.#isFlushed) this.flush();
    } finally {
      closeSync(this.#fd);
      this.#fd = -1;
    }
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #prepareChange(): void {
    if (this.readOnly) {
      throw new Qcow2Error('READ_ONLY', 'the file was opened for reading', { file: this.path });
    }
  }

  #prepareWrite(offset: number, length: number): void {
    this.#prepareChange();
    const end = offset + length;
    if (end > this.#size && this.growable && this.window?.length === undefined) {
      if (this.isBlockDevice) throw this.#cannotGrow(end);
      checkRange(offset, length, Number.MAX_SAFE_INTEGER);
      this.#checkNotShrunk();
    } else {
      checkRange(offset, length, this.#size);
    }
  }

  /** Calls `step` until `length` bytes are stored; it stores some, and returns how many. */
  #transfer(offset: number, length: number, step: (done: number) => number): void {
    this.#isFlushed = false;
    let done = 0;
    try {
      while (done < length) {
        const count = step(done);
        // Never seen, but waiting for it to end would be waiting for ever.
        if (count === 0) throw Object.assign(new Error('nothing was written'), { code: 'EIO' });
        done += count;
      }
    } catch (error) {
      throw hostError(`cannot write ${length} bytes at offset ${offset}`, this.path, error);
    } finally {
      // What was stored is there, even if the rest failed.
      this.#size = Math.max(this.#size, done === 0 ? 0 : offset + done);
    }
    this.earlyWriteback?.written({ fd: this.#fd, position: this.#start + offset, length });
  }

  #storeZeroes(offset: number, length: number): void {
    for (let done = 0; done < length; done += ZEROES.length) {
      this.write(ZEROES.subarray(0, Math.min(ZEROES.length, length - done)), offset + done);
    }
  }

  /** Zeroes that have space on the disk, at or past the end. */
  #appendZeroes(offset: number, end: number): void {
    const length = end - offset;
    // Beyond the end, reserving space is zeroing it; some filesystems know only this.
    if (
      this.#fallocate('zero-range', offset, length) ||
      this.#fallocate('allocate', offset, length)
    )
      this.#size = end;
    else this.#storeZeroes(offset, length);
  }

  #fallocate(mode: FallocateMode, offset: number, length: number): boolean {
    this.#isFlushed = false;
    const at = this.#start + offset;
    return fallocate(mode, { fd: this.descriptor, offset: at, length, path: this.path });
  }

  #fixedSize(): Qcow2Error {
    return new Qcow2Error('UNSUPPORTED', 'a part of a file that has a size keeps it', {
      file: this.path,
    });
  }

  #cannotGrow(size: number): Qcow2Error {
    const problem = `no space left: the block device has ${this.#size} bytes, not ${size}`;
    return new Qcow2Error('HOST', problem, {
      file: this.path,
      hint: 'make the device larger and open the image again',
      cause: Object.assign(new Error(problem), { code: 'ENOSPC' }),
    });
  }

  /** Finds that somebody else made the file shorter, before its lost part becomes a silent hole. */
  #checkNotShrunk(): void {
    if (this.isBlockDevice || this.#size === 0) return;
    // Whether the last byte is there costs a third of what fstat does, before every flush.
    try {
      const last = this.#start + this.#size - 1;
      if (readSync(this.descriptor, PROBE, 0, 1, last) === 1) return;
    } catch {
      // It cannot be read, but that is not the question.
      return;
    }
    const size = fstatSync(this.descriptor).size - this.#start;
    if (size >= this.#size) return;
    throw new Qcow2Error(
      'TRUNCATED',
      `the file became shorter while it was open: ${size} instead of ${this.#size} bytes`,
      { file: this.path, hint: 'something else changed it; close it and check it' },
    );
  }
}

/** The buffers that are left when the first `done` bytes of `parts` have been stored. */
function partsFrom(parts: readonly Uint8Array[], done: number): Uint8Array[] {
  const left: Uint8Array[] = [];
  let start = 0;
  for (const part of parts) {
    const skip = Math.min(Math.max(done - start, 0), part.length);
    if (skip < part.length) left.push(skip === 0 ? part : part.subarray(skip));
    start += part.length;
  }
  return left;
}
