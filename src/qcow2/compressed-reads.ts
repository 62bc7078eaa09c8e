/**
 * Reads of one disk that meet compressed clusters.
 *
 * Where there are decompression threads, the clusters of a request but the first are posted to them
 * at once, and what its stream is likely to ask for next after those. The thread that answers the
 * request decompresses too: the first cluster, and then whichever nobody has begun. What others are
 * at is left for the end, when it is mostly there.
 */

import { Qcow2Error } from '../errors.ts';
import type { CompressedRange, ImageClusters } from './cluster-cache/image-clusters.ts';
import { RunKind } from './mapping.ts';
import type { Mapping } from './mapping.ts';

/** A run of bytes of the disk. */
interface Run {
  offset: number;
  length: number;
}

/** A part of a request that another thread was decompressing. */
interface Deferred extends CompressedRange {
  start: number;
  length: number;
  inCluster: number;
}

/** See the head of this file. */
export class CompressedReads {
  readonly #clusters: ImageClusters;
  /** For looking ahead; not the one that the request itself uses. */
  readonly #mapping: Mapping;
  /** Tells the disks of an image apart. */
  readonly #disk: number;
  #deferred: Deferred[] = [];

  constructor(clusters: ImageClusters, mapping: Mapping, disk: number) {
    this.#clusters = clusters;
    this.#mapping = mapping;
    this.#disk = disk;
  }

  /**
   * Begins with a request that has met its first compressed cluster.
   * @param from where what comes after that cluster starts
   * @param size bytes of the disk
   */
  begin({ offset, length }: Run, from: number, size: number): void {
    if (this.#deferred.length > 0) this.#deferred = [];
    const clusters = this.#clusters;
    if (!clusters.canPost) return;
    const { streams } = clusters.cache!;
    streams.note({ image: clusters.image, disk: this.#disk, offset, length });
    const { from: next, to, stride, stream, partLength } = streams;
    try {
      if (from < offset + length && !this.#post(from, offset + length, -1)) return;
      if (stream < 0) return;
      if (stride === 0) {
        this.#post(next, Math.min(to, size), stream);
        return;
      }
      for (let at = next; stride > 0 ? at <= to : at >= to; at += stride) {
        if (at < 0 || at >= size) return;
        if (!this.#post(at, Math.min(at + partLength, size), stream)) return;
      }
    } catch (error) {
      // Whoever needs what cannot be looked up is told then.
      if (!(error instanceof Qcow2Error)) throw error;
    }
  }

  /**
   * Fills a part of the request's target from a compressed cluster; perhaps not before {@link finish}.
   * @param inCluster where in the cluster the part starts
   * @throws {Qcow2Error} `CORRUPT` or `TRUNCATED` where the cluster is damaged
   */
  read(
    target: Uint8Array,
    { start, length, inCluster }: Omit<Deferred, keyof CompressedRange>,
    range: CompressedRange,
  ): void {
    const isAll = length === target.length;
    const part = isAll ? target : target.subarray(start, start + length);
    if (this.#clusters.read(part, inCluster, range, isAll)) return;
    const { hostOffset, compressedLength } = range;
    this.#deferred.push({ start, length, inCluster, hostOffset, compressedLength });
  }

  /**
   * Fills what other threads were decompressing.
   * @throws {Qcow2Error} as {@link read}
   */
  finish(target: Uint8Array): void {
    if (this.#deferred.length === 0) return;
    const deferred = this.#deferred;
    this.#deferred = [];
    for (const part of deferred) {
      const { start, length, inCluster } = part;
      this.#clusters.read(target.subarray(start, start + length), inCluster, part, true);
    }
  }

  /** Posts the compressed clusters of a range; false if there is no room for more. */
  #post(from: number, to: number, stream: number): boolean {
    const mapping = this.#mapping;
    for (let at = from; at < to; at += mapping.length) {
      mapping.lookup(at, to - at);
      if (mapping.kind !== RunKind.COMPRESSED) continue;
      if (!this.#clusters.post(mapping, stream)) return false;
    }
    return true;
  }
}
