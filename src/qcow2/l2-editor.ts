/**
 * Changing L1 and L2 tables: L2 tables are made where there is none, and copied where a snapshot
 * shares them, before an entry of theirs changes.
 */

import type { HostFile } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import { compressedLocation, EntryFlag, entryOffset } from '../format/qcow2/l2-entry.ts';
import { TWO_32 } from '../util/bytes.ts';
import type { ClusterAllocator, FreeReason } from './allocator.ts';
import type { Committer } from './commit.ts';
import type { L1Location } from './mapping.ts';
import type { MetadataMap } from './metadata-map.ts';
import type { TableCache } from './table-cache.ts';

/** What an {@link L2Editor} works on. */
export interface L2EditorParts {
  header: Qcow2Header;
  file: HostFile;
  tables: TableCache;
  allocator: ClusterAllocator;
  metadata: MetadataMap;
  committer: Committer;
  /** The active L1 table. */
  l1: L1Location;
}

/** An L2 table that an L1 entry points at. */
export interface L2Location {
  /** Host offset; 0 if there is none. */
  offset: number;
  /** Whether nothing else refers to it, so that it can be changed where it is. */
  isCopied: boolean;
}

/** A slice of an L2 table. */
export interface L2Slice {
  /** Its entries, as {@link TableCache} keeps them. Valid until the next call to the cache. */
  words: Uint32Array;
  /** Index in the table of its first entry. */
  firstIndex: number;
}

/** Changes the mapping tables of an active disk. */
export class L2Editor {
  /** Entries of a slice. */
  readonly sliceEntries: number;
  readonly #parts: L2EditorParts;
  #copyBuffer: Uint8Array | undefined;

  constructor(parts: L2EditorParts) {
    this.#parts = parts;
    this.sliceEntries = parts.tables.sliceBytes / parts.header.l2EntrySize;
  }

  /**
   * Where the L2 table of an L1 entry is.
   * @throws {Qcow2Error} `CORRUPT` or `TRUNCATED`
   */
  locate(l1Index: number): L2Location {
    const { header, tables, l1 } = this.#parts;
    const position = l1.offset + l1Index * 8;
    const inSlice = position % tables.sliceBytes;
    const words = tables.slice(position - inSlice, l1.offset + l1.size * 8, 'L1 table');
    const high = words[inSlice / 4]!;
    const offset = entryOffset(high, words[inSlice / 4 + 1]!);
    if (offset % header.clusterSize !== 0 || offset > Number.MAX_SAFE_INTEGER) {
      throw new Qcow2Error('CORRUPT', `its L2 table's offset ${offset} is not aligned`, {
        structure: `L1 entry ${l1Index}`,
        offset: position,
      });
    }
    return { offset, isCopied: (high & EntryFlag.COPIED) !== 0 };
  }

  /**
   * The L2 table of an L1 entry, made or copied if it cannot be changed as it is.
   * @returns its host offset
   * @throws {Qcow2Error} `HOST`, `TOO_LARGE`, `CORRUPT` or `TRUNCATED`; nothing has changed then
   */
  writableTable(l1Index: number): number {
    const { offset: old, isCopied } = this.locate(l1Index);
    if (old !== 0 && isCopied) return old;
    const { header, file, tables, allocator, metadata, committer, l1 } = this.#parts;
    const { clusterSize } = header;
    const run = allocator.allocateRun(1);
    try {
      if (old === 0) {
        file.writeZeroes(run.offset, clusterSize);
      } else {
        const buffer = (this.#copyBuffer ??= new Uint8Array(clusterSize));
        file.read(buffer, old);
        file.write(buffer, run.offset);
      }
      committer.noteNewData();
      tables.drop(run.offset, clusterSize);
      const position = l1.offset + l1Index * 8;
      const inSlice = position % tables.sliceBytes;
      const l1End = l1.offset + l1.size * 8;
      const { words } = tables.modify(position - inSlice, l1End, 'L1 table');
      setEntry(words, inSlice / 4, { offset: run.offset, high: EntryFlag.COPIED, low: 0 });
    } catch (error) {
      allocator.release(run);
      throw error;
    }
    metadata.add({ offset: run.offset, length: clusterSize, kind: 'L2 table' });
    if (old !== 0) {
      metadata.remove({ offset: old, length: clusterSize });
      allocator.free({ offset: old, count: 1 });
    }
    return run.offset;
  }

  /** The slice of an L2 table that an entry is in, to look at. */
  read(table: number, index: number): L2Slice {
    const { header, tables } = this.#parts;
    const firstIndex = index - (index % this.sliceEntries);
    const offset = table + firstIndex * header.l2EntrySize;
    return { words: tables.slice(offset, table + header.clusterSize, 'L2 table'), firstIndex };
  }

  /** The slice of an L2 table that an entry is in, to change it. */
  modify(table: number, index: number): L2Slice {
    const { header, tables } = this.#parts;
    const firstIndex = index - (index % this.sliceEntries);
    const offset = table + firstIndex * header.l2EntrySize;
    const { words } = tables.modify(offset, table + header.clusterSize, 'L2 table');
    return { words, firstIndex };
  }

  /**
   * Gives up what the first two words of an entry that was replaced pointed at.
   * @throws {Qcow2Error} `CORRUPT` if that cannot be data, so that it is never given out again
   */
  freeEntry(high: number, low: number, reason: FreeReason = 'other'): void {
    const { header, allocator, metadata } = this.#parts;
    if ((high & EntryFlag.COMPRESSED) !== 0) {
      const { offset, length } = compressedLocation(high, low, header.clusterBits);
      metadata.checkClear(offset, length, 'compressed cluster that is given up');
      allocator.freeCompressed(offset, length);
      return;
    }
    const offset = entryOffset(high, low);
    if (offset % header.clusterSize !== 0 || offset > Number.MAX_SAFE_INTEGER) {
      throw new Qcow2Error('CORRUPT', `its cluster's offset ${offset} is not aligned`, {
        structure: 'L2 entry',
        hint: 'repair the image with: qcow2 check -r all',
      });
    }
    if (header.hasExternalDataFile) {
      const isThere = offset !== 0 || (high & EntryFlag.COPIED) !== 0;
      if (isThere && reason === 'request') allocator.freeData(offset, header.clusterSize);
    } else if (offset !== 0) {
      metadata.checkClear(offset, header.clusterSize, 'data cluster that is given up');
      allocator.free({ offset, count: 1 }, reason);
    }
  }
}

/** What an entry is set to. */
export interface EntryValue {
  /** Host offset; 0 for none. */
  offset: number;
  /** Flags of the high half. */
  high: number;
  /** Flags of the low half. */
  low: number;
}

/** Sets the two words of an entry at index `at` of `words`. */
export function setEntry(words: Uint32Array, at: number, { offset, high, low }: EntryValue): void {
  words[at] = (Math.floor(offset / TWO_32) | high) >>> 0;
  words[at + 1] = ((offset % TWO_32) | low) >>> 0;
}
