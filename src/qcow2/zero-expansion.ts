/**
 * Turning zero clusters into what version 2 has: data clusters full of zeroes, or, where nothing is
 * behind them, none.
 *
 * Both read as the zero cluster did, for the disk and for every snapshot. So L2 tables are changed
 * where they are, those too that several L1 tables share, in the order of `commit.ts`: new space and
 * its counts are in the file before an entry that points at it, and at every instant all disks read
 * as before.
 *
 * A zero cluster that has space keeps it, with zeroes written there, only if all entries that point at
 * it are zero clusters: another may say that it holds data, as a snapshot's does after the disk was
 * zeroed. Then it is left to the others, and its count falls in the end, when all entries are durable.
 */

import { Qcow2Error } from '../errors.ts';
import { EntryFlag, entryOffset, READS_ZERO } from '../format/qcow2/l2-entry.ts';
import { MAX_REFCOUNT_ORDER } from '../limits.ts';
import { eachEntry } from './atomic-update.ts';
import { ReferenceCounts } from './check/reference-counts.ts';
import type { WriteEngine } from './image-writer.ts';
import { setEntry } from './l2-editor.ts';
import { lowerCounts } from './snapshot-writer.ts';
import { readSnapshotTable } from './snapshots.ts';
import { L1Table, readL2Table } from './table-copies.ts';
import { progressOf } from './write-context.ts';
import type { EngineSteps, Part } from './write-context.ts';

/**
 * Expands the zero clusters of the disk and of all snapshots, a table at a time. Everything has been
 * committed; nothing else may change the image between two steps.
 *
 * @throws {Qcow2Error} `CORRUPT`; `HOST`, `TOO_LARGE` or `UNSUPPORTED` where space is needed and
 * there is none. All disks read as before then, and it can be done again
 */
export function* expandZeroClusters(engine: WriteEngine, part: Part): EngineSteps<void> {
  const { committer } = engine;
  const tables = usesOfL2Tables(engine);
  const expansion = new ZeroExpansion(engine, tables);
  const total = 2 * tables.size;
  let done = 0;
  let hasFailed = false;
  try {
    for (const offset of tables.keys()) {
      expansion.look(offset);
      yield progressOf(part, ++done, total);
    }
    for (const offset of tables.keys()) {
      expansion.expandTable(offset);
      if (committer.isDue) committer.commitAll();
      yield progressOf(part, ++done, total);
    }
  } catch (error) {
    hasFailed = true;
    throw error;
  } finally {
    // Whoever stops it here is left no leaks.
    if (!hasFailed) expansion.settle();
  }
}

/**
 * Whether any table, of the disk or a snapshot, has a compressed cluster.
 * @throws {Qcow2Error} `CORRUPT` or `HOST`
 */
export function hasCompressedClusters(engine: WriteEngine): boolean {
  const { clusterSize, l2EntrySize } = engine.header;
  const table = new Uint8Array(clusterSize);
  for (const offset of usesOfL2Tables(engine).keys()) {
    readL2Table(engine, offset, table);
    // The flag is in the first byte of an entry.
    for (let at = 0; at < clusterSize; at += l2EntrySize) {
      if ((table[at]! & 0x40) !== 0) return true;
    }
  }
  return false;
}

/** How many entries of L1 tables, the disk's and all snapshots', point at each L2 table. */
function usesOfL2Tables(engine: WriteEngine): Map<number, number> {
  const { header, file, l1 } = engine;
  const locations = [{ offset: l1.offset, size: l1.size }];
  for (const { l1TableOffset, l1Size } of readSnapshotTable(header, file)) {
    locations.push({ offset: l1TableOffset, size: l1Size });
  }
  const tables = new Map<number, number>();
  for (const { offset, size } of locations) {
    for (const entry of L1Table.read(engine, { offset, size }).entries()) {
      if (entry.offset % header.clusterSize !== 0 || entry.offset >= file.size) {
        throw new Qcow2Error('CORRUPT', `its L2 table cannot be at ${entry.offset}`, {
          structure: `L1 entry ${entry.index}`,
          offset: offset + entry.index * 8,
        });
      }
      tables.set(entry.offset, (tables.get(entry.offset) ?? 0) + 1);
    }
  }
  return tables;
}

/** Where an entry is: two words of a slice, and how many L1 entries use its table. */
interface EntryPlace {
  words: Uint32Array;
  at: number;
  uses: number;
}

class ZeroExpansion {
  readonly #engine: WriteEngine;
  /** How many L1 entries point at each L2 table. */
  readonly #uses: ReadonlyMap<number, number>;
  /** How often clusters are referred to by zero entries of several tables. */
  readonly #zeroUses: ReferenceCounts;
  /** How often clusters are not referred to any more though they are counted. */
  readonly #left: ReferenceCounts;
  readonly #table: Uint8Array;

  constructor(engine: WriteEngine, uses: ReadonlyMap<number, number>) {
    const { header, file } = engine;
    const clusters = Math.ceil(file.size / header.clusterSize);
    this.#engine = engine;
    this.#uses = uses;
    this.#zeroUses = new ReferenceCounts(clusters, MAX_REFCOUNT_ORDER);
    this.#left = new ReferenceCounts(clusters, MAX_REFCOUNT_ORDER);
    this.#table = new Uint8Array(header.clusterSize);
  }

  /** Counts the zero entries of a table whose clusters others refer to as well. */
  look(table: number): void {
    const { header, refcounts } = this.#engine;
    const uses = this.#usesOf(table);
    readL2Table(this.#engine, table, this.#table);
    eachEntry(header, this.#table, (high, low) => {
      if ((high & EntryFlag.COMPRESSED) !== 0 || (low & READS_ZERO) === 0) return;
      const offset = entryOffset(high, low);
      if (offset === 0) return;
      checkAligned(header, offset);
      const cluster = offset / header.clusterSize;
      const count = refcounts.get(cluster);
      if (count < uses) throw notCounted('zero cluster', offset);
      if (count > uses) this.#zeroUses.add(cluster, uses);
    });
  }

  /**
   * How many L1 entries use an L2 table. Its count may be higher, as a crash leaves it; taken for
   * the uses, that would make a cluster look like one that nobody else has.
   */
  #usesOf(table: number): number {
    const uses = this.#uses.get(table)!;
    if (this.#engine.refcounts.get(table / this.#engine.header.clusterSize) < uses) {
      throw notCounted('L2 table', table);
    }
    return uses;
  }

  expandTable(table: number): void {
    const { header, tables } = this.#engine;
    const end = table + header.clusterSize;
    const uses = this.#usesOf(table);
    for (let offset = table; offset < end; offset += tables.sliceBytes) {
      if (!hasZeroEntry(tables.slice(offset, end, 'L2 table'))) continue;
      // Nothing below asks the cache for another slice, and one that has changed stays.
      const { words } = tables.modify(offset, end, 'L2 table');
      for (let at = 0; at < words.length;) {
        at += isZeroEntry(words, at) ? 2 * this.#expand({ words, at, uses }) : 2;
      }
    }
  }

  /** Brings what was expanded to the file, and lowers the counts of what was left to others. */
  settle(): void {
    this.#engine.committer.commitAll();
    lowerCounts(this.#engine, this.#left);
  }

  /** Expands a zero entry, and perhaps those after it; returns how many. */
  #expand(place: EntryPlace): number {
    const { words, at, uses } = place;
    if (this.#isOwn(place)) {
      this.#fillOwn(place);
      return 1;
    }
    if (hasBacking(this.#engine.header)) {
      let count = 1;
      while (
        isZeroEntry(words, at + 2 * count) &&
        !this.#isOwn({ words, at: at + 2 * count, uses })
      )
        count++;
      return this.#allocate(place, count);
    }
    this.#leave(place);
    setEntry(words, at, { offset: 0, high: 0, low: 0 });
    return 1;
  }

  /** Whether an entry has a cluster that all who point at it take for zeroes. */
  #isOwn({ words, at, uses }: EntryPlace): boolean {
    const { header, refcounts } = this.#engine;
    const offset = entryOffset(words[at]!, words[at + 1]!);
    if (offset === 0) return false;
    const cluster = offset / header.clusterSize;
    const count = refcounts.get(cluster);
    return count === uses || count === this.#zeroUses.get(cluster);
  }

  #fillOwn({ words, at }: EntryPlace): void {
    const { header, file, metadata, committer, refcounts } = this.#engine;
    const offset = entryOffset(words[at]!, words[at + 1]!);
    metadata.checkClear(offset, header.clusterSize, 'zero cluster');
    file.writeZeroes(offset, header.clusterSize);
    committer.noteNewData();
    const high = copiedFlag(refcounts.get(offset / header.clusterSize));
    setEntry(words, at, { offset, high, low: 0 });
  }

  /** Gives zero entries new clusters, as many as there are in one piece; returns how many. */
  #allocate({ words, at, uses }: EntryPlace, wanted: number): number {
    const { header, file, allocator, refcounts, committer } = this.#engine;
    const { clusterSize } = header;
    const { offset, count } = allocator.allocateRun(wanted);
    try {
      file.writeZeroes(offset, count * clusterSize, { mayUnmap: true });
    } catch (error) {
      allocator.release({ offset, count });
      throw error;
    }
    committer.noteNewData();
    for (let index = 0; index < count; index++) {
      const place = { words, at: at + 2 * index, uses };
      const host = offset + index * clusterSize;
      if (uses > 1) refcounts.add(host / clusterSize, uses - 1);
      this.#leave(place);
      setEntry(words, place.at, { offset: host, high: copiedFlag(uses), low: 0 });
    }
    return count;
  }

  /** Notes that an entry is about to leave its cluster, if it has one, to others. */
  #leave({ words, at, uses }: EntryPlace): void {
    const offset = entryOffset(words[at]!, words[at + 1]!);
    if (offset === 0) return;
    this.#left.add(offset / this.#engine.header.clusterSize, uses);
  }
}

/** Whether an entry without a cluster would show a backing file, open or not. */
function hasBacking({ backingFile }: WriteEngine['header']): boolean {
  return backingFile !== undefined && backingFile !== '';
}

function checkAligned({ clusterSize }: WriteEngine['header'], offset: number): void {
  if (offset % clusterSize === 0 && Number.isSafeInteger(offset)) return;
  throw new Qcow2Error('CORRUPT', `its cluster's offset ${offset} is not aligned`, {
    structure: 'L2 entry',
    hint: 'repair the image with: qcow2 check -r all',
  });
}

function copiedFlag(count: number): number {
  return count === 1 ? EntryFlag.COPIED : 0;
}

function isZeroEntry(words: Uint32Array, at: number): boolean {
  if (at >= words.length) return false;
  return (words[at]! & EntryFlag.COMPRESSED) === 0 && (words[at + 1]! & READS_ZERO) !== 0;
}

function hasZeroEntry(words: Uint32Array): boolean {
  for (let at = 0; at < words.length; at += 2) if (isZeroEntry(words, at)) return true;
  return false;
}

function notCounted(structure: string, offset: number): Qcow2Error {
  return new Qcow2Error('CORRUPT', 'it is in use, and not counted as often as it is', {
    structure,
    offset,
    hint: 'repair the image with: qcow2 check -r all',
  });
}
