/**
 * The metadata cache: slices of L1 and L2 tables, or of refcount blocks, least recently used ones
 * dropped.
 *
 * Tables are cached by slices of at most 4 KiB rather than whole, so that a random read in a large
 * image costs one small host read and memory stays within the budget whatever the image's size.
 * Slices of L1 and L2 tables are kept as 32-bit words in the host's byte order, swapped once when
 * they are read: looking an entry up is then two array reads and no allocation. Refcount blocks
 * are kept as they are in the file, since their entries can be narrower than a byte.
 *
 * The cache is written back, not through: a changed slice stays in memory until `commit.ts`, which
 * knows the order that keeps the image valid, has it written. It is never dropped before.
 */

import type { BlockDevice } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import { TWO_32 } from '../util/bytes.ts';

/** Largest slice in bytes. */
const MAX_SLICE_BYTES = 4096;
/** Neighbouring slices are written together, up to this many bytes. */
const MAX_WRITE_BYTES = 256 * 1024;
/** Unchanged bytes between changed ones that are written again rather than in two pieces. */
const MAX_GAP_BYTES = 32 * 1024;

const IS_LITTLE_ENDIAN = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

/** The host offset of a slice that holds nothing. */
const NOT_LOADED = -1;

/** What a table is, for errors and for the order in which changes are written. */
export type TableName = 'L1 table' | 'L2 table' | 'refcount block';

/** A part of a table that is in memory. Valid until the next call to the cache. */
export interface Slice {
  readonly bytes: Buffer;
  /** The same memory as words. */
  readonly words: Uint32Array;
}

interface CachedSlice extends Slice {
  /** Looked at since the clock hand last passed. */
  isRecent: boolean;
  hostOffset: number;
  /** The table it was changed as; undefined where the file has the same bytes. */
  dirtyAs: TableName | undefined;
}

/** Sizes of a {@link TableCache}. */
export interface TableCacheOptions {
  clusterSize: number;
  /** Most bytes of slices to keep; at least two slices are. Changed ones may exceed it. */
  budgetBytes: number;
  /** `words` for tables of 64-bit entries, `bytes` for refcount blocks. */
  order?: 'words' | 'bytes';
}

/** A cache of table slices of one host file. */
export class TableCache {
  /** Bytes of a slice; a power of two that divides the cluster size. */
  readonly sliceBytes: number;
  readonly #file: BlockDevice;
  readonly #clusterSize: number;
  readonly #capacity: number;
  readonly #swapsWords: boolean;
  readonly #slices = new Map<number, CachedSlice>();
  readonly #dirty = new Set<CachedSlice>();
  /** The slices in the order that the clock hand visits them. */
  readonly #clock: CachedSlice[] = [];
  #hand = 0;

  constructor(file: BlockDevice, { clusterSize, budgetBytes, order = 'words' }: TableCacheOptions) {
    this.#file = file;
    this.#clusterSize = clusterSize;
    this.sliceBytes = Math.min(clusterSize, MAX_SLICE_BYTES);
    this.#capacity = Math.max(2, Math.floor(budgetBytes / this.sliceBytes));
    this.#swapsWords = order === 'words' && IS_LITTLE_ENDIAN;
  }

  /** Whether so much has changed that it should be written soon. */
  get isCrowded(): boolean {
    return this.#dirty.size > this.#capacity / 2;
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
    return this.#read(hostOffset, tableEnd, table).words;
  }

  /** As {@link slice}, but all views of the slice. */
  load(hostOffset: number, tableEnd: number, table: TableName): Slice {
    const cached = this.#slices.get(hostOffset);
    if (cached === undefined) return this.#read(hostOffset, tableEnd, table);
    cached.isRecent = true;
    return cached;
  }

  /** As {@link load}, for a slice that the caller is about to change. */
  modify(hostOffset: number, tableEnd: number, table: TableName): Slice {
    const slice = this.#slices.get(hostOffset) ?? this.#read(hostOffset, tableEnd, table);
    slice.isRecent = true;
    slice.dirtyAs = table;
    this.#dirty.add(slice);
    return slice;
  }

  /** Whether slices of tables of that kind have been changed. */
  isDirty(table: TableName): boolean {
    for (const slice of this.#dirty) if (slice.dirtyAs === table) return true;
    return false;
  }

  /**
   * Writes the changed slices of one kind of table. They count as changed until
   * {@link markWritten}, so that all of it can be done again if the file cannot be flushed.
   * @throws {Qcow2Error} `HOST`
   */
  write(table: TableName): void {
    const slices = [...this.#dirty].filter(({ dirtyAs }) => dirtyAs === table);
    slices.sort((a, b) => a.hostOffset - b.hostOffset);
    const perWrite = MAX_WRITE_BYTES / this.sliceBytes;
    for (let next = 0; next < slices.length;) {
      const run = [slices[next++]!];
      while (next < slices.length) {
        const gap = this.#between(run.at(-1)!, slices[next]!);
        if (gap === undefined || run.length + gap.length >= perWrite) break;
        run.push(...gap, slices[next++]!);
      }
      this.#writeNeighbours(run);
    }
  }

  /** Counts the changed slices of one kind of table as written. */
  markWritten(table: TableName): void {
    for (const slice of this.#dirty) {
      if (slice.dirtyAs !== table) continue;
      slice.dirtyAs = undefined;
      this.#dirty.delete(slice);
    }
  }

  /** Forgets all that it has, because the file was changed otherwise. */
  clear(): void {
    for (const { hostOffset } of this.#slices.values()) this.drop(hostOffset, 1);
  }

  /** Forgets what it has of a range of the file, changed or not. */
  drop(hostOffset: number, length: number): void {
    for (let at = hostOffset; at < hostOffset + length; at += this.sliceBytes) {
      const slice = this.#slices.get(at);
      if (slice === undefined) continue;
      this.#slices.delete(at);
      this.#dirty.delete(slice);
      slice.dirtyAs = undefined;
      slice.hostOffset = NOT_LOADED;
      slice.isRecent = false;
    }
  }

  /** The unchanged slices between two of one table, if they are few and in memory. */
  #between(before: CachedSlice, after: CachedSlice): CachedSlice[] | undefined {
    const start = before.hostOffset + this.sliceBytes;
    const end = after.hostOffset;
    if (start === end) return [];
    // Only a cluster that both are in is sure to be all of one table: what the cache has of others
    // may be of a table that is no more.
    const isOneCluster =
      Math.floor(start / this.#clusterSize) === Math.floor(end / this.#clusterSize);
    if (!isOneCluster || end - start > MAX_GAP_BYTES) return undefined;
    const gap: CachedSlice[] = [];
    for (let at = start; at < end; at += this.sliceBytes) {
      const slice = this.#slices.get(at);
      if (slice === undefined || slice.dirtyAs !== undefined) return undefined;
      gap.push(slice);
    }
    return gap;
  }

  #writeNeighbours(slices: readonly CachedSlice[]): void {
    const bytes = Buffer.concat(slices.map((slice) => slice.bytes));
    if (this.#swapsWords) bytes.swap32();
    this.#file.write(bytes, slices[0]!.hostOffset);
  }

  #read(hostOffset: number, tableEnd: number, table: TableName): CachedSlice {
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
    return slice;
  }

  #load({ bytes }: Slice, hostOffset: number): void {
    // The whole slice, past the end of a short L1 table too: in a damaged image, the same slice can
    // be part of an L2 table.
    const length = Math.min(this.sliceBytes, this.#file.size - hostOffset);
    this.#file.read(bytes.subarray(0, length), hostOffset);
    bytes.fill(0, length);
    if (this.#swapsWords) bytes.swap32();
  }

  /** A slice to read into: a new one, or the first that was not looked at for a whole round. */
  #takeSlice(): CachedSlice {
    // Where all are changed, there are more slices than the budget has room for, until a commit.
    if (this.#clock.length >= this.#capacity && this.#dirty.size < this.#clock.length) {
      for (;;) {
        const candidate = this.#clock[this.#hand]!;
        this.#hand = (this.#hand + 1) % this.#clock.length;
        if (candidate.dirtyAs !== undefined) continue;
        if (!candidate.isRecent) {
          this.#slices.delete(candidate.hostOffset);
          candidate.hostOffset = NOT_LOADED;
          return candidate;
        }
        candidate.isRecent = false;
      }
    }
    const bytes = Buffer.alloc(this.sliceBytes);
    const words = new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
    const hostOffset = NOT_LOADED;
    const slice = { bytes, words, isRecent: false, hostOffset, dirtyAs: undefined };
    this.#clock.push(slice);
    return slice;
  }
}

/** An entry's value for a message. */
export function formatEntry(high: number, low: number): string {
  return `0x${(BigInt(high >>> 0) * BigInt(TWO_32) + BigInt(low >>> 0)).toString(16)}`;
}
