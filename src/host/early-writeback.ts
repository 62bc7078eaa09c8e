/**
 * Having the host write to its disk while more is on its way, so that the flush at the end of much
 * data finds little left to do (sync_file_range(2), which Node has no function for).
 */

import { loadLibc } from './libc.ts';

/** Starts writing, and waits for nothing. */
const SYNC_FILE_RANGE_WRITE = 2;

/** Shorter writes may well be overwritten soon, and the kernel knows best when to store them. */
const MIN_BYTES = 256 * 1024;
/** Bytes to have written at a time: enough for long requests to the disk. */
const BATCH_BYTES = 8 * 1024 * 1024;
/** Writes this near to each other are of one stream, though requests overtake each other. */
const NEAR_BYTES = 16 * 1024 * 1024;

/** A range that was written. */
interface WrittenRange {
  fd: number;
  /** First byte of the file. */
  position: number;
  /** Bytes. */
  length: number;
}

/** Follows the long writes to one file. A hint: what fails is met by the flush. */
export class EarlyWriteback {
  /** The part of the file around which writes are collected. */
  #start = 0;
  #end = 0;
  /** Bytes written to it. */
  #bytes = 0;
  #call: ((...values: unknown[]) => unknown) | undefined;

  /** Takes note of a write that was done. */
  written({ fd, position, length }: WrittenRange): void {
    if (length < MIN_BYTES) return;
    const end = position + length;
    const isNear =
      this.#bytes > 0 && position <= this.#end + NEAR_BYTES && end + NEAR_BYTES >= this.#start;
    this.#start = isNear ? Math.min(this.#start, position) : position;
    this.#end = isNear ? Math.max(this.#end, end) : end;
    this.#bytes = isNear ? this.#bytes + length : length;
    if (this.#bytes < BATCH_BYTES) return;
    this.#startWriting(fd);
    this.#bytes = 0;
  }

  #startWriting(fd: number): void {
    const libc = process.platform === 'linux' ? loadLibc() : undefined;
    this.#call ??= libc?.func(
      'int sync_file_range(int fd, int64_t offset, int64_t length, unsigned int flags)',
    );
    this.#call?.(fd, this.#start, this.#end - this.#start, SYNC_FILE_RANGE_WRITE);
  }
}
