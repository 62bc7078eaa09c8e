/** Devices without a file: a memory buffer, and one that is all zeroes. */

import { checkRange, ReadOnlyDevice } from './block-device.ts';
import type { BlockDevice, Extent, WriteZeroesOptions } from './block-device.ts';

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
