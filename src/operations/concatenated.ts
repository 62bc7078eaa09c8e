/** Several devices one behind the other, each rounded up to sectors of 512 bytes. Only for reading. */

import { checkRange, ReadOnlyDevice } from '../device/block-device.ts';
import type { BlockDevice, Extent, HostRange } from '../device/block-device.ts';
import { padToSector } from './sector-padded.ts';

/** One of the devices, and where it starts. */
interface Part {
  start: number;
  device: BlockDevice;
}

/** See the head of this file. Closing it closes nothing: the devices belong to others. */
export class ConcatenatedDevice extends ReadOnlyDevice {
  /** Bytes, a multiple of 512. */
  readonly size: number;
  readonly #parts: Part[] = [];

  constructor(devices: readonly BlockDevice[]) {
    super();
    let start = 0;
    for (const each of devices) {
      const device = padToSector(each);
      this.#parts.push({ start, device });
      start += device.size;
    }
    this.size = start;
  }

  override read(target: Uint8Array, offset: number): void {
    checkRange(offset, target.length, this.size);
    for (const { start, device } of this.#parts) {
      const from = Math.max(offset, start);
      const to = Math.min(offset + target.length, start + device.size);
      if (from < to) device.read(target.subarray(from - offset, to - offset), from - start);
    }
  }

  override *extents(offset: number, length: number): Generator<Extent> {
    checkRange(offset, length, this.size);
    for (const { start, device } of this.#parts) {
      const from = Math.max(offset, start);
      const to = Math.min(offset + length, start + device.size);
      if (from >= to) continue;
      for (const extent of device.extents(from - start, to - from)) {
        yield { ...extent, offset: extent.offset + start };
      }
    }
  }

  hostRange(offset: number, length: number): HostRange | undefined {
    checkRange(offset, length, this.size);
    for (const { start, device } of this.#parts) {
      const from = offset - start;
      if (from >= 0 && from + length <= device.size) return device.hostRange?.(from, length);
    }
    return undefined;
  }

  override close(): void {
    // The devices are not ours to close.
  }
}
