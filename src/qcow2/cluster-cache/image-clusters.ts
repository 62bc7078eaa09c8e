/**
 * The compressed clusters of one image's file: read through the cluster cache, and posted to the
 * decompression threads before they are needed, where there are such threads.
 */

import { fstatSync } from 'node:fs';
import type { ClusterDecoder } from '../../compression/codec.ts';
import { COMPRESSION_TYPES } from '../../compression/codec.ts';
import type { BlockDevice } from '../../device/block-device.ts';
import { FileDevice } from '../../device/file.ts';
import { Qcow2Error } from '../../errors.ts';
import type { Qcow2Header } from '../../format/qcow2/header.ts';
import { Counter } from './counters.ts';
import { Found, Posted } from './pool.ts';
import type { ClusterKey, ClusterPool, JobSource } from './pool.ts';
import { SharedClusterCache } from './shared-cluster-cache.ts';

/**
 * How long a read waits for another thread to decompress its cluster before it does that itself. A
 * cluster of 2 MiB takes about 6 ms; the thread may have to wait for a processor.
 */
const WAIT_MS = 100;

/** What {@link ImageClusters} works on. */
export interface ImageClustersParts {
  header: Qcow2Header;
  file: BlockDevice;
  /** The cache of the process, or how large one for this image is to be. */
  cache: SharedClusterCache | { bytes: number };
}

/** Where the compressed bytes of a cluster are. */
export interface CompressedRange {
  hostOffset: number;
  /** At most; the file may end before. */
  compressedLength: number;
}

/** See the head of this file. */
export class ImageClusters {
  readonly #header: Qcow2Header;
  readonly #file: BlockDevice;
  readonly #decoder: () => ClusterDecoder;
  #cache: SharedClusterCache | undefined;
  readonly #budgetBytes: number;
  #pool: ClusterPool | undefined;
  /** Compressed bytes of one cluster. Grows to the largest met. */
  #compressed = new Uint8Array(0);
  /** The last cluster that was read in part past the cache, and its host offset. */
  #own: Uint8Array | undefined;
  #ownOffset = -1;
  readonly #key: ClusterKey = { image: 0, hostOffset: 0, length: 0 };
  readonly #job: JobSource = { descriptor: -1, position: 0, compression: 0 };

  constructor(
    { header, file, cache }: ImageClustersParts,
    /** Amending can change it. */
    decoder: () => ClusterDecoder,
  ) {
    this.#header = header;
    this.#file = file;
    this.#decoder = decoder;
    this.#budgetBytes = cache instanceof SharedClusterCache ? 0 : cache.bytes;
    if (cache instanceof SharedClusterCache) this.#use(cache);
  }

  /** The cache, once there is one. */
  get cache(): SharedClusterCache | undefined {
    return this.#cache;
  }

  /** The image's number in the cache. */
  get image(): number {
    return this.#key.image;
  }

  /** Whether there are threads to post clusters to. Says that they are wanted, if not. */
  get canPost(): boolean {
    if (this.#cache === undefined || this.#pool === undefined) return false;
    if (this.#cache.helpers > 0) return this.#file instanceof FileDevice;
    this.#cache.wantHelpers();
    return false;
  }

  /** From now on uses this cache, which other threads may use as well. */
  share(cache: SharedClusterCache): void {
    this.#settle();
    this.#use(cache);
  }

  /**
   * Fills `target` with a part of a compressed cluster.
   *
   * @param mayWait otherwise nothing is done if another thread is decompressing the cluster
   * @returns whether it was filled
   * @throws {Qcow2Error} `CORRUPT` or `TRUNCATED` where the cluster is damaged
   */
  read(target: Uint8Array, inCluster: number, range: CompressedRange, mayWait: boolean): boolean {
    const key = this.#key;
    key.hostOffset = range.hostOffset;
    key.length = this.#storedLength(range);
    const pool = this.#pool ?? this.#createCache();
    const found = key.length <= 0 ? Found.NOTHING : (pool?.acquire(key) ?? Found.NOTHING);
    if (pool === undefined || found === Found.NOTHING) {
      this.#readPast(target, inCluster, range);
      return true;
    }
    const { slot } = pool;
    const counting = this.#cache!.counting;
    try {
      switch (found) {
        case Found.CLUSTER:
          break;
        case Found.ROOM:
          this.#fill(pool, slot, range);
          break;
        default:
          if (!pool.isFilled(slot)) {
            if (!mayWait) return false;
            counting.add(Counter.waits, 1);
            if (!pool.wait(slot, WAIT_MS)) {
              pool.giveUp(slot);
              this.#readPast(target, inCluster, range);
              return true;
            }
          }
      }
      const end = inCluster + target.length;
      const bytes = pool.bytes(slot);
      target.set(target.length === bytes.length ? bytes : bytes.subarray(inCluster, end));
      pool.used(slot, inCluster, end);
      return true;
    } finally {
      pool.release(slot);
    }
  }

  /**
   * Has another thread decompress a cluster that is about to be needed.
   * @param stream number of the stream that it is read ahead for; -1 if a request has come for it
   * @returns false if there is no room for more
   */
  post(range: CompressedRange, stream: number): boolean {
    const pool = this.#pool;
    const file = this.#file as FileDevice;
    const key = this.#key;
    key.hostOffset = range.hostOffset;
    key.length = this.#storedLength(range);
    if (pool === undefined || key.length <= 0) return false;
    const job = this.#job;
    job.descriptor = file.descriptor;
    job.position = (file.window?.offset ?? 0) + key.hostOffset;
    job.compression = COMPRESSION_TYPES.indexOf(this.#header.compressionType);
    const posted = pool.post(key, job, stream);
    if (posted !== Posted.YES) return posted === Posted.PRESENT;
    const { slot } = pool;
    if (this.#cache!.queue.push(pool.firstSlot + slot)) return true;
    pool.withdraw(slot);
    return false;
  }

  /** Forgets all clusters. */
  clear(): void {
    this.#ownOffset = -1;
    if (this.#cache === undefined) return;
    // What is there of the old number goes when its place is needed; nothing finds it.
    this.#settle();
    this.#key.image = this.#cache.image(undefined);
  }

  /** Forgets a cluster: its compressed bytes are about to be given up. */
  delete(hostOffset: number): void {
    if (hostOffset === this.#ownOffset) this.#ownOffset = -1;
    if (this.#pool !== undefined && !this.#pool.forget(this.#key.image, hostOffset)) this.clear();
  }

  /** Returns once no other thread reads from the image's file, which is about to be closed. */
  close(): void {
    this.#settle();
    this.#own = undefined;
    this.#ownOffset = -1;
  }

  #settle(): void {
    const file = this.#file;
    if (this.#cache === undefined || this.#pool === undefined) return;
    if (this.#cache.helpers === 0 || !(file instanceof FileDevice) || file.isClosed) return;
    // What a thread that hangs reads in the end may be another file by then.
    if (!this.#pool.quiesce(file.descriptor)) this.#cache.forgetImage(this.#key.image);
  }

  #createCache(): ClusterPool | undefined {
    if (this.#cache === undefined) {
      const { clusterSize } = this.#header;
      const bytes = this.#budgetBytes;
      this.#use(SharedClusterCache.create({ bytes, clusterSizes: [clusterSize] }));
    }
    return this.#pool;
  }

  #use(cache: SharedClusterCache): void {
    this.#cache = cache;
    this.#pool = cache.pool(this.#header.clusterSize);
    this.#key.image = cache.image(fileName(this.#file));
  }

  #fill(pool: ClusterPool, slot: number, range: CompressedRange): void {
    let isGood = false;
    try {
      this.#decompress(pool.bytes(slot), range);
      isGood = true;
    } finally {
      pool.filled(slot, isGood);
    }
  }

  /** Reads without the cache. */
  #readPast(target: Uint8Array, inCluster: number, range: CompressedRange): void {
    this.#cache?.counting.add(Counter.bypasses, 1);
    const { clusterSize } = this.#header;
    if (target.length === clusterSize) {
      this.#decompress(target, range);
      return;
    }
    const own = (this.#own ??= new Uint8Array(clusterSize));
    if (this.#ownOffset !== range.hostOffset) {
      this.#ownOffset = -1;
      this.#decompress(own, range);
      this.#ownOffset = range.hostOffset;
    }
    target.set(own.subarray(inCluster, inCluster + target.length));
  }

  /** The last sector of a file need not be whole. */
  #storedLength({ hostOffset, compressedLength }: CompressedRange): number {
    return Math.min(compressedLength, this.#file.size - hostOffset);
  }

  #decompress(target: Uint8Array, range: CompressedRange): void {
    const { hostOffset, compressedLength } = range;
    const file = this.#file;
    const length = this.#storedLength(range);
    if (length <= 0) {
      throw new Qcow2Error('TRUNCATED', `the file of ${file.size} bytes ends before it`, {
        structure: 'compressed cluster',
        offset: hostOffset,
        hint: 'the image was cut short: get the whole file',
      });
    }
    if (this.#compressed.length < length) this.#compressed = new Uint8Array(compressedLength);
    const input = this.#compressed.subarray(0, length);
    file.read(input, hostOffset);
    if (!this.#decoder()(input, target)) {
      throw new Qcow2Error(
        'CORRUPT',
        `it cannot be decompressed (${this.#header.compressionType})`,
        { structure: 'compressed cluster', offset: hostOffset },
      );
    }
  }
}

/** A name that changes whenever the file does; undefined where it may be written. */
function fileName(file: BlockDevice): string | undefined {
  if (!(file instanceof FileDevice) || !file.readOnly) return undefined;
  const { dev, ino, size, mtimeNs, ctimeNs } = fstatSync(file.descriptor, { bigint: true });
  const start = file.window?.offset ?? 0;
  return [dev, ino, start, size, mtimeNs, ctimeNs].map((each) => each.toString(36)).join(':');
}
