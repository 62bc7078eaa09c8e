/** The refcounts that an image stores (specification: "Host cluster management"). */

import type { Qcow2Header } from '../../format/qcow2/header.ts';
import { refcountAt } from '../refcounts.ts';
import { readU64BigInt, TWO_32 } from '../../util/bytes.ts';
import { hex64 } from './check-report.ts';
import { tableBuffer } from './metadata-file.ts';
import type { MetadataFile } from './metadata-file.ts';

/** Bytes of refcount blocks that are kept for {@link StoredRefcounts.get}. */
const CACHE_BYTES = 64 * 1024 * 1024;
/** Stands for larger counts in an array of 16-bit numbers. */
const LARGE = 0xffff;

/** What a refcount table entry says. */
export interface RefcountTableEntry {
  /** Host offset of the block; 0 for none. Above 2^53 it is rounded. */
  offset: number;
  /** The offset in hexadecimal, exactly. */
  hexOffset: () => string;
  hasReservedBits: boolean;
  isAligned: boolean;
  /** Whether there can be a block: past the end of the file there are zeroes, up to 2^63. */
  isReadable: boolean;
}

/** A refcount block, its counts ready to be compared. */
export interface DecodedBlock {
  /** Counts; those that do not fit are 65535. */
  counts: Uint16Array;
  /** The exact count at an index of the block. */
  exact(index: number): bigint;
}

/** Reads the stored refcounts of an image. */
export class StoredRefcounts {
  /** Refcounts in a block. */
  readonly blockEntries: number;
  /** Entries of the refcount table. */
  readonly tableSize: number;
  readonly #file: MetadataFile;
  readonly #order: number;
  readonly #clusterSize: number;
  readonly #table: Uint32Array;
  /** Blocks as they are stored, by their host offset. */
  readonly #cache = new Map<number, Buffer>();
  #raw: Buffer | undefined;
  #decoded: Uint16Array | undefined;

  /** Reads the refcount table; past the end of the file it is taken to be empty. */
  constructor(header: Qcow2Header, file: MetadataFile) {
    const { clusterSize, refcountOrder, refcountTableOffset, refcountTableClusters } = header;
    this.#file = file;
    this.#order = refcountOrder;
    this.#clusterSize = clusterSize;
    this.blockEntries = (clusterSize * 8) / 2 ** refcountOrder;
    const wanted = refcountTableClusters * clusterSize;
    this.tableSize = wanted / 8;
    const present = Math.max(0, Math.min(wanted, file.size - refcountTableOffset));
    const bytes = tableBuffer(present);
    this.#table = file.readWords(bytes, refcountTableOffset, 'refcount table');
  }

  /** Entries of the refcount table that the file holds; those after them are empty. */
  get presentEntries(): number {
    return this.#table.length / 2;
  }

  /** The refcount table's entry of that index. */
  entry(index: number): RefcountTableEntry {
    const high = this.#table[2 * index] ?? 0;
    const low = this.#table[2 * index + 1] ?? 0;
    const isAligned = (low & (this.#clusterSize - 1) & ~0x1ff) === 0;
    return {
      offset: high * TWO_32 + ((low & ~0x1ff) >>> 0),
      hexOffset: () => hex64(high, low & ~0x1ff),
      hasReservedBits: (low & 0x1ff) !== 0,
      isAligned,
      isReadable: isAligned && high < 0x8000_0000,
    };
  }

  /** Whether the table has a block at `index`, whatever its offset is worth. */
  hasBlock(index: number): boolean {
    const high = this.#table[2 * index] ?? 0;
    return high !== 0 || ((this.#table[2 * index + 1] ?? 0) & ~0x1ff) !== 0;
  }

  /** Reads a block to compare all its counts. The result is valid until the next call. */
  decode(index: number): DecodedBlock {
    const { offset } = this.entry(index);
    const order = this.#order;
    this.#raw ??= tableBuffer(this.#clusterSize);
    const raw = this.#raw;
    this.#file.read(raw, offset, 'refcount block');
    if (order === 4) {
      raw.swap16();
      const counts = new Uint16Array(raw.buffer, raw.byteOffset, this.blockEntries);
      return { counts, exact: (at) => BigInt(counts[at]!) };
    }
    this.#decoded ??= new Uint16Array(this.blockEntries);
    const counts = this.#decoded;
    for (let at = 0; at < counts.length; at++) {
      counts[at] = Math.min(refcountAt(raw, at, order), LARGE);
    }
    return { counts, exact: (at) => exactRefcount(raw, at, order) };
  }

  /** The stored count of a cluster; undefined if its block cannot be read. */
  get(cluster: number): bigint | undefined {
    const index = Math.floor(cluster / this.blockEntries);
    if (!this.hasBlock(index)) return 0n;
    const { offset, isReadable } = this.entry(index);
    if (!isReadable) return undefined;
    if (offset >= this.#file.size) return 0n;
    return exactRefcount(this.#block(offset), cluster % this.blockEntries, this.#order);
  }

  /** Whether the stored count of a cluster is one; undefined if its block cannot be read. */
  isOne(cluster: number): boolean | undefined {
    const index = Math.floor(cluster / this.blockEntries);
    if (!this.hasBlock(index)) return false;
    const { offset, isReadable } = this.entry(index);
    if (!isReadable) return undefined;
    if (offset >= this.#file.size) return false;
    return refcountAt(this.#block(offset), cluster % this.blockEntries, this.#order) === 1;
  }

  #block(offset: number): Buffer {
    const cached = this.#cache.get(offset);
    if (cached !== undefined) return cached;
    const isFull = this.#cache.size >= Math.max(2, CACHE_BYTES / this.#clusterSize);
    let block: Buffer | undefined;
    if (isFull) {
      const [oldest, dropped] = this.#cache.entries().next().value!;
      this.#cache.delete(oldest);
      block = dropped;
    }
    block ??= tableBuffer(this.#clusterSize);
    this.#file.read(block, offset, 'refcount block');
    this.#cache.set(offset, block);
    return block;
  }
}

function exactRefcount(block: Uint8Array, index: number, order: number): bigint {
  return order === 6 ? readU64BigInt(block, 8 * index) : BigInt(refcountAt(block, index, order));
}
