/**
 * A device rounded up to whole sectors with zeroes, as qemu-nbd does it.
 *
 * Clients count in sectors of 512 bytes. QEMU's, when replies are simple, asks for the bytes of
 * the last sector that exist and then waits for all 512; Linux leaves the part sector out.
 */

import { checkRange, ReadOnlyDevice } from '../../device/block-device.ts';
import type { BlockDevice, Extent, HostRange } from '../../device/block-device.ts';
import { alignUp } from '../../util/bytes.ts';

const SECTOR_BYTES = 512;

/** `device` itself if it ends with a whole sector, or a view of it that does. */
export function padToSector(device: BlockDevice): BlockDevice {
  return device.size % SECTOR_BYTES === 0 ? device : new PaddedDevice(device);
}

class PaddedDevice extends ReadOnlyDevice {
  readonly size: number;
  readonly #device: BlockDevice;

  constructor(device: BlockDevice) {
    super();
    this.#device = device;
    this.size = alignUp(device.size, SECTOR_BYTES);
  }

  override read(target: Uint8Array, offset: number): void {
    checkRange(offset, target.length, this.size);
    const present = Math.max(0, Math.min(target.length, this.#device.size - offset));
    if (present > 0) this.#device.read(target.subarray(0, present), offset);
    target.fill(0, present);
  }

  override *extents(offset: number, length: number): Generator<Extent> {
    checkRange(offset, length, this.size);
    const end = offset + length;
    const { size } = this.#device;
    if (offset < size) yield* this.#device.extents(offset, Math.min(end, size) - offset);
    const start = Math.max(offset, size);
    if (start >= end) return;
    yield {
      offset: start,
      length: end - start,
      kind: 'zero',
      zero: true,
      present: true,
      depth: 0,
    };
  }

  hostRange(offset: number, length: number): HostRange | undefined {
    checkRange(offset, length, this.size);
    const isWhole = offset + length <= this.#device.size;
    return isWhole ? this.#device.hostRange?.(offset, length) : undefined;
  }

  override close(): void {
    this.#device.close();
  }
}
