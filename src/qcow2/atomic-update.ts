/**
 * Changes that take effect in one instant.
 *
 * A snapshot that is made, applied or deleted changes the refcounts and COPIED flags of many
 * clusters, and tables that the header points at. Made one after the other, these would contradict
 * each other in between. So everything new is written to fresh clusters: mapping tables, and copies
 * of those refcount blocks whose counts change, with a copy of the refcount table that names them.
 * Then one write of the header's first sector goes over to all of it. Before that write the new
 * structures are leaked clusters at worst, and after it the old ones are.
 */

import { Qcow2Error } from '../errors.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import { compressedLocation, EntryFlag, entryOffset } from '../format/qcow2/l2-entry.ts';
import { readU32 } from '../util/bytes.ts';
import type { HeaderChanges } from './header-writer.ts';
import type { WriteEngine } from './image-writer.ts';
import { overflowError } from './refcount-store.ts';
import type { ClusterRun, RefcountStore } from './refcount-store.ts';
import { refcountAt, setRefcountAt } from './refcounts.ts';

/** Changes of refcounts that are to be made together. */
export class RefcountChanges {
  /** By index of the refcount block, the change of each count of it. */
  readonly blocks = new Map<number, Int32Array>();
  readonly #refcounts: RefcountStore;
  readonly #header: Qcow2Header;

  constructor(refcounts: RefcountStore, header: Qcow2Header) {
    this.#refcounts = refcounts;
    this.#header = header;
  }

  /** Adds to the change of a cluster's count. */
  add(cluster: number, change: number): void {
    const { blockEntries } = this.#refcounts;
    const index = Math.floor(cluster / blockEntries);
    let block = this.blocks.get(index);
    if (block === undefined) {
      block = new Int32Array(blockEntries);
      this.blocks.set(index, block);
    }
    block[cluster - index * blockEntries]! += change;
  }

  /** Adds to the change of all clusters that a structure touches. */
  addRange(offset: number, length: number, change: number): void {
    const { clusterSize } = this.#header;
    const end = Math.ceil((offset + length) / clusterSize);
    for (let index = Math.floor(offset / clusterSize); index < end; index++) {
      this.add(index, change);
    }
  }

  /** Adds to the change of what an L2 entry points at, given its first two words. */
  addEntry(high: number, low: number, change: number): void {
    if ((high & EntryFlag.COMPRESSED) !== 0) {
      const { offset, length } = compressedLocation(high, low, this.#header.clusterBits);
      this.addRange(offset, length, change);
      return;
    }
    const offset = entryOffset(high, low);
    if (offset !== 0) this.addRange(offset, 1, change);
  }

  /** What the count of a cluster will be. */
  countAfter(cluster: number): number {
    const { blockEntries } = this.#refcounts;
    const index = Math.floor(cluster / blockEntries);
    const change = this.blocks.get(index)?.[cluster - index * blockEntries] ?? 0;
    return this.#refcounts.get(cluster) + change;
  }

  /**
   * Checks that every count can be what it is to be.
   * @throws {Qcow2Error} `UNSUPPORTED` if one would overflow, `CORRUPT` if one would be negative
   */
  check(): void {
    const { blockEntries, maxRefcount } = this.#refcounts;
    for (const [index, changes] of this.blocks) {
      let isChanged = false;
      for (let at = 0; at < changes.length; at++) {
        if (changes[at] === 0) continue;
        isChanged = true;
        const cluster = index * blockEntries + at;
        const count = this.countAfter(cluster);
        if (count > maxRefcount) throw overflowError(this.#header);
        // What is to be shared is in use, so it is counted.
        if (count < Math.max(0, changes[at]! + 1)) {
          throw new Qcow2Error('CORRUPT', 'a cluster that is not counted often enough is in use', {
            structure: 'refcount',
            offset: cluster * this.#header.clusterSize,
            hint: 'repair the image with: qcow2 check -r all',
          });
        }
      }
      if (!isChanged) this.blocks.delete(index);
    }
  }
}

/** What an atomic update changes. */
export interface AtomicUpdate {
  changes: RefcountChanges;
  header: HeaderChanges;
}

/**
 * Brings changes of refcounts and of the header to the file in one instant. What the header will
 * point at was written, and all changes made before have been committed.
 *
 * @throws {Qcow2Error} `UNSUPPORTED` or `CORRUPT` if counts cannot be as asked, `HOST`, `TOO_LARGE`;
 * nothing has changed then
 */
export function updateAtomically(engine: WriteEngine, { changes, header }: AtomicUpdate): void {
  const { refcounts, committer, headerWriter, file, allocator, metadata } = engine;
  const { clusterSize } = engine.header;
  changes.check();
  const allocated: ClusterRun[] = [];
  const moved = new Map<number, number>();
  let table: ClusterRun | undefined;
  let oldTable: ClusterRun | undefined;
  try {
    for (const index of changes.blocks.keys()) {
      const run = allocator.allocateRun(1);
      allocated.push(run);
      moved.set(index, run.offset);
    }
    if (moved.size > 0) table = allocateTable(engine, allocated);
    committer.commitAll();
    for (const [index, offset] of moved) copyBlock(engine, changes, index, offset);
    if (table !== undefined) file.write(refcounts.encodeTableWith(moved), table.offset);
    committer.flushFiles();
    // Only now: the allocations may have moved the table.
    const { refcountTableOffset, refcountTableClusters } = engine.header;
    oldTable = { offset: refcountTableOffset, count: refcountTableClusters };
    const tableChanges =
      table === undefined
        ? {}
        : { refcountTableOffset: table.offset, refcountTableClusters: table.count };
    headerWriter.update({ ...header, ...tableChanges });
  } catch (error) {
    for (const run of allocated) allocator.release(run);
    throw error;
  }
  if (table !== undefined && oldTable !== undefined) {
    const old = [...moved.keys()].map((index) => refcounts.blockOffset(index));
    refcounts.adoptBlocks(moved);
    metadata.remove({ offset: oldTable.offset, length: oldTable.count * clusterSize });
    const length = table.count * clusterSize;
    metadata.add({ offset: table.offset, length, kind: 'refcount table' });
    for (const offset of old) allocator.free({ offset, count: 1 });
    allocator.free(oldTable);
  }
  forgetCompressed(engine);
  // Clusters that are free now may be written to only after this; it is tried again if it fails.
  committer.requireFlush();
  committer.flushFiles();
  dropFreed(engine, changes);
}

/** A place for the refcount table, which allocating it can make longer. */
function allocateTable(engine: WriteEngine, allocated: ClusterRun[]): ClusterRun {
  const { refcounts, allocator } = engine;
  for (;;) {
    const count = refcounts.tableClusters;
    const table = { offset: allocator.allocateContiguous(count), count };
    if (refcounts.tableClusters === count) {
      allocated.push(table);
      return table;
    }
    allocator.release(table);
  }
}

function copyBlock(
  { refcounts, file, header }: WriteEngine,
  changes: RefcountChanges,
  index: number,
  target: number,
): void {
  const block = new Uint8Array(header.clusterSize);
  file.read(block, refcounts.blockOffset(index));
  const deltas = changes.blocks.get(index)!;
  const { refcountOrder } = header;
  for (let at = 0; at < deltas.length; at++) {
    const delta = deltas[at]!;
    if (delta === 0) continue;
    setRefcountAt(block, at, refcountOrder, refcountAt(block, at, refcountOrder) + delta);
  }
  file.write(block, target);
}

/** Compressed clusters are cached by where they were, and more are put behind the last one. */
function forgetCompressed({ clusters, allocator }: WriteEngine): void {
  clusters.clear();
  allocator.startNewCompressed();
}

/** Forgets what was in clusters that are free now, and gives their space back to the host. */
function dropFreed(engine: WriteEngine, changes: RefcountChanges): void {
  const { refcounts, header, metadata, file, passDiscard } = engine;
  const { clusterSize } = header;
  const isPassed = passDiscard.snapshot ?? true;
  let hole = { offset: 0, length: 0 };
  const punch = (): void => {
    const end = Math.min(hole.offset + hole.length, file.size);
    if (isPassed && end > hole.offset) file.discard(hole.offset, end - hole.offset);
    hole = { offset: 0, length: 0 };
  };
  for (const index of [...changes.blocks.keys()].sort((a, b) => a - b)) {
    const deltas = changes.blocks.get(index)!;
    for (let at = 0; at < deltas.length; at++) {
      if (deltas[at]! >= 0) continue;
      const cluster = index * refcounts.blockEntries + at;
      if (refcounts.get(cluster) !== 0) continue;
      const offset = cluster * clusterSize;
      metadata.remove({ offset, length: clusterSize });
      refcounts.noteFree(cluster);
      if (offset !== hole.offset + hole.length) punch();
      if (hole.length === 0) hole.offset = offset;
      hole.length += clusterSize;
    }
  }
  punch();
}

/** Calls `visit` with the first two words of each entry of an L2 table that has been read. */
export function eachEntry(
  header: Qcow2Header,
  table: Uint8Array,
  visit: (high: number, low: number, at: number) => void,
): void {
  for (let at = 0; at < table.length; at += header.l2EntrySize) {
    const high = readU32(table, at);
    const low = readU32(table, at + 4);
    if (high !== 0 || low !== 0) visit(high, low, at);
  }
}
