/**
 * Refcounts of another width (specification: "Host cluster management").
 *
 * The whole refcount structure is written anew, to clusters that the old one counts as used and
 * nothing refers to. One write of the header goes over to it: offset and size of its table, and the
 * width. Until then a crash leaks the new structure, and after it nothing, because the new one counts
 * the old one's clusters as free.
 */

import { Qcow2Error } from '../errors.ts';
import { MAX_REFCOUNT_TABLE_BYTES } from '../limits.ts';
import { assert } from '../util/assert.ts';
import { writeU64 } from '../util/bytes.ts';
import type { HeaderChanges } from './header-writer.ts';
import type { WriteEngine } from './image-writer.ts';
import type { ClusterRun } from './refcount-store.ts';
import { maxRefcount, refcountAt, setRefcountAt } from './refcounts.ts';
import { progressOf } from './write-context.ts';
import type { EngineSteps, Part } from './write-context.ts';

/** A refcount structure of another width, while it is made. */
export class WidthChange {
  readonly #engine: WriteEngine;
  readonly #newOrder: number;
  readonly #newEntries: number;
  /** The clusters of the new structure, so far. */
  readonly #runs: ClusterRun[] = [];
  /** A block of the old structure, and which. */
  readonly #oldBlock: Uint8Array;
  #oldIndex = -1;

  /** @param order the refcounts are to have 2^order bits */
  constructor(engine: WriteEngine, order: number) {
    this.#engine = engine;
    this.#newOrder = order;
    this.#newEntries = (engine.header.clusterSize * 8) / 2 ** order;
    this.#oldBlock = new Uint8Array(engine.header.clusterSize);
  }

  /**
   * Finds which blocks the new structure needs. Everything has been committed.
   * @returns their indexes
   * @throws {Qcow2Error} `UNSUPPORTED` if a count does not fit; `TOO_LARGE` if no table can hold so
   * many blocks; `HOST`
   */
  neededBlocks(): Set<number> {
    const { refcounts, header } = this.#engine;
    const { blockEntries } = refcounts;
    const most = maxRefcount(this.#newOrder);
    const own = this.#oldStructure();
    const needed = new Set<number>();
    this.#oldIndex = -1;
    let last = -1;
    for (let index = 0; index < this.#oldTableEntries; index++) {
      if (!this.#loadOld(index)) continue;
      for (let at = 0; at < blockEntries; at++) {
        const count = refcountAt(this.#oldBlock, at, header.refcountOrder);
        if (count === 0) continue;
        const cluster = index * blockEntries + at;
        if (count > most) throw this.#tooNarrow(cluster, count);
        const block = Math.floor(cluster / this.#newEntries);
        if (block === last || (count === 1 && own.has(cluster))) continue;
        if ((block + 1) * 8 > MAX_REFCOUNT_TABLE_BYTES) throw this.#tooMany();
        needed.add(block);
        last = block;
      }
    }
    return needed;
  }

  /**
   * Writes the new structure, which nothing points at yet.
   * @returns what the header has to say of it
   * @throws {Qcow2Error} as {@link neededBlocks}. Then, and if it is not driven to its end, {@link release} takes back what there is
   */
  *write(part: Part): EngineSteps<HeaderChanges> {
    const { committer, file, header } = this.#engine;
    const { blocks, table } = this.#allocate(this.neededBlocks());
    // The old structure counts what was allocated, and does not change any more.
    committer.commitAll();
    const own = this.#oldStructure();
    this.#oldIndex = -1;
    const entries = new Uint8Array(table.count * header.clusterSize);
    const block = new Uint8Array(header.clusterSize);
    let done = 0;
    for (const index of [...blocks.keys()].sort((a, b) => a - b)) {
      const offset = blocks.get(index)!;
      this.#fill(block, index, own);
      file.write(block, offset);
      writeU64(entries, index * 8, offset);
      yield progressOf(part, ++done, blocks.size);
    }
    file.write(entries, table.offset);
    committer.noteNewData();
    return {
      refcountOrder: this.#newOrder,
      refcountTableOffset: table.offset,
      refcountTableClusters: table.count,
    };
  }

  /** Takes back the clusters of a structure that nothing points at. */
  release(): void {
    for (const run of this.#runs.splice(0)) this.#engine.allocator.release(run);
  }

  get #oldTableEntries(): number {
    const { refcounts, header } = this.#engine;
    return (refcounts.tableClusters * header.clusterSize) / 8;
  }

  /** The clusters of the old structure, which are free once the header names the new one. */
  #oldStructure(): Set<number> {
    const { refcounts, header } = this.#engine;
    const { clusterSize, refcountTableOffset, refcountTableClusters } = header;
    const clusters = new Set<number>();
    for (let index = 0; index < refcountTableClusters; index++) {
      clusters.add(refcountTableOffset / clusterSize + index);
    }
    for (let index = 0; index < this.#oldTableEntries; index++) {
      const offset = refcounts.blockOffset(index);
      if (offset !== 0) clusters.add(offset / clusterSize);
    }
    return clusters;
  }

  /** Places for the blocks, and for those that count them, and for a table that names them all. */
  #allocate(needed: Set<number>): { blocks: Map<number, number>; table: ClusterRun } {
    const { allocator, header } = this.#engine;
    const { clusterSize } = header;
    const blocks = new Map<number, number>();
    const note = (run: ClusterRun): void => {
      this.#runs.push(run);
      const first = run.offset / clusterSize;
      for (let at = 0; at < run.count; at++)
        needed.add(Math.floor((first + at) / this.#newEntries));
    };
    for (let table: ClusterRun | undefined; ;) {
      // More are added on the way.
      for (const index of needed) {
        if (blocks.has(index)) continue;
        const run = allocator.allocateRun(1);
        note(run);
        blocks.set(index, run.offset);
      }
      let highest = 0;
      for (const index of needed) highest = Math.max(highest, index);
      const count = Math.ceil(((highest + 1) * 8) / clusterSize);
      if (count * clusterSize > MAX_REFCOUNT_TABLE_BYTES) throw this.#tooMany();
      if (table !== undefined && table.count >= count && blocks.size === needed.size) {
        return { blocks, table };
      }
      if (table === undefined || table.count < count) {
        if (table !== undefined) this.#takeBack(table);
        table = { offset: allocator.allocateContiguous(count), count };
        note(table);
      }
    }
  }

  #takeBack(run: ClusterRun): void {
    this.#runs.splice(this.#runs.indexOf(run), 1);
    this.#engine.allocator.release(run);
  }

  /** Fills a block of the new structure with the counts of the old one. */
  #fill(block: Uint8Array, index: number, own: ReadonlySet<number>): void {
    const { refcounts, header } = this.#engine;
    const { blockEntries } = refcounts;
    block.fill(0);
    const first = index * this.#newEntries;
    const end = first + this.#newEntries;
    for (let old = Math.floor(first / blockEntries); old * blockEntries < end; old++) {
      if (!this.#loadOld(old)) continue;
      const stop = Math.min(end, (old + 1) * blockEntries);
      for (let cluster = Math.max(first, old * blockEntries); cluster < stop; cluster++) {
        const at = cluster - old * blockEntries;
        const stored = refcountAt(this.#oldBlock, at, header.refcountOrder);
        if (stored === 0) continue;
        const count = own.has(cluster) ? stored - 1 : stored;
        setRefcountAt(block, cluster - first, this.#newOrder, count);
      }
    }
  }

  /** Reads a block of the old structure; false if it has none of that index. */
  #loadOld(index: number): boolean {
    const { refcounts, file } = this.#engine;
    const offset = refcounts.blockOffset(index);
    if (offset === 0) return false;
    if (index !== this.#oldIndex) {
      file.read(this.#oldBlock, offset);
      this.#oldIndex = index;
    }
    return true;
  }

  #tooNarrow(cluster: number, count: number): Qcow2Error {
    const bits = 2 ** this.#newOrder;
    assert(bits < 64, 'refcounts of 64 bits hold every count');
    return new Qcow2Error('UNSUPPORTED', `a refcount of ${count} does not fit into ${bits} bits`, {
      structure: 'refcount',
      offset: cluster * this.#engine.header.clusterSize,
      hint: 'delete snapshots, or keep wider refcounts; nothing was changed',
    });
  }

  #tooMany(): Qcow2Error {
    const bits = 2 ** this.#newOrder;
    return new Qcow2Error(
      'TOO_LARGE',
      `no refcount table holds so many refcounts of ${bits} bits`,
      {
        structure: 'refcount table',
        hint: 'keep narrower refcounts; nothing was changed',
      },
    );
  }
}
