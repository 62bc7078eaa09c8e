/**
 * A device rounded up to whole sectors with zeroes, as qemu-nbd does it.
 *
 * Clients count in sectors of 512 bytes. QEMU's, when replies are simple, asks for the bytes of
 * the last sector that exist and then waits for all 512; Linux leaves the part sector out.
 */

import { checkRange } from '../../device/block-device.ts';
import type {
  BlockDevice,
  Extent,
  HostRange,
  WriteZeroesOptions,
} from '../../device/block-device.ts';
import { Qcow2Error } from '../../errors.ts';
import { alignUp, isAllZero } from '../../util/bytes.ts';

const SECTOR_BYTES = 512;

/** `device` itself if it ends with a whole sector, or a view of it that does. */
export function padToSector(device: BlockDevice): BlockDevice {
  return device.size % SECTOR_BYTES === 0 ? device : new PaddedDevice(device);
}

/** What lies past the end of the device stays zero: only zeroes can be written there. */
class PaddedDevice implements BlockDevice {
  readonly #device: BlockDevice;

  constructor(device: BlockDevice) {
    this.#device = device;
  }

  /** Asked for each time: the device may be given another size. */
  get size(): number {
    return alignUp(this.#device.size, SECTOR_BYTES);
  }

  read(target: Uint8Array, offset: number): void {
    checkRange(offset, target.length, this.size);
    const present = this.#presentLength(offset, target.length);
    if (present > 0) this.#device.read(target.subarray(0, present), offset);
    target.fill(0, present);
  }

  get readOnly(): boolean {
    return this.#device.readOnly;
  }

  get zeroesFast(): boolean {
    return this.#device.zeroesFast === true;
  }

  write(source: Uint8Array, offset: number): void {
    checkRange(offset, source.length, this.size);
    const present = this.#presentLength(offset, source.length);
    if (!isAllZero(source.subarray(present))) {
      throw new Qcow2Error('OUT_OF_RANGE', 'the disk ends in the middle of its last sector');
    }
    if (present > 0) this.#device.write(source.subarray(0, present), offset);
  }

  writeZeroes(offset: number, length: number, options?: WriteZeroesOptions): void {
    checkRange(offset, length, this.size);
    const present = this.#presentLength(offset, length);
    if (present > 0) this.#device.writeZeroes(offset, present, options);
  }

  discard(offset: number, length: number): void {
    checkRange(offset, length, this.size);
    const present = this.#presentLength(offset, length);
    if (present > 0) this.#device.discard(offset, present);
  }

  flush(): void {
    this.#device.flush();
  }

  *extents(offset: number, length: number): Generator<Extent> {
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

  close(): void {
    this.#device.close();
  }
  [Symbol.dispose](): void {
    this.close();
  }

  /** How much of a range is before the end of the device. */
  #presentLength(offset: number, length: number): number {
    return Math.max(0, Math.min(length, this.#device.size - offset));
  }
}
