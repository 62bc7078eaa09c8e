/**
 * Host clusters given out and taken back.
 *
 * A cluster whose reference was removed stays as it is until the removal is in the file: the
 * commit (`commit.ts`) calls {@link ClusterAllocator.giveUpFreed} then. Space for compressed
 * clusters is given out by the byte, several to a host cluster, which is counted once for each.
 */

import type { BlockDevice } from '../device/block-device.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import type { ImageClusters } from './cluster-cache/image-clusters.ts';
import type { MetadataMap } from './metadata-map.ts';
import type { ClusterRun, RefcountStore } from './refcount-store.ts';

/** Clusters that may wait for a commit before one is due. */
const MAX_WAITING = 16 * 1024;

/** Why clusters become free, which decides whether their space goes back to the host. */
export type FreeReason = 'request' | 'snapshot' | 'other';

/** Which freed clusters are given back to the host filesystem as holes (QEMU's pass-discard). */
export interface PassDiscard {
  /** Those of `discard` and unmapping `writeZeroes` (default true). */
  request?: boolean | undefined;
  /** Those of deleted and reverted snapshots (default true). */
  snapshot?: boolean | undefined;
  /** Those of clusters that were replaced by others (default false: they are soon used again). */
  other?: boolean | undefined;
}

/** What a {@link ClusterAllocator} works on. */
export interface AllocatorParts {
  header: Qcow2Header;
  file: BlockDevice;
  /** Where data clusters are. */
  dataFile: BlockDevice;
  refcounts: RefcountStore;
  metadata: MetadataMap;
  /** Decompressed clusters by their host offset. */
  clusters: ImageClusters;
  passDiscard: PassDiscard;
}

/** Gives host clusters out and takes them back: see the head of this file. */
export class ClusterAllocator {
  readonly #parts: AllocatorParts;
  readonly #clusterSize: number;
  /** Clusters whose references are gone in memory, with the reason. */
  readonly #freed: (ClusterRun & { reason: FreeReason })[] = [];
  #freedCount = 0;
  /** Ranges of the external data file that hold nothing any more. */
  #freedData: { offset: number; length: number }[] = [];
  /** Where the next compressed cluster goes: inside a cluster that has others; or undefined. */
  #nextCompressed: number | undefined;

  constructor(parts: AllocatorParts) {
    this.#parts = parts;
    this.#clusterSize = parts.header.clusterSize;
  }

  /** Whether so many clusters wait to be free that a commit is due. */
  get hasManyWaiting(): boolean {
    return this.#freedCount > MAX_WAITING || this.#freedData.length > MAX_WAITING;
  }

  /**
   * Allocates up to `maxClusters` neighbouring clusters for data.
   * @throws {Qcow2Error} `HOST`, `TOO_LARGE` or `CORRUPT`
   */
  allocateRun(maxClusters: number): ClusterRun {
    return this.#parts.refcounts.allocateRun(maxClusters);
  }

  /**
   * Allocates exactly `count` neighbouring clusters, for a table.
   * @returns the host offset of the first
   * @throws {Qcow2Error} as {@link allocateRun}
   */
  allocateContiguous(count: number): number {
    return this.#parts.refcounts.allocateContiguous(count);
  }

  /** Takes back clusters that were allocated and never pointed at. */
  release(run: ClusterRun): void {
    this.#parts.refcounts.release(run);
  }

  /** Gives clusters up, once the commit has brought the removal of their reference to the file. */
  free({ offset, count }: ClusterRun, reason: FreeReason = 'other'): void {
    this.#freedCount += count;
    // Neighbours together: emptying a disk gives up millions.
    const last = this.#freed.at(-1);
    const isNext =
      last?.reason === reason && last.offset + last.count * this.#clusterSize === offset;
    if (isNext) last.count += count;
    else this.#freed.push({ offset, count, reason });
  }

  /** Gives up the host clusters that a compressed cluster touches. */
  freeCompressed(offset: number, length: number): void {
    const first = Math.floor(offset / this.#clusterSize);
    const last = Math.floor((offset + length - 1) / this.#clusterSize);
    this.#parts.clusters.delete(offset);
    this.free({ offset: first * this.#clusterSize, count: last - first + 1 });
  }

  /** Lets the host free a range of the external data file, after the next commit. */
  freeData(offset: number, length: number): void {
    if (!(this.#parts.passDiscard.request ?? true)) return;
    const last = this.#freedData.at(-1);
    if (last !== undefined && last.offset + last.length === offset) last.length += length;
    else this.#freedData.push({ offset, length });
  }

  /** Tells that a range of the external data file is about to hold something again. */
  keepData(offset: number, length: number): void {
    if (this.#freedData.length === 0) return;
    const end = offset + length;
    this.#freedData = this.#freedData.flatMap((freed) => {
      const freedEnd = freed.offset + freed.length;
      const before = { offset: freed.offset, length: Math.min(freedEnd, offset) - freed.offset };
      const after = { offset: Math.max(freed.offset, end), length: 0 };
      after.length = freedEnd - after.offset;
      return [before, after].filter((rest) => rest.length > 0);
    });
  }

  /**
   * Allocates `length` bytes, at most a cluster, for compressed data.
   * @returns their host offset, not aligned
   * @throws {Qcow2Error} as {@link allocateRun}
   */
  allocateBytes(length: number): number {
    const { refcounts } = this.#parts;
    const clusterSize = this.#clusterSize;
    const next = this.#nextCompressed;
    if (next !== undefined) {
      const cluster = Math.floor(next / clusterSize);
      const room = (cluster + 1) * clusterSize - next;
      const canShare = refcounts.get(cluster) < refcounts.maxRefcount;
      if (canShare && length <= room) return this.#takeBytes(next, length);
      if (canShare) {
        const run = refcounts.allocateRun(1);
        if (run.offset === (cluster + 1) * clusterSize) return this.#takeBytes(next, length);
        return this.#startCompressed(run.offset, length);
      }
    }
    return this.#startCompressed(refcounts.allocateRun(1).offset, length);
  }

  /** Takes back the bytes of {@link allocateBytes} that were never pointed at. */
  releaseBytes(offset: number, length: number): void {
    const first = Math.floor(offset / this.#clusterSize);
    const last = Math.floor((offset + length - 1) / this.#clusterSize);
    for (let cluster = first; cluster <= last; cluster++) this.#lower(cluster);
    this.#nextCompressed = undefined;
  }

  /** Starts a new cluster for the next compressed data: the one before may have been freed. */
  startNewCompressed(): void {
    this.#nextCompressed = undefined;
  }

  /** Lowers the counts of all that was freed: for the commit, when no reference is left. */
  giveUpFreed(): void {
    const { file, dataFile, passDiscard } = this.#parts;
    while (this.#freed.length > 0) {
      const { offset, count, reason } = this.#freed.at(-1)!;
      const isPassed = passDiscard[reason] ?? reason !== 'other';
      // One cluster at a time comes off the list, so that an error loses track of none.
      const first = offset / this.#clusterSize;
      let hole = { offset, length: 0 };
      for (let done = 0; done < count; done++) {
        this.#freed.at(-1)!.offset += this.#clusterSize;
        this.#freed.at(-1)!.count--;
        this.#freedCount--;
        const isFree = this.#lower(first + done) === 0;
        if (isFree && isPassed) {
          hole.length += this.#clusterSize;
        } else if (hole.length > 0) {
          discardWithin(file, hole.offset, hole.length);
          hole = { offset: offset + (done + 1) * this.#clusterSize, length: 0 };
        } else {
          hole.offset = offset + (done + 1) * this.#clusterSize;
        }
      }
      this.#freed.pop();
      if (hole.length > 0) discardWithin(file, hole.offset, hole.length);
    }
    for (const { offset, length } of this.#freedData.splice(0)) {
      discardWithin(dataFile, offset, length);
    }
  }

  #takeBytes(offset: number, length: number): number {
    const { refcounts } = this.#parts;
    const clusterSize = this.#clusterSize;
    refcounts.add(Math.floor(offset / clusterSize), 1);
    this.#setNextCompressed(offset + length);
    return offset;
  }

  #startCompressed(offset: number, length: number): number {
    this.#setNextCompressed(offset + length);
    return offset;
  }

  #setNextCompressed(offset: number): void {
    this.#nextCompressed = offset % this.#clusterSize === 0 ? undefined : offset;
  }

  #lower(cluster: number): number {
    const { refcounts, metadata } = this.#parts;
    const count = refcounts.add(cluster, -1);
    if (count > 0) return count;
    const offset = cluster * this.#clusterSize;
    metadata.remove({ offset, length: this.#clusterSize });
    refcounts.noteFree(cluster);
    const next = this.#nextCompressed;
    if (next !== undefined && Math.floor(next / this.#clusterSize) === cluster) {
      this.#nextCompressed = undefined;
    }
    return count;
  }
}

function discardWithin(file: BlockDevice, offset: number, length: number): void {
  const end = Math.min(offset + length, file.size);
  if (end > offset) file.discard(offset, end - offset);
}
