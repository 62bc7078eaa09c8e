/**
 * How often each host cluster is referred to, counted in memory.
 *
 * Counts are kept in pages of 16-bit numbers. A page starts as a map of the few clusters of it
 * that are in use, so that a sparse file, however large, costs memory only for its references.
 */

/** Clusters of a page, as a power of two. */
export const PAGE_BITS = 15;
/** Clusters of a page. */
export const PAGE_CLUSTERS = 2 ** PAGE_BITS;
const PAGE_MASK = PAGE_CLUSTERS - 1;
/** Entries at which a map becomes an array. */
const MAX_MAP_ENTRIES = 64;
/** Counts from here on are in a map of their own. */
const LARGE = 0xffff;

/** Reference counts by cluster index. */
export class ReferenceCounts {
  /** Clusters that are looked at: those of the file, and those after it that are referred to. */
  clusterCount: number;
  /** Largest count that a refcount of this image can hold. */
  readonly maximum: number;
  /** Counts that may be stored in an array without {@link add}. */
  readonly directMaximum: number;
  /** Whether any cluster was counted twice. */
  hasShared = false;
  readonly #pages: (Uint16Array | Map<number, number> | undefined)[] = [];
  readonly #large = new Map<number, number>();

  constructor(clusterCount: number, refcountOrder: number) {
    this.clusterCount = clusterCount;
    this.maximum = 2 ** (2 ** refcountOrder) - 1;
    this.directMaximum = Math.min(this.maximum, LARGE - 1);
  }

  /** Whether there are counts that an array of 16-bit numbers does not hold. */
  get hasLarge(): boolean {
    return this.#large.size > 0;
  }

  /** The page as an array of counts, where it is one already. */
  densePage(pageIndex: number): Uint16Array | undefined {
    const page = this.#pages[pageIndex];
    return page instanceof Uint16Array ? page : undefined;
  }

  /** Whether something was counted in a page. */
  hasPage(pageIndex: number): boolean {
    return this.#pages[pageIndex] !== undefined;
  }

  /** Writes the counts of a page into an array of {@link PAGE_CLUSTERS} numbers. */
  copyPage(pageIndex: number, target: Uint16Array): void {
    const page = this.#pages[pageIndex];
    if (page instanceof Uint16Array) {
      target.set(page);
      return;
    }
    target.fill(0);
    for (const [index, count] of page ?? []) target[index] = count;
  }

  /** The count of a cluster. */
  get(cluster: number): number {
    const page = this.#pages[Math.floor(cluster / PAGE_CLUSTERS)];
    if (page === undefined) return 0;
    const index = cluster & PAGE_MASK;
    const count = (page instanceof Uint16Array ? page[index] : page.get(index)) ?? 0;
    return count === LARGE ? this.#large.get(cluster)! : count;
  }

  /** Calls `visit` with the clusters from `first` to before `end` that have a count, in order. */
  forEachIn(first: number, end: number, visit: (cluster: number, count: number) => void): void {
    const stop = Math.min(end, this.#pages.length * PAGE_CLUSTERS);
    for (let at = first; at < stop;) {
      const pageIndex = Math.floor(at / PAGE_CLUSTERS);
      const pageStart = pageIndex * PAGE_CLUSTERS;
      const pieceEnd = Math.min(stop, pageStart + PAGE_CLUSTERS);
      const page = this.#pages[pageIndex];
      if (page instanceof Uint16Array) {
        for (let cluster = at; cluster < pieceEnd; cluster++) {
          if (page[cluster - pageStart] !== 0) visit(cluster, this.get(cluster));
        }
      } else if (page !== undefined) {
        for (const index of [...page.keys()].sort((a, b) => a - b)) {
          const cluster = pageStart + index;
          const count = this.get(cluster);
          if (cluster >= at && cluster < pieceEnd && count !== 0) visit(cluster, count);
        }
      }
      at = pieceEnd;
    }
  }

  /** Sets the count of a cluster to zero. */
  clear(cluster: number): void {
    this.#set(cluster, 0);
  }

  /**
   * Counts references to a cluster.
   * @returns how many of them the refcounts of this image could not hold
   */
  add(cluster: number, weight: number): number {
    if (cluster >= this.clusterCount) this.clusterCount = cluster + 1;
    const page = this.#pages[Math.floor(cluster / PAGE_CLUSTERS)];
    if (page instanceof Uint16Array) {
      const index = cluster & PAGE_MASK;
      const sum = page[index]! + weight;
      if (sum <= this.directMaximum) {
        if (sum > 1) this.hasShared = true;
        page[index] = sum;
        return 0;
      }
    }
    const before = this.get(cluster);
    if (before !== 0 || weight > 1) this.hasShared = true;
    const after = Math.min(before + weight, this.maximum);
    this.#set(cluster, after);
    return before + weight - after;
  }

  /**
   * Sets the counts of the clusters from `first` to before `end`, which are in one page, if all of
   * them are zero so far.
   * @returns whether it was done
   */
  fill(first: number, end: number, weight: number): boolean {
    if (weight > this.directMaximum) return false;
    const pageIndex = Math.floor(first / PAGE_CLUSTERS);
    const from = first & PAGE_MASK;
    const to = from + end - first;
    let page = this.#pages[pageIndex];
    if (page === undefined && end - first > MAX_MAP_ENTRIES) {
      page = new Uint16Array(PAGE_CLUSTERS);
      this.#pages[pageIndex] = page;
    }
    if (!(page instanceof Uint16Array)) return false;
    let used = 0;
    for (let index = from; index < to; index++) used |= page[index]!;
    if (used !== 0) return false;
    page.fill(weight, from, to);
    if (weight > 1) this.hasShared = true;
    return true;
  }

  #set(cluster: number, count: number): void {
    const pageIndex = Math.floor(cluster / PAGE_CLUSTERS);
    const index = cluster & PAGE_MASK;
    if (count >= LARGE) this.#large.set(cluster, count);
    const stored = Math.min(count, LARGE);
    const page = this.#pages[pageIndex];
    if (page instanceof Uint16Array) {
      page[index] = stored;
    } else if (page === undefined) {
      this.#pages[pageIndex] = new Map([[index, stored]]);
    } else {
      page.set(index, stored);
      if (page.size > MAX_MAP_ENTRIES) {
        const dense = new Uint16Array(PAGE_CLUSTERS);
        for (const [at, value] of page) dense[at] = value;
        this.#pages[pageIndex] = dense;
      }
    }
  }
}
