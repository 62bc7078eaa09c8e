/**
 * The metadata cache: slices of L1 and L2 tables, least recently used ones dropped.
 *
 * Tables are cached by slices of at most 4 KiB rather than whole, so that a random read in a large
 * image costs one small host read and memory stays within the budget whatever the image's size.
 * A slice is kept as 32-bit words in the host's byte order, swapped once when it is read: looking
 * an entry up is then two array reads and no allocation.
 */

import type { BlockDevice } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import { TWO_32 } from '../util/bytes.ts';

/** Largest slice in bytes. */
const MAX_SLICE_BYTES = 4096;

const IS_LITTLE_ENDIAN = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

/** The host offset of a slice that holds nothing. */
const NOT_LOADED = -1;

interface Slice {
  bytes: Buffer;
  /** The same memory as words. */
  words: Uint32Array;
  /** Looked at since the clock hand last passed. */
  isRecent: boolean;
  hostOffset: number;
}

/** Sizes of a {@link TableCache}. */
export interface TableCacheOptions {
  clusterSize: number;
  /** Most bytes of slices to keep; at least two slices are. */
  budgetBytes: number;
}

/** What a table is, for the error when it is cut short by the end of the file. */
export type TableName = 'L1 table' | 'L2 table';

/** A cache of table slices of one host file. */
export class TableCache {
  /** Bytes of a slice; a power of two that divides the cluster size. */
  readonly sliceBytes: number;
  readonly #file: BlockDevice;
  readonly #capacity: number;
  readonly #slices = new Map<number, Slice>();
  /** The slices in the order that the clock hand visits them. */
  readonly #clock: Slice[] = [];
  #hand = 0;

  constructor(file: BlockDevice, { clusterSize, budgetBytes }: TableCacheOptions) {
    this.#file = file;
    this.sliceBytes = Math.min(clusterSize, MAX_SLICE_BYTES);
    this.#capacity = Math.max(2, Math.floor(budgetBytes / this.sliceBytes));
  }

  /**
   * The 32-bit words of the slice at `hostOffset`, two an 8-byte entry, the high half first. They
   * are valid until the next call.
   *
   * @param hostOffset a multiple of `sliceBytes`
   * @param tableEnd where the table that the slice belongs to ends; the file must not end before it
   * @throws {Qcow2Error} `TRUNCATED` if the file ends before the slice or the table does
   */
  slice(hostOffset: number, tableEnd: number, table: TableName): Uint32Array {
    const cached = this.#slices.get(hostOffset);
    if (cached !== undefined) {
      cached.isRecent = true;
      return cached.words;
    }
    const needed = Math.min(this.sliceBytes, tableEnd - hostOffset);
    if (hostOffset + needed > this.#file.size) {
      throw new Qcow2Error('TRUNCATED', 'the file ends before it does', {
        structure: table,
        offset: hostOffset,
      });
    }
    const slice = this.#takeSlice();
    // A slice whose read fails stays in the clock, but is not found.
    this.#load(slice, hostOffset);
    slice.hostOffset = hostOffset;
    slice.isRecent = true;
    this.#slices.set(hostOffset, slice);
    return slice.words;
  }

  #load({ bytes }: Slice, hostOffset: number): void {
    // The whole slice, past the end of a short L1 table too: in a damaged image, the same slice can
    // be part of an L2 table.
    const length = Math.min(this.sliceBytes, this.#file.size - hostOffset);
    this.#file.read(bytes.subarray(0, length), hostOffset);
    bytes.fill(0, length);
    if (IS_LITTLE_ENDIAN) bytes.swap32();
  }

  /** A slice to read into: a new one, or the first that was not looked at for a whole round. */
  #takeSlice(): Slice {
    if (this.#clock.length < this.#capacity) {
      const bytes = Buffer.alloc(this.sliceBytes);
      const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
      const slice: Slice = { bytes, words, isRecent: false, hostOffset: NOT_LOADED };
      this.#clock.push(slice);
      return slice;
    }
    for (;;) {
      const candidate = this.#clock[this.#hand]!;
      this.#hand = (this.#hand + 1) % this.#capacity;
      if (!candidate.isRecent) {
        this.#slices.delete(candidate.hostOffset);
        candidate.hostOffset = NOT_LOADED;
        return candidate;
      }
      candidate.isRecent = false;
    }
  }
}

/** An entry's value for a message. */
export function formatEntry(high: number, low: number): string {
  return `0x${(BigInt(high >>> 0) * BigInt(TWO_32) + BigInt(low >>> 0)).toString(16)}`;
}
