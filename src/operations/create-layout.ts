/**
 * Where everything of a new image is: header, refcounts, L1 table, and with preallocation L2 tables
 * and data, in QEMU's order. Nothing is written here.
 */

import { alignUp } from '../util/bytes.ts';
import { PlannedClusters } from './create-clusters.ts';

/** What a new image is laid out for. */
export interface LayoutRequest {
  /** Bytes. */
  clusterSize: number;
  /** Refcounts have 2^refcountOrder bits. */
  refcountOrder: number;
  /** Bytes of an L2 entry: 8 or 16. */
  l2EntrySize: 8 | 16;
  /** Bytes of the disk. */
  size: number;
  /** How clusters of the disk are given a place: not, as they come, or all in one piece. */
  clusters: 'none' | 'mapped' | 'reserved';
  /** Whether the clusters of the disk are in another file, where guest and host offset are equal. */
  hasDataFile: boolean;
}

/** Clusters of the disk that follow one another in the file too; all numbers are clusters. */
export interface DataRun {
  guest: number;
  host: number;
  count: number;
}

/** Where everything of a new image is; places and counts are clusters, unless they say bytes. */
export interface ImageLayout {
  clusters: PlannedClusters;
  /** Entries of the L1 table; none has no table. */
  l1Size: number;
  l1Table: number;
  /** L2 tables by their index in the L1 table. */
  l2Tables: ReadonlyMap<number, number>;
  /** In the order of the disk. */
  data: readonly DataRun[];
  /** The place for data that was reserved in one piece. */
  reserved: { start: number; count: number };
  /** Bytes that the file must have at least, so that all data lies in it. */
  dataEndBytes: number;
}

/** Bytes of an L2 table that QEMU maps clusters in at a time. */
const SLICE_BYTES = 65_536;
/** Bytes that QEMU preallocates in one request. */
const REQUEST_BYTES = 2 ** 31 - 1;

/** Bytes of the disk that get a place: what is allocated at a time is a cluster or a subcluster. */
export function allocatedSize({
  size,
  clusterSize,
  l2EntrySize,
}: Pick<LayoutRequest, 'size' | 'clusterSize' | 'l2EntrySize'>): number {
  return alignUp(size, l2EntrySize === 16 ? clusterSize / 32 : clusterSize);
}

/**
 * Lays out a new image.
 * @throws {Qcow2Error} `TOO_LARGE` if its refcount table would be too large
 */
export function layOutImage(request: LayoutRequest): ImageLayout {
  const { clusterSize, l2EntrySize, size } = request;
  const isPlaced = request.clusters !== 'none' && !request.hasDataFile;
  const clusters = new PlannedClusters(request, isPlaced ? Math.ceil(size / clusterSize) : 0);
  const l1Size = Math.ceil(size / (clusterSize * (clusterSize / l2EntrySize)));
  const l1Table = l1Size > 0 ? clusters.allocate(Math.ceil((l1Size * 8) / clusterSize)) : 0;
  const mapping = new PlannedMapping(clusters, request);
  if (request.clusters === 'mapped' || (request.clusters === 'reserved' && request.hasDataFile)) {
    mapping.map();
  } else if (request.clusters === 'reserved') {
    mapping.reserve();
  }
  const { l2Tables, data, reserved, dataEndBytes } = mapping;
  return { clusters, l1Size, l1Table, l2Tables, data, reserved, dataEndBytes };
}

class PlannedMapping {
  readonly l2Tables = new Map<number, number>();
  readonly data: DataRun[] = [];
  reserved = { start: 0, count: 0 };
  dataEndBytes = 0;
  readonly #clusters: PlannedClusters;
  readonly #clusterSize: number;
  readonly #allocatedSize: number;
  readonly #l2Entries: number;
  readonly #sliceEntries: number;
  readonly #requestClusters: number;
  readonly #total: number;
  readonly #hasDataFile: boolean;

  constructor(
    clusters: PlannedClusters,
    { clusterSize, l2EntrySize, size, hasDataFile }: LayoutRequest,
  ) {
    this.#clusters = clusters;
    this.#clusterSize = clusterSize;
    this.#allocatedSize = allocatedSize({ size, clusterSize, l2EntrySize });
    this.#l2Entries = clusterSize / l2EntrySize;
    this.#sliceEntries = Math.min(clusterSize, SLICE_BYTES) / l2EntrySize;
    this.#requestClusters = Math.floor(REQUEST_BYTES / clusterSize);
    this.#total = alignUp(size, clusterSize) / clusterSize;
    this.#hasDataFile = hasDataFile;
  }

  /** Gives each cluster of the disk a place, a slice of an L2 table at a time. */
  map(): void {
    for (let guest = 0; guest < this.#total;) {
      const end = Math.min(guest + this.#requestClusters, this.#total);
      guest = this.#mapRequest(guest, end);
    }
  }

  /** Gives all clusters of the disk a place in one piece. */
  reserve(): void {
    const count = this.#total;
    const l2Tables = Math.ceil(count / this.#l2Entries) + 1;
    const start = this.#clusters.reserve(count + l2Tables);
    this.#clusters.allocateAt(start, count);
    this.reserved = { start, count };
    this.dataEndBytes = (start + count) * this.#clusterSize;
    for (let guest = 0; guest < count; guest += this.#l2Entries) this.#ensureL2Table(guest);
    this.data.push({ guest: 0, host: start, count });
  }

  /** Maps clusters as long as they follow one another. @returns the first that is left */
  #mapRequest(start: number, end: number): number {
    let guest = start;
    let next: number | undefined;
    while (guest < end) {
      const slice = this.#sliceEntries - (guest % this.#sliceEntries);
      let count = Math.min(end - guest, slice);
      this.#ensureL2Table(guest);
      let host = next ?? guest;
      if (!this.#hasDataFile) {
        if (next === undefined) host = this.#clusters.allocate(count);
        else count = this.#clusters.allocateAt(next, count);
        if (count === 0) break;
      }
      this.#add({ guest, host, count });
      guest += count;
      next = host + count;
    }
    if (this.#hasDataFile) return guest;
    const pastDisk = guest * this.#clusterSize - this.#allocatedSize;
    this.dataEndBytes = (next ?? 0) * this.#clusterSize - Math.max(pastDisk, 0);
    return guest;
  }

  #ensureL2Table(guest: number): void {
    const index = Math.floor(guest / this.#l2Entries);
    if (!this.l2Tables.has(index)) this.l2Tables.set(index, this.#clusters.allocate(1));
  }

  #add(run: DataRun): void {
    const last = this.data.at(-1);
    if (last !== undefined && last.host + last.count === run.host) last.count += run.count;
    else this.data.push(run);
  }
}
