/** Copies of mapping tables in fresh clusters, for changes that take effect in one instant. */

import { EntryFlag, entryHigh, entryLow, entryOffset } from '../format/qcow2/l2-entry.ts';
import { readU32, writeU32 } from '../util/bytes.ts';
import type { WriteEngine } from './image-writer.ts';
import type { L1Location } from './mapping.ts';
import type { ClusterRun } from './refcount-store.ts';

/** An L1 entry that points at an L2 table. */
export interface L1Entry {
  index: number;
  /** Host offset of the L2 table. */
  offset: number;
}

/** An L1 table in memory. */
export class L1Table {
  readonly bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
  }

  /**
   * Reads an L1 table, of which everything has been committed.
   * @param size entries of the result, if it is to have others than the table
   */
  static read({ file }: WriteEngine, location: L1Location, size = location.size): L1Table {
    const bytes = new Uint8Array(size * 8);
    file.read(bytes.subarray(0, Math.min(size, location.size) * 8), location.offset);
    return new L1Table(bytes);
  }

  /** The entries that point at an L2 table, in order. */
  *entries(): Generator<L1Entry> {
    for (let index = 0; index * 8 < this.bytes.length; index++) {
      const offset = this.offset(index);
      if (offset !== 0) yield { index, offset };
    }
  }

  /** Host offset that an entry has; 0 for none. */
  offset(index: number): number {
    return entryOffset(readU32(this.bytes, index * 8), readU32(this.bytes, index * 8 + 4));
  }

  /** Whether an entry says that its L2 table is referred to once. */
  isCopied(index: number): boolean {
    return (readU32(this.bytes, index * 8) & EntryFlag.COPIED) !== 0;
  }

  /** Points an entry at an L2 table; 0 for none. */
  set(index: number, offset: number, { isCopied }: { isCopied: boolean }): void {
    writeU32(this.bytes, index * 8, entryHigh(offset, isCopied ? EntryFlag.COPIED : 0));
    writeU32(this.bytes, index * 8 + 4, entryLow(offset));
  }
}

/** Reads a whole L2 table, of which everything has been committed, into `target`. */
export function readL2Table(engine: WriteEngine, offset: number, target: Uint8Array): void {
  engine.file.read(target, offset);
}

/** Writes structures to fresh clusters, and takes them all back if it comes to nothing. */
export class FreshClusters {
  readonly #engine: WriteEngine;
  readonly #runs: ClusterRun[] = [];

  constructor(engine: WriteEngine) {
    this.#engine = engine;
  }

  /**
   * Writes bytes to neighbouring clusters of their own.
   * @returns their host offset
   * @throws {Qcow2Error} `HOST`, `TOO_LARGE` or `CORRUPT`
   */
  store(bytes: Uint8Array): number {
    const { allocator, file, tables, header } = this.#engine;
    const { clusterSize } = header;
    const count = Math.max(1, Math.ceil(bytes.length / clusterSize));
    const offset = allocator.allocateContiguous(count);
    this.#runs.push({ offset, count });
    tables.drop(offset, count * clusterSize);
    const rest = count * clusterSize - bytes.length;
    file.writeParts([bytes, new Uint8Array(rest)], offset);
    return offset;
  }

  /** Takes back everything, which nothing points at. */
  release(): void {
    for (const run of this.#runs.splice(0)) this.#engine.allocator.release(run);
  }
}
