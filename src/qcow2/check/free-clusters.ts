/** Host clusters that nothing refers to, for what a repair writes anew. */

import type { ReferenceCounts } from './reference-counts.ts';

/** Finds clusters that are free, and counts them once they are taken. */
export class FreeClusters {
  /** References, those to clusters that were taken included. */
  readonly counts: ReferenceCounts;
  /** The last cluster that was taken; -1 for none. */
  lastTaken = -1;
  /** Clusters that are not to be taken, though nothing is known to refer to them. */
  readonly #avoided = new Set<number>();
  #next = 1;
  #usedBlocks: Set<number> | undefined;
  #blockEntries = 0;

  constructor(counts: ReferenceCounts) {
    this.counts = counts;
  }

  /** Keeps the clusters from `first` to `last` from being taken. To be called before any is. */
  avoid(first: number, last: number): void {
    for (let cluster = first; cluster <= last; cluster++) this.#avoided.add(cluster);
  }

  /** Takes a run of free clusters, the first that is long enough, and returns its first one. */
  take(count: number): number {
    let first = this.#next;
    for (let cluster = first; cluster < first + count; cluster++) {
      if (this.#avoided.has(cluster) || this.counts.get(cluster) !== 0) first = cluster + 1;
    }
    for (let cluster = first; cluster < first + count; cluster++) {
      this.counts.add(cluster, 1);
      this.#noteUsed(cluster);
    }
    // Where one cluster was wanted, none before it is free.
    if (count === 1) this.#next = first + 1;
    this.lastTaken = Math.max(this.lastTaken, first + count - 1);
    return first;
  }

  /** Gives back a run that was taken. It is not taken again. */
  release(first: number, count: number): void {
    for (let cluster = first; cluster < first + count; cluster++) this.counts.clear(cluster);
    this.avoid(first, first + count - 1);
  }

  /** Indexes of the refcount blocks that have something to count, in order. */
  usedBlocks(blockEntries: number): number[] {
    if (this.#usedBlocks === undefined) {
      const used = new Set<number>();
      this.counts.forEachIn(0, this.counts.clusterCount, (cluster) => {
        used.add(Math.floor(cluster / blockEntries));
      });
      this.#usedBlocks = used;
      this.#blockEntries = blockEntries;
    }
    return [...this.#usedBlocks].sort((a, b) => a - b);
  }

  #noteUsed(cluster: number): void {
    this.#usedBlocks?.add(Math.floor(cluster / this.#blockEntries));
  }
}
