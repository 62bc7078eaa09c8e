/** Devices without a file: memory buffers, of fixed size and growing, and one that is all zeroes. */

import { checkRange, ReadOnlyDevice } from './block-device.ts';
import type { BlockDevice, Extent, HostFile, WriteZeroesOptions } from './block-device.ts';

/** A buffer as a device: reads and writes go to the bytes that it was given. */
export class MemoryDevice implements BlockDevice {
  readonly readOnly = false;
  /** The bytes themselves; writes change them. */
  readonly bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
  }

  get size(): number {
    return this.bytes.length;
  }

  read(target: Uint8Array, offset: number): void {
    checkRange(offset, target.length, this.size);
    target.set(this.bytes.subarray(offset, offset + target.length));
  }

  write(source: Uint8Array, offset: number): void {
    checkRange(offset, source.length, this.size);
    this.bytes.set(source, offset);
  }

  writeZeroes(offset: number, length: number, _options?: WriteZeroesOptions): void {
    checkRange(offset, length, this.size);
    this.bytes.fill(0, offset, offset + length);
  }

  discard(offset: number, length: number): void {
    checkRange(offset, length, this.size);
  }

  flush(): void {
    // Memory survives nothing; there is nothing to wait for.
  }

  *extents(offset: number, length: number): Generator<Extent> {
    checkRange(offset, length, this.size);
    if (length === 0) return;
    yield { offset, length, kind: 'data', zero: false, present: true, depth: 0 };
  }

  close(): void {
    // The buffer is the caller's.
  }

  [Symbol.dispose](): void {
    this.close();
  }
}

/** A file in memory: writes past its end make it longer, as {@link HostFile} says. */
export class GrowableMemoryDevice implements HostFile {
  readonly readOnly = false;
  /** At least as long as the file; all zero past its end. */
  #buffer: Uint8Array;
  #size: number;

  /** @param bytes its content at first; copied */
  constructor(bytes: Uint8Array = new Uint8Array(0)) {
    this.#buffer = new Uint8Array(bytes);
    this.#size = bytes.length;
  }

  get size(): number {
    return this.#size;
  }

  /** The content as it is now: a view that the next growth may leave behind. */
  get bytes(): Uint8Array {
    return this.#buffer.subarray(0, this.#size);
  }

  read(target: Uint8Array, offset: number): void {
    checkRange(offset, target.length, this.#size);
    target.set(this.#buffer.subarray(offset, offset + target.length));
  }

  write(source: Uint8Array, offset: number): void {
    this.#growTo(offset, source.length);
    if (source.length > 0) this.#buffer.set(source, offset);
  }

  writeParts(parts: readonly Uint8Array[], offset: number): void {
    let at = offset;
    for (const part of parts) {
      this.write(part, at);
      at += part.length;
    }
  }

  writeZeroes(offset: number, length: number, _options?: WriteZeroesOptions): void {
    this.#growTo(offset, length);
    this.#buffer.fill(0, offset, offset + length);
  }

  discard(offset: number, length: number): void {
    // As a hole in a file would read.
    checkRange(offset, length, this.#size);
    this.#buffer.fill(0, offset, offset + length);
  }

  resize(size: number): void {
    if (size > this.#size) this.#growTo(0, size);
    this.#buffer.fill(0, size, this.#size);
    this.#size = size;
  }

  flush(): void {
    // Memory survives nothing; there is nothing to wait for.
  }

  *extents(offset: number, length: number): Generator<Extent> {
    checkRange(offset, length, this.#size);
    if (length === 0) return;
    yield { offset, length, kind: 'data', zero: false, present: true, depth: 0 };
  }

  close(): void {
    // The content goes with the object.
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #growTo(offset: number, length: number): void {
    checkRange(offset, length, Number.MAX_SAFE_INTEGER);
    const end = length === 0 ? 0 : offset + length;
    if (end > this.#buffer.length) {
      const larger = new Uint8Array(Math.max(end, this.#buffer.length * 2));
      larger.set(this.#buffer.subarray(0, this.#size));
      this.#buffer = larger;
    }
    this.#size = Math.max(this.#size, end);
  }
}

/** A device of `size` bytes that are all zero and allocated nowhere. */
export class NullDevice extends ReadOnlyDevice {
  readonly size: number;

  constructor(size: number) {
    super();
    this.size = size;
  }

  override read(target: Uint8Array, offset: number): void {
    checkRange(offset, target.length, this.size);
    target.fill(0);
  }

  override *extents(offset: number, length: number): Generator<Extent> {
    checkRange(offset, length, this.size);
    if (length === 0) return;
    yield { offset, length, kind: 'hole', zero: true, present: false, depth: 0 };
  }

  override close(): void {
    // Holds nothing.
  }
}
