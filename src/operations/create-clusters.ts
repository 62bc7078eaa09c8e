/**
 * Which clusters of a new image are used for what, decided before anything is written.
 *
 * Clusters are given out as QEMU gives them out, so that a new image has the same layout, to the
 * byte. Looking for free clusters starts behind those found last. When a cluster lies where no
 * refcount block counts yet, a block is placed behind what was found, and the search starts again with
 * the same clusters; when the refcount table has no entry for that block, a larger table is placed in an area of
 * its own, and the old one is given up.
 */

import { Qcow2Error } from '../errors.ts';
import { MAX_REFCOUNT_TABLE_BYTES } from '../limits.ts';
import { assert } from '../util/assert.ts';
import { alignUp } from '../util/bytes.ts';
import { refcountClusters, refcountsPerBlock } from './refcount-size.ts';
import type { RefcountGeometry } from './refcount-size.ts';

/** A refcount table; all in clusters. */
export interface PlannedTable {
  /** Where it starts. */
  start: number;
  /** Where each refcount block is; 0 for none. */
  blocks: number[];
}

/** Header, refcount table and first refcount block, which are always there. */
const FIRST_CLUSTERS = 3;

/** The clusters of a new image; all numbers are clusters. */
export class PlannedClusters {
  readonly #geometry: RefcountGeometry;
  readonly #perBlock: number;
  readonly #perTableCluster: number;
  /** Which clusters each refcount block counts as used, where there is a block. */
  readonly #used = new Map<number, UsedClusters>();
  #table: PlannedTable;
  readonly #retired: PlannedTable[] = [];
  /** Where the search for free clusters goes on. */
  #next = 0;

  /**
   * @param expected how many clusters will be used at least
   * @throws {Qcow2Error} `TOO_LARGE` if no refcount table can count so many
   */
  constructor(geometry: RefcountGeometry, expected: number) {
    const needed = refcountClusters(expected, geometry, { spare: false });
    checkTableSize(needed.table * geometry.clusterSize);
    this.#geometry = geometry;
    this.#perBlock = refcountsPerBlock(geometry);
    this.#perTableCluster = geometry.clusterSize / 8;
    const blocks = new Array<number>(this.#perTableCluster).fill(0);
    blocks[0] = 2;
    this.#table = { start: 1, blocks };
    this.#used.set(0, new UsedClusters(this.#perBlock));
    const first = this.allocate(FIRST_CLUSTERS);
    assert(first === 0, 'the first clusters are the first');
  }

  /** The refcount table. */
  get table(): PlannedTable {
    return this.#table;
  }

  /** Clusters of the refcount table. */
  get tableClusters(): number {
    return this.#table.blocks.length / this.#perTableCluster;
  }

  /** Tables that were given up; their bytes stay where nothing else is put. */
  get retiredTables(): readonly PlannedTable[] {
    return this.#retired;
  }

  /** The cluster behind the last one that is used. */
  get end(): number {
    let end = 0;
    for (const [index, used] of this.#used) {
      const last = used.last();
      if (last >= 0) end = Math.max(end, index * this.#perBlock + last + 1);
    }
    return end;
  }

  /** The runs of used clusters that a refcount block counts, as indices in the block. */
  usedRuns(blockIndex: number): Iterable<readonly [start: number, end: number]> {
    return this.#used.get(blockIndex)?.runs() ?? [];
  }

  /** Gives out clusters in one piece. @returns the first of them */
  allocate(count: number): number {
    for (;;) {
      const start = this.#findFree(count);
      if (this.#use(start, count)) return start;
    }
  }

  /** Gives out as many of `count` clusters from `start` on as are free. @returns how many */
  allocateAt(start: number, count: number): number {
    for (;;) {
      let free = 0;
      while (free < count && !this.#isUsed(start + free)) free++;
      if (this.#use(start, free)) return free;
    }
  }

  /**
   * Puts a new refcount table behind all that is used, which with its blocks counts `count` more
   * clusters that follow it.
   *
   * @returns the first of those
   */
  reserve(count: number): number {
    return this.#moveTable(this.end, { count, spare: false });
  }

  #isUsed(cluster: number): boolean {
    const used = this.#used.get(Math.floor(cluster / this.#perBlock));
    return used?.has(cluster % this.#perBlock) ?? false;
  }

  #findFree(count: number): number {
    for (let found = 0; found < count;) found = this.#isUsed(this.#next++) ? 0 : found + 1;
    return this.#next - count;
  }

  /** Takes clusters. @returns false if that made a refcount block necessary: nothing is taken then */
  #use(start: number, count: number): boolean {
    const end = start + count;
    for (let at = start; at < end;) {
      const index = Math.floor(at / this.#perBlock);
      if (!this.#hasBlock(index)) {
        this.#placeBlock(index);
        this.#release(start, at);
        return false;
      }
      const first = index * this.#perBlock;
      const stop = Math.min(end, first + this.#perBlock);
      this.#used.get(index)!.set(at - first, stop - first, true);
      at = stop;
    }
    return true;
  }

  /** Gives clusters back; the next search begins with them. */
  #release(start: number, end: number): void {
    for (let at = start; at < end;) {
      const index = Math.floor(at / this.#perBlock);
      const first = index * this.#perBlock;
      const stop = Math.min(end, first + this.#perBlock);
      this.#used.get(index)!.set(at - first, stop - first, false);
      at = stop;
    }
    this.#next = Math.min(this.#next, start);
  }

  #hasBlock(index: number): boolean {
    return (this.#table.blocks[index] ?? 0) !== 0;
  }

  #placeBlock(index: number): void {
    const block = this.#findFree(1);
    const used = new UsedClusters(this.#perBlock);
    if (Math.floor(block / this.#perBlock) === index) {
      used.set(block % this.#perBlock, (block % this.#perBlock) + 1, true);
    } else if (!this.#use(block, 1)) {
      return;
    }
    this.#used.set(index, used);
    if (index < this.#table.blocks.length) {
      this.#table.blocks[index] = block;
      return;
    }
    const counted = Math.ceil(Math.max(index * this.#perBlock + 1, block) / this.#perBlock);
    this.#moveTable(counted * this.#perBlock, {
      count: 0,
      spare: true,
      block: { index, at: block },
    });
  }

  /** Places a new refcount table, and the blocks that it needs, from `start` on. */
  #moveTable(
    start: number,
    {
      count,
      spare,
      block,
    }: { count: number; spare: boolean; block?: { index: number; at: number } },
  ): number {
    const needed = refcountClusters(start + count, this.#geometry, { spare });
    const entries = needed.blocks + (spare ? Math.ceil(needed.blocks / 2) : 0);
    const length = alignUp(entries, this.#perTableCluster);
    checkTableSize(length * 8);
    const old = this.#table;
    const blocks = Array.from({ length }, (_, index) => old.blocks[index] ?? 0);
    if (block !== undefined) blocks[block.index] = block.at;
    let end = start;
    for (let index = Math.floor(start / this.#perBlock); index < needed.blocks; index++) {
      if (blocks[index] !== 0) continue;
      blocks[index] = end++;
      this.#used.set(index, new UsedClusters(this.#perBlock));
    }
    const table = { start: end, blocks };
    end += length / this.#perTableCluster;
    this.#retired.push(old);
    this.#table = table;
    const isCounted = this.#use(start, end - start);
    assert(isCounted, 'the blocks of a new refcount table count it');
    this.#release(old.start, old.start + old.blocks.length / this.#perTableCluster);
    return end;
  }
}

function checkTableSize(lengthBytes: number): void {
  if (lengthBytes <= MAX_REFCOUNT_TABLE_BYTES) return;
  throw new Qcow2Error('TOO_LARGE', 'the image would need too large a refcount table', {
    hint: 'use larger clusters or narrower refcounts',
  });
}

/** Which of the clusters that one refcount block counts are used. */
class UsedClusters {
  readonly #capacity: number;
  /** A byte for each cluster; undefined while all or none are used. */
  #flags: Uint8Array | undefined;
  #count = 0;

  constructor(capacity: number) {
    this.#capacity = capacity;
  }

  has(index: number): boolean {
    return this.#flags === undefined ? this.#count > 0 : this.#flags[index] !== 0;
  }

  /** Changes the state of clusters that all have the other one. */
  set(start: number, end: number, isUsed: boolean): void {
    this.#flags ??= new Uint8Array(this.#capacity).fill(this.#count > 0 ? 1 : 0);
    this.#flags.fill(isUsed ? 1 : 0, start, end);
    this.#count += isUsed ? end - start : start - end;
    if (this.#count === 0 || this.#count === this.#capacity) this.#flags = undefined;
  }

  last(): number {
    if (this.#flags === undefined) return this.#count - 1;
    return this.#flags.lastIndexOf(1);
  }

  *runs(): Generator<readonly [start: number, end: number]> {
    if (this.#flags === undefined) {
      if (this.#count > 0) yield [0, this.#capacity];
      return;
    }
    for (let end = 0; ;) {
      const start = this.#flags.indexOf(1, end);
      if (start < 0) return;
      const next = this.#flags.indexOf(0, start);
      end = next < 0 ? this.#capacity : next;
      yield [start, end];
      if (end === this.#capacity) return;
    }
  }
}
