/**
 * The refcounts of an image that is being written, and the search for free clusters
 * (specification: "Host cluster management").
 *
 * Counts change in memory first; `commit.ts` decides when they reach the file. What has to be in
 * the file before something else points at it is put there at once: the zeroes of a new refcount
 * block. The block is then found through the table in memory, and its entry of the table in the
 * file is written by the commit, as is a table that grew and therefore moved.
 */

import type { HostFile } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import { MAX_HOST_OFFSET, MAX_REFCOUNT_TABLE_BYTES } from '../limits.ts';
import { assert } from '../util/assert.ts';
import { readU32, TWO_32, writeU64 } from '../util/bytes.ts';
import type { MetadataMap } from './metadata-map.ts';
import { refcountAt, setRefcountAt } from './refcounts.ts';
import { TableCache } from './table-cache.ts';

/** What a {@link RefcountStore} works on. */
export interface RefcountStoreParts {
  header: Qcow2Header;
  file: HostFile;
  metadata: MetadataMap;
  /** Bytes of refcount blocks to keep in memory. */
  budgetBytes: number;
}

/** A run of host clusters. */
export interface ClusterRun {
  /** Host offset of the first. */
  offset: number;
  /** Clusters; at least 1. */
  count: number;
}

/** Where a refcount table is. */
export interface RefcountTableLocation {
  offset: number;
  clusters: number;
}

/** Reads and changes refcounts, and allocates clusters that have none. */
export class RefcountStore {
  /** The highest count; above 2^53 it could not be told exactly, and nothing is ever that shared. */
  readonly maxRefcount: number;
  /** Refcounts in a block. */
  readonly blockEntries: number;
  readonly blocks: TableCache;
  /** Whether counts were raised that are not in the file; the commit resets it. */
  hasRaised = false;
  readonly #header: Qcow2Header;
  readonly #file: HostFile;
  readonly #metadata: MetadataMap;
  readonly #sliceEntries: number;
  /** Host offsets of the blocks; 0 for none. */
  #table: Float64Array;
  /** Entries that the table in the file does not have yet. */
  readonly #dirtyEntries = new Set<number>();
  /** Where the table will be once the commit has written it there. */
  #movedTable: RefcountTableLocation | undefined;
  /** No cluster below this one is free. */
  #searchFrom = 1;

  /** @throws {Qcow2Error} `CORRUPT` if the refcount table cannot be right */
  constructor({ header, file, metadata, budgetBytes }: RefcountStoreParts) {
    const { clusterSize, refcountOrder } = header;
    this.#header = header;
    this.#file = file;
    this.#metadata = metadata;
    this.maxRefcount = Math.min(2 ** (2 ** refcountOrder) - 1, Number.MAX_SAFE_INTEGER);
    this.blockEntries = (clusterSize * 8) / 2 ** refcountOrder;
    this.blocks = new TableCache(file, { clusterSize, budgetBytes, order: 'bytes' });
    this.#sliceEntries = (this.blocks.sliceBytes * 8) / 2 ** refcountOrder;
    this.#table = readTable(header, file);
    this.#table.forEach((offset) => {
      if (offset !== 0) metadata.add({ offset, length: clusterSize, kind: 'refcount block' });
    });
  }

  /** The count of a cluster. */
  get(cluster: number): number {
    const blockIndex = Math.floor(cluster / this.blockEntries);
    const blockOffset = this.#table[blockIndex] ?? 0;
    if (blockOffset === 0) return 0;
    const inBlock = cluster - blockIndex * this.blockEntries;
    const { bytes } = this.#slice(blockOffset, inBlock, 'read');
    return refcountAt(bytes, inBlock % this.#sliceEntries, this.#header.refcountOrder);
  }

  /**
   * Changes the count of a cluster that has a block.
   * @throws {Qcow2Error} `UNSUPPORTED` if the count does not fit; `CORRUPT` if it would be negative
   */
  add(cluster: number, change: number): number {
    const count = this.get(cluster) + change;
    if (count < 0) {
      throw new Qcow2Error('CORRUPT', 'a cluster that is not counted was in use', {
        structure: 'refcount',
        offset: cluster * this.#header.clusterSize,
        hint: 'repair the image with: qcow2 check -r all',
      });
    }
    if (count > this.maxRefcount) throw overflowError(this.#header);
    this.#set(cluster, count);
    return count;
  }

  /**
   * Allocates up to `maxClusters` neighbouring clusters, each with a count of one.
   * @throws {Qcow2Error} `HOST`; `TOO_LARGE` if the image cannot grow; `CORRUPT`
   */
  allocateRun(maxClusters: number): ClusterRun {
    for (;;) {
      const first = this.#findFree(this.#searchFrom);
      if (!this.#hasBlock(first)) {
        this.#createBlock(Math.floor(first / this.blockEntries));
        continue;
      }
      let count = 1;
      while (
        count < maxClusters &&
        this.#hasBlock(first + count) &&
        this.get(first + count) === 0
      ) {
        count++;
      }
      this.#searchFrom = first;
      return this.#take(first, count);
    }
  }

  /**
   * Allocates exactly `count` neighbouring clusters.
   * @returns the host offset of the first
   * @throws {Qcow2Error} as {@link allocateRun}
   */
  allocateContiguous(count: number): number {
    for (let from = this.#searchFrom; ;) {
      const first = this.#findFree(from);
      let found = 1;
      while (found < count && this.get(first + found) === 0) found++;
      if (found < count) {
        from = first + found;
        continue;
      }
      const missing = this.#firstMissingBlock(first, count);
      if (missing === undefined) return this.#take(first, count).offset;
      this.#createBlock(missing);
    }
  }

  /** Takes back clusters that nothing points at, and nothing in the file ever did. */
  release({ offset, count }: ClusterRun): void {
    const first = offset / this.#header.clusterSize;
    for (let cluster = first; cluster < first + count; cluster++) this.#set(cluster, 0);
    this.noteFree(first);
  }

  /** Tells the search that a cluster may have become free. */
  noteFree(cluster: number): void {
    this.#searchFrom = Math.min(this.#searchFrom, Math.max(1, cluster));
  }

  // ---- For the commit -----------------------------------------------------------------------

  /** Whether the table in the file lacks blocks. */
  get isTableDirty(): boolean {
    return this.#dirtyEntries.size > 0 || this.#movedTable !== undefined;
  }

  /**
   * Writes entries of new blocks, or all of a table that moved; the blocks are in the file. A block
   * that is counted by another new one has to wait until that one's entry is durable, so the caller
   * flushes, calls {@link markTableWritten}, and goes on until {@link isTableDirty} is false.
   * @returns where the table is now, if the header has to say so
   */
  writeTable(): RefcountTableLocation | undefined {
    if (this.#movedTable !== undefined) {
      this.#file.write(encodeTable(this.#table), this.#movedTable.offset);
      return this.#movedTable;
    }
    for (const index of this.#writableEntries()) {
      const entry = encodeTable(this.#table.subarray(index, index + 1));
      this.#file.write(entry, this.#header.refcountTableOffset + index * 8);
    }
    return undefined;
  }

  /** Counts what {@link writeTable} wrote as written. */
  markTableWritten(): void {
    if (this.#movedTable !== undefined) this.#dirtyEntries.clear();
    for (const index of this.#writableEntries()) this.#dirtyEntries.delete(index);
    this.#movedTable = undefined;
  }

  /** New blocks that are counted by themselves, or by one that the table in the file has. */
  #writableEntries(): number[] {
    return [...this.#dirtyEntries].filter((index) => {
      const cluster = this.#table[index]! / this.#header.clusterSize;
      const owner = Math.floor(cluster / this.blockEntries);
      return owner === index || !this.#dirtyEntries.has(owner);
    });
  }

  // ---- For atomic updates -------------------------------------------------------------------

  /** Host offset of a block; 0 if there is none. */
  blockOffset(index: number): number {
    return this.#table[index] ?? 0;
  }

  /** Clusters that the table occupies. */
  get tableClusters(): number {
    return (this.#table.length * 8) / this.#header.clusterSize;
  }

  /** The bytes of the table with some blocks in other places. */
  encodeTableWith(moved: ReadonlyMap<number, number>): Uint8Array {
    const table = this.#table.slice();
    for (const [index, offset] of moved) table[index] = offset;
    return encodeTable(table);
  }

  /**
   * Goes over to blocks in other places, which the table in the file already names. Clusters that
   * they count as free are found after {@link noteFree}.
   */
  adoptBlocks(moved: ReadonlyMap<number, number>): void {
    const { clusterSize } = this.#header;
    for (const [index, offset] of moved) {
      const old = this.#table[index]!;
      this.#table[index] = offset;
      this.blocks.drop(old, clusterSize);
      this.blocks.drop(offset, clusterSize);
      this.#metadata.remove({ offset: old, length: clusterSize });
      this.#metadata.add({ offset, length: clusterSize, kind: 'refcount block' });
    }
  }

  // ---- Blocks and counts --------------------------------------------------------------------

  #slice(blockOffset: number, inBlock: number, use: 'read' | 'change') {
    const { sliceBytes } = this.blocks;
    const offset = blockOffset + Math.floor(inBlock / this.#sliceEntries) * sliceBytes;
    const end = blockOffset + this.#header.clusterSize;
    return use === 'read'
      ? this.blocks.load(offset, end, 'refcount block')
      : this.blocks.modify(offset, end, 'refcount block');
  }

  #set(cluster: number, count: number): void {
    const blockIndex = Math.floor(cluster / this.blockEntries);
    const blockOffset = this.#table[blockIndex] ?? 0;
    assert(blockOffset !== 0, 'only clusters that have a refcount block are counted');
    const inBlock = cluster - blockIndex * this.blockEntries;
    const { bytes } = this.#slice(blockOffset, inBlock, 'change');
    if (count > 0) this.hasRaised = true;
    setRefcountAt(bytes, inBlock % this.#sliceEntries, this.#header.refcountOrder, count);
  }

  #hasBlock(cluster: number): boolean {
    return (this.#table[Math.floor(cluster / this.blockEntries)] ?? 0) !== 0;
  }

  #firstMissingBlock(first: number, count: number): number | undefined {
    const last = Math.floor((first + count - 1) / this.blockEntries);
    for (let index = Math.floor(first / this.blockEntries); index <= last; index++) {
      if ((this.#table[index] ?? 0) === 0) return index;
    }
    return undefined;
  }

  /** The first cluster from `from` on that is not in use; it may have no block yet. */
  #findFree(from: number): number {
    const { refcountOrder } = this.#header;
    for (let cluster = from; ;) {
      const blockIndex = Math.floor(cluster / this.blockEntries);
      const blockOffset = this.#table[blockIndex] ?? 0;
      if (blockOffset === 0) return cluster;
      const inBlock = cluster - blockIndex * this.blockEntries;
      const start = inBlock % this.#sliceEntries;
      const { bytes } = this.#slice(blockOffset, inBlock, 'read');
      const found = firstUnused(bytes, start, this.#sliceEntries, refcountOrder);
      if (found < this.#sliceEntries) return cluster + found - start;
      cluster += this.#sliceEntries - start;
    }
  }

  #take(first: number, count: number): ClusterRun {
    const { clusterSize } = this.#header;
    const run = { offset: first * clusterSize, count };
    if (run.offset + count * clusterSize > Math.min(MAX_HOST_OFFSET, Number.MAX_SAFE_INTEGER)) {
      throw fullError(this.#header);
    }
    // A cluster of metadata that is not counted would be overwritten.
    this.#metadata.checkClear(run.offset, count * clusterSize, 'new cluster');
    for (let cluster = first; cluster < first + count; cluster++) {
      try {
        this.#set(cluster, 1);
      } catch (error) {
        this.release({ offset: run.offset, count: cluster - first });
        throw error;
      }
    }
    if (this.#searchFrom === first) this.#searchFrom = first + count;
    return run;
  }

  /** Makes a refcount block, in a cluster that it counts itself if no other block has room. */
  #createBlock(index: number): void {
    if (index >= this.#table.length) this.#growTable(index);
    if (this.#table[index] !== 0) return;
    const { clusterSize } = this.#header;
    const cluster = this.#findFree(this.#searchFrom);
    const owner = Math.floor(cluster / this.blockEntries);
    if (owner !== index && !this.#hasBlock(cluster)) {
      this.#createBlock(owner);
      this.#createBlock(index);
      return;
    }
    const offset = cluster * clusterSize;
    if (offset > MAX_HOST_OFFSET - clusterSize) throw fullError(this.#header);
    this.#metadata.checkClear(offset, clusterSize, 'new refcount block');
    this.#file.writeZeroes(offset, clusterSize);
    this.blocks.drop(offset, clusterSize);
    this.#table[index] = offset;
    try {
      this.#set(cluster, 1);
    } catch (error) {
      this.#table[index] = 0;
      throw error;
    }
    this.#metadata.add({ offset, length: clusterSize, kind: 'refcount block' });
    this.#dirtyEntries.add(index);
  }

  /** Makes room for a block of that index in the table, which moves to another place. */
  #growTable(index: number): void {
    const { clusterSize } = this.#header;
    const needed = Math.ceil(((index + 1) * 8) / clusterSize);
    const most = Math.floor(MAX_REFCOUNT_TABLE_BYTES / clusterSize);
    if (needed > most) throw fullError(this.#header);
    const before = this.#table;
    const clusters = Math.min(most, Math.max(needed, Math.ceil(this.tableClusters * 1.5)));
    const grown = new Float64Array((clusters * clusterSize) / 8);
    grown.set(before);
    this.#table = grown;
    try {
      const offset = this.allocateContiguous(clusters);
      // The blocks that were made for it may have grown the table once more.
      if (this.tableClusters !== clusters) {
        this.release({ offset, count: clusters });
        return;
      }
      this.blocks.drop(offset, clusters * clusterSize);
      if (this.#movedTable !== undefined) this.#releaseTable(this.#movedTable);
      this.#metadata.add({ offset, length: clusters * clusterSize, kind: 'refcount table' });
      this.#movedTable = { offset, clusters };
    } catch (error) {
      // If the blocks that were made for it have grown the table, that has a place.
      if (this.#table === grown) {
        this.#forgetBlocksFrom(before.length);
        this.#table = before;
      }
      throw error;
    }
  }

  #releaseTable({ offset, clusters }: RefcountTableLocation): void {
    this.#metadata.remove({ offset, length: clusters * this.#header.clusterSize });
    this.release({ offset, count: clusters });
  }

  /** Drops blocks that only a table which could not be made would have named. */
  #forgetBlocksFrom(length: number): void {
    const { clusterSize } = this.#header;
    for (let index = length; index < this.#table.length; index++) {
      const offset = this.#table[index]!;
      if (offset === 0) continue;
      this.blocks.drop(offset, clusterSize);
      this.#metadata.remove({ offset, length: clusterSize });
      this.#dirtyEntries.delete(index);
    }
  }
}

function readTable(header: Qcow2Header, file: HostFile): Float64Array {
  const { refcountTableOffset, refcountTableClusters, clusterSize } = header;
  const bytes = new Uint8Array(refcountTableClusters * clusterSize);
  file.read(bytes, refcountTableOffset);
  const table = new Float64Array(bytes.length / 8);
  for (let index = 0; index < table.length; index++) {
    const low = readU32(bytes, index * 8 + 4);
    const offset = readU32(bytes, index * 8) * TWO_32 + ((low & ~0x1ff) >>> 0);
    if (offset % clusterSize !== 0 || offset > MAX_HOST_OFFSET || (low & 0x1ff) !== 0) {
      throw new Qcow2Error('CORRUPT', 'it is not the offset of a refcount block', {
        structure: `refcount table entry ${index}`,
        offset: refcountTableOffset + index * 8,
        hint: 'repair the image with: qcow2 check -r all',
      });
    }
    table[index] = offset;
  }
  return table;
}

function encodeTable(table: Float64Array): Uint8Array {
  const bytes = new Uint8Array(table.length * 8);
  table.forEach((offset, index) => writeU64(bytes, index * 8, offset));
  return bytes;
}

function firstUnused(bytes: Uint8Array, from: number, to: number, order: number): number {
  let index = from;
  if (order === 4) {
    // By far the most common width, and the first allocation looks at every count.
    while (index < to && (bytes[2 * index]! | bytes[2 * index + 1]!) !== 0) index++;
  } else {
    while (index < to && refcountAt(bytes, index, order) !== 0) index++;
  }
  return index;
}

/** An error for a count that has reached its largest value. */
export function overflowError({ refcountOrder }: Qcow2Header): Qcow2Error {
  const bits = 2 ** refcountOrder;
  return new Qcow2Error('UNSUPPORTED', `a refcount of ${bits} bits would overflow`, {
    structure: 'refcount',
    hint: 'nothing was changed; an image with wider refcounts (refcount_bits) can share more often',
  });
}

function fullError({ clusterSize }: Qcow2Header): Qcow2Error {
  return new Qcow2Error('TOO_LARGE', 'the image cannot grow: its refcount table is full', {
    structure: 'refcount table',
    hint: `convert it to one with clusters of more than ${clusterSize} bytes`,
  });
}
