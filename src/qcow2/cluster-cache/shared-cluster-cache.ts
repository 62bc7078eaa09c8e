/**
 * Decompressed clusters, shared by all threads of a process that read the same images: one block of
 * shared memory, of a size that is given once and never exceeded.
 *
 * One thread creates it, and posts `buffer` to the others, which attach to it. Each opens its images
 * with the cache (`OpenImageOptions.clusterCache`). A cluster that several threads need is
 * decompressed by one of them while the others wait; and where there are decompression threads
 * (`worker/decompression.ts`), clusters that are about to be needed are decompressed by those.
 *
 * Nobody waits for ever for a thread that was ended in the middle of something: locks and slots that
 * it has are passed by after a while, and `releaseOwner` gives them back.
 */

import { totalmem } from 'node:os';
import { DEFAULT_CLUSTER_CACHE_BYTES, MAX_CLUSTER_CACHE_BYTES } from '../../limits.ts';
import { Counter, Counters } from './counters.ts';
import type { ClusterCacheCounters } from './counters.ts';
import { forgetImage, imageNumber, newImage } from './images.ts';
import { HeaderWord, planLayout, readLayout, writeLayout } from './layout.ts';
import { CacheMemory, newOwner } from './memory.ts';
import { ClusterPool } from './pool.ts';
import { JobQueue } from './queue.ts';
import { Streams } from './streams.ts';

export type { ClusterCacheCounters } from './counters.ts';

/** What a {@link SharedClusterCache} is made for. */
export interface ClusterCacheOptions {
  /** Most bytes that it takes, with all that belongs to it. */
  bytes: number;
  /** Cluster sizes of the images: each gets an equal part. Others are not cached. */
  clusterSizes: readonly number[];
}

/** See the head of this file. */
export class SharedClusterCache {
  /** The memory, to be posted to other threads. */
  readonly buffer: SharedArrayBuffer;
  /** The number of this thread; see {@link releaseOwner}. */
  readonly owner: number;
  readonly pools: readonly ClusterPool[];
  readonly queue: JobQueue;
  readonly streams: Streams;
  readonly counting: Counters;
  readonly #memory: CacheMemory;

  private constructor(buffer: SharedArrayBuffer, owner?: number) {
    const memory = new CacheMemory(buffer, owner);
    const layout = readLayout(memory.words);
    this.#memory = memory;
    this.buffer = buffer;
    this.owner = memory.owner;
    this.counting = new Counters(memory);
    const capacity = Math.min(
      ...layout.pools.map(({ sets, ways, clusterSize }) => sets * ways * clusterSize),
    );
    this.streams = new Streams(memory, Number.isFinite(capacity) ? capacity : 0);
    this.queue = new JobQueue(memory);
    const parts = { counters: this.counting, feedback: this.streams };
    this.pools = layout.pools.map((pool) => new ClusterPool(pool, memory, parts));
  }

  /** Makes a cache. Memory is taken from the host as it is used. */
  static create({ bytes, clusterSizes }: ClusterCacheOptions): SharedClusterCache {
    const layout = planLayout(Math.min(bytes, MAX_CLUSTER_CACHE_BYTES), clusterSizes);
    const buffer = new SharedArrayBuffer(layout.bytes);
    writeLayout(new Int32Array(buffer), layout);
    return new SharedClusterCache(buffer);
  }

  /**
   * Uses the cache that another thread made.
   * @param owner what {@link newOwner} gave for this thread (default: a new one)
   */
  static attach(buffer: SharedArrayBuffer, owner?: number): SharedClusterCache {
    return new SharedClusterCache(buffer, owner);
  }

  /** Totals of all threads since the cache was made. */
  counters(): ClusterCacheCounters {
    return this.counting.totals();
  }

  /** Bytes of slots that hold a cluster. */
  get usedBytes(): number {
    return this.pools.reduce((sum, pool) => sum + pool.occupied * pool.clusterSize, 0);
  }

  /** The slots for clusters of a size; undefined if the cache has none. */
  pool(clusterSize: number): ClusterPool | undefined {
    return this.pools.find((pool) => pool.clusterSize === clusterSize);
  }

  /** The pool and number in it of a slot of the queue. */
  locate(slot: number): { pool: ClusterPool; slot: number } | undefined {
    const pool = this.pools.find(({ firstSlot, slots }) => slot < firstSlot + slots);
    return pool && { pool, slot: slot - pool.firstSlot };
  }

  /** A number for a thread that is about to be started, for {@link attach}. */
  newOwner(): number {
    return newOwner(this.#memory.words);
  }

  /** Gives back what a thread had that has ended. Not for one that may still run. */
  releaseOwner(owner: number): void {
    const { words } = this.#memory;
    for (const lock of [
      HeaderWord.queueLock,
      HeaderWord.streamsLock,
      HeaderWord.imagesLock,
    ] as const) {
      Atomics.compareExchange(words, lock, owner, 0);
    }
    for (const pool of this.pools) pool.releaseOwner(owner);
  }

  /**
   * A number for an image, the same in all threads for the same name.
   * @param name changes whenever the file does; undefined for an image that is written
   */
  image(name: string | undefined): number {
    return name === undefined ? newImage(this.#memory) : imageNumber(this.#memory, name);
  }

  /** Has whoever opens an image next get another number for it. */
  forgetImage(image: number): void {
    forgetImage(this.#memory, image);
  }

  /** Decompression threads that are there. */
  get helpers(): number {
    return Atomics.load(this.#memory.words, HeaderWord.helpers);
  }

  /** Counts a decompression thread that has started, or one less with -1. */
  addHelper(change: 1 | -1): void {
    Atomics.add(this.#memory.words, HeaderWord.helpers, change);
  }

  /** Counts a cluster that a decompression thread has decompressed. */
  noteHelped(): void {
    this.counting.add(Counter.helped, 1);
  }

  /** Says that there is compressed data, so that decompression threads are worth starting. */
  wantHelpers(): void {
    const { words } = this.#memory;
    if (Atomics.load(words, HeaderWord.wanted) !== 0) return;
    Atomics.store(words, HeaderWord.wanted, 1);
    Atomics.notify(words, HeaderWord.wanted);
  }

  /** Settles once decompression threads are worth starting; does not keep the process alive. */
  async helpersWanted(): Promise<void> {
    const { words } = this.#memory;
    const atomics = Atomics as unknown as AtomicsWithWaitAsync;
    await atomics.waitAsync(words, HeaderWord.wanted, 0).value;
  }
}

/** What the types of this version of the language do not have. */
interface AtomicsWithWaitAsync {
  waitAsync(words: Int32Array, index: number, value: number): { value: Promise<string> | string };
}

/**
 * Bytes for the cache of a program that serves images: a 64th of the memory that the process may
 * have, 8 MiB at the least and 32 MiB at the most: with more, a server that several threads serve takes
 * more than 200 MiB.
 */
export function defaultCacheBytes(memoryBytes = availableMemory()): number {
  const share = Math.floor(memoryBytes / 64);
  return Math.max(
    DEFAULT_CLUSTER_CACHE_BYTES / 2,
    Math.min(share, 2 * DEFAULT_CLUSTER_CACHE_BYTES),
  );
}

/** Memory of the machine, or of the container. */
function availableMemory(): number {
  const constrained = process.constrainedMemory();
  return constrained > 0 ? Math.min(totalmem(), constrained) : totalmem();
}
