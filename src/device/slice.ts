/** A part of another device, as a partition is. */

import { checkRange } from './block-device.ts';
import type { BlockDevice, Extent, HostRange, WriteZeroesOptions } from './block-device.ts';

/** Which part of a device a {@link SliceDevice} shows. */
export interface SliceRange {
  /** First byte of the part, in the parent's offsets. */
  offset: number;
  /** Bytes. */
  length: number;
}

/** A window on a parent device. Closing it leaves the parent open. */
export class SliceDevice implements BlockDevice {
  readonly size: number;
  /** First byte of the window, in the parent's offsets. */
  readonly start: number;
  readonly #parent: BlockDevice;

  /** @throws {Qcow2Error} `OUT_OF_RANGE` if the part does not lie within `parent` */
  constructor(parent: BlockDevice, { offset, length }: SliceRange) {
    checkRange(offset, length, parent.size);
    this.#parent = parent;
    this.start = offset;
    this.size = length;
  }

  get readOnly(): boolean {
    return this.#parent.readOnly;
  }

  get zeroesFast(): boolean {
    return this.#parent.zeroesFast === true;
  }

  read(target: Uint8Array, offset: number): void {
    checkRange(offset, target.length, this.size);
    this.#parent.read(target, this.start + offset);
  }

  write(source: Uint8Array, offset: number): void {
    checkRange(offset, source.length, this.size);
    this.#parent.write(source, this.start + offset);
  }

  writeZeroes(offset: number, length: number, options?: WriteZeroesOptions): void {
    checkRange(offset, length, this.size);
    this.#parent.writeZeroes(this.start + offset, length, options);
  }

  discard(offset: number, length: number): void {
    checkRange(offset, length, this.size);
    this.#parent.discard(this.start + offset, length);
  }

  flush(): void {
    this.#parent.flush();
  }

  *extents(offset: number, length: number): Generator<Extent> {
    checkRange(offset, length, this.size);
    for (const extent of this.#parent.extents(this.start + offset, length)) {
      yield { ...extent, offset: extent.offset - this.start };
    }
  }

  hostRange(offset: number, length: number): HostRange | undefined {
    checkRange(offset, length, this.size);
    return this.#parent.hostRange?.(this.start + offset, length);
  }

  close(): void {
    // The parent is not ours to close.
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
