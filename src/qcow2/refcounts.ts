/** Refcounts as a block holds them, and reading those of an image (specification: "Host cluster management"). */

import type { BlockDevice } from '../device/block-device.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import { entryOffset } from '../format/qcow2/l2-entry.ts';
import { assert } from '../util/assert.ts';
import { readU16, readU32, TWO_32, writeU16, writeU32, writeU64 } from '../util/bytes.ts';

/** Reads the refcounts of an image, a block at a time. */
export class RefcountReader {
  readonly #header: Qcow2Header;
  readonly #file: BlockDevice;
  /** Refcounts in a block. */
  readonly #blockEntries: number;
  #block: Uint8Array | undefined;
  #blockIndex = -1;

  constructor(header: Qcow2Header, file: BlockDevice) {
    this.#header = header;
    this.#file = file;
    this.#blockEntries = (header.clusterSize * 8) / 2 ** header.refcountOrder;
  }

  /** Whether the host cluster of that index is counted at all; clusters without a block are not. */
  isUsed(clusterIndex: number): boolean {
    const blockIndex = Math.floor(clusterIndex / this.#blockEntries);
    if (blockIndex !== this.#blockIndex) this.#load(blockIndex);
    if (this.#block === undefined) return false;
    return (
      refcountAt(this.#block, clusterIndex % this.#blockEntries, this.#header.refcountOrder) !== 0
    );
  }

  #load(blockIndex: number): void {
    this.#blockIndex = blockIndex;
    this.#block = undefined;
    const { refcountTableOffset, refcountTableClusters, clusterSize } = this.#header;
    if (blockIndex >= (refcountTableClusters * clusterSize) / 8) return;
    const entry = new Uint8Array(8);
    if (!this.#readWithin(entry, refcountTableOffset + blockIndex * 8)) return;
    const offset = entryOffset(readU32(entry, 0), readU32(entry, 4));
    const block = new Uint8Array(clusterSize);
    if (offset !== 0 && this.#readWithin(block, offset)) this.#block = block;
  }

  #readWithin(target: Uint8Array, offset: number): boolean {
    if (offset + target.length > this.#file.size) return false;
    this.#file.read(target, offset);
    return true;
  }
}

/**
 * The refcount at `index` of a refcount block. Counts narrower than a byte start at its lowest
 * bits; wider ones are big-endian. Counts above 2^53 are rounded.
 */
export function refcountAt(block: Uint8Array, index: number, order: number): number {
  switch (order) {
    case 3:
      return block[index]!;
    case 4:
      return readU16(block, 2 * index);
    case 5:
      return readU32(block, 4 * index);
    case 6:
      return readU32(block, 8 * index) * TWO_32 + readU32(block, 8 * index + 4);
    default: {
      const bits = 2 ** order;
      const bit = index * bits;
      return (block[bit >>> 3]! >>> (bit & 7)) & (2 ** bits - 1);
    }
  }
}

/** The highest count of an order that is told exactly: below 2^53, which no cluster's is near to. */
export function maxRefcount(order: number): number {
  return order === 6 ? Number.MAX_SAFE_INTEGER : 2 ** (2 ** order) - 1;
}

/**
 * Sets the refcount at `index` of a refcount block, as {@link refcountAt} reads it.
 *
 * @param count 0 to {@link maxRefcount} of the order
 */
export function setRefcountAt(
  block: Uint8Array,
  index: number,
  order: number,
  count: number,
): void {
  assert(count >= 0 && count <= maxRefcount(order), 'a refcount fits into its bits');
  switch (order) {
    case 3:
      block[index] = count;
      return;
    case 4:
      writeU16(block, 2 * index, count);
      return;
    case 5:
      writeU32(block, 4 * index, count);
      return;
    case 6:
      writeU64(block, 8 * index, count);
      return;
    default: {
      const bits = 2 ** order;
      const bit = index * bits;
      const shift = bit & 7;
      const kept = block[bit >>> 3]! & ~((2 ** bits - 1) << shift);
      block[bit >>> 3] = kept | (count << shift);
    }
  }
}
