/**
 * Reading metadata for a check: past the end of the file there are zeroes, and the work is bounded.
 *
 * Tables of a sound image do not overlap, so that all of them together are smaller than the file.
 * A hostile one could have its tables overlap and be read over and over again; that is stopped.
 */

import type { BlockDevice } from '../../device/block-device.ts';
import { Qcow2Error } from '../../errors.ts';
import { alignUp } from '../../util/bytes.ts';

/** Bytes that may be read of any image, however small. */
const MIN_BUDGET_BYTES = 64 * 1024 * 1024;
/** How often all of the file may be read on average. */
const MAX_PASSES = 8;

const IS_LITTLE_ENDIAN = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

/** An image's file as a check reads it. */
export class MetadataFile {
  /** Bytes, rounded up to whole sectors. */
  readonly size: number;
  readonly #file: BlockDevice;
  #budget: number;

  constructor(file: BlockDevice) {
    this.#file = file;
    this.size = alignUp(file.size, 512);
    this.#budget = Math.max(MIN_BUDGET_BYTES, MAX_PASSES * file.size);
  }

  /**
   * Fills `target` from `offset`, with zeroes past the end of the file.
   * @throws {Qcow2Error} `CORRUPT` if tables overlap so much that checking would not end
   */
  read(target: Uint8Array, offset: number, structure: string): void {
    const available = Math.max(0, Math.min(target.length, this.#file.size - offset));
    this.spend(available, offset, structure);
    if (available > 0) {
      this.#file.read(available === target.length ? target : target.subarray(0, available), offset);
    }
    if (available < target.length) target.fill(0, available);
  }

  /** Like {@link read}, as big-endian 32-bit words: two an 8-byte entry, the high half first. */
  readWords(target: Buffer, offset: number, structure: string): Uint32Array {
    this.read(target, offset, structure);
    if (IS_LITTLE_ENDIAN) target.swap32();
    return new Uint32Array(target.buffer, target.byteOffset, target.length / 4);
  }

  /**
   * Accounts for work on `bytes` of a table.
   * @throws {Qcow2Error} `CORRUPT` if it has become too much
   */
  spend(bytes: number, offset: number, structure: string): void {
    this.#budget -= bytes;
    if (this.#budget >= 0) return;
    throw new Qcow2Error('CORRUPT', 'tables overlap so much that checking would not end', {
      structure,
      offset,
    });
  }
}

/** A buffer for tables; a pool could hand out one that is not aligned to words. */
export function tableBuffer(length: number): Buffer {
  return Buffer.from(new ArrayBuffer(length));
}
