/**
 * A device whose size is rounded up to sectors of 512 bytes, as QEMU rounds that of raw images:
 * the bytes of the last, incomplete sector that the file does not have are zeroes.
 */

import { checkRange, mergeExtents, ReadOnlyDevice } from '../device/block-device.ts';
import type { BlockDevice, Extent, HostRange } from '../device/block-device.ts';
import { alignUp } from '../util/bytes.ts';

/** Bytes of a sector. */
export const SECTOR_BYTES = 512;

/** `device` itself, or a read-only view of it that ends with its last sector. Closing is not passed on. */
export function padToSector(device: BlockDevice): BlockDevice {
  return device.size % SECTOR_BYTES === 0 ? device : new SectorPaddedDevice(device);
}

class SectorPaddedDevice extends ReadOnlyDevice {
  readonly size: number;
  readonly #inner: BlockDevice;

  constructor(inner: BlockDevice) {
    super();
    this.#inner = inner;
    this.size = alignUp(inner.size, SECTOR_BYTES);
  }

  override read(target: Uint8Array, offset: number): void {
    checkRange(offset, target.length, this.size);
    const inside = Math.max(0, Math.min(target.length, this.#inner.size - offset));
    if (inside > 0) this.#inner.read(target.subarray(0, inside), offset);
    target.fill(0, inside);
  }

  override extents(offset: number, length: number): Iterable<Extent> {
    checkRange(offset, length, this.size);
    return mergeExtents(this.#paddedExtents(offset, offset + length));
  }

  hostRange(offset: number, length: number): HostRange | undefined {
    checkRange(offset, length, this.size);
    const isInside = offset + length <= this.#inner.size;
    return isInside ? this.#inner.hostRange?.(offset, length) : undefined;
  }

  override close(): void {
    // The inner device is not ours to close.
  }

  *#paddedExtents(offset: number, end: number): Generator<Extent> {
    const innerEnd = Math.min(end, this.#inner.size);
    let hostFile: string | undefined;
    if (offset < innerEnd) {
      for (const extent of this.#inner.extents(offset, innerEnd - offset)) {
        ({ hostFile } = extent);
        yield extent;
      }
    }
    const start = Math.max(offset, innerEnd);
    if (start >= end) return;
    const padding = { offset: start, length: end - start };
    yield {
      ...padding,
      kind: 'zero',
      zero: true,
      present: true,
      depth: 0,
      hostOffset: start,
      hostFile,
    };
  }
}
