/**
 * Threads that decompress clusters before they are needed, for all threads of the process that read
 * images with one cluster cache. They know nothing of images: a job names an open file of the
 * process, a place in it, and a slot of the cache.
 *
 * They are started by the first compressed cluster that is read, which does not wait for them, and
 * sleep while there is nothing to do.
 */

import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import type { SharedClusterCache } from '../qcow2/cluster-cache/shared-cluster-cache.ts';

/** More gain little, and each takes some megabytes. */
export const MAX_DECOMPRESSION_THREADS = 8;

/** What such a thread is started with. */
export interface DecompressionWorkerData {
  buffer: SharedArrayBuffer;
  owner: number;
  /** Where it counts what it reads, if that is counted. */
  stats: StatsRow | undefined;
}

/** A row of the memory that `allocateStats` gives. */
export interface StatsRow {
  memory: SharedArrayBuffer;
  row: number;
}

/** See the head of this file. Belongs to a thread that does not block for long; has to be closed. */
export class DecompressionThreads {
  readonly #cache: SharedClusterCache;
  /** With what settles when it has ended. */
  readonly #workers = new Map<Worker, Promise<void>>();
  readonly #stats: StatsRow | undefined;
  #isClosed = false;

  /**
   * @param threads how many, once they are wanted (default: one for each core)
   * @param stats the first of {@link MAX_DECOMPRESSION_THREADS} rows for what they read (default: it
   * is not counted)
   */
  constructor(cache: SharedClusterCache, threads = availableParallelism(), stats?: StatsRow) {
    this.#cache = cache;
    this.#stats = stats;
    void this.#startWhenWanted(Math.min(threads, MAX_DECOMPRESSION_THREADS));
  }

  /** Ends the threads. Reading goes on without them. */
  async close(): Promise<void> {
    this.#isClosed = true;
    this.#cache.queue.end();
    // Not terminated: that would abort the process if a thread is loading a native module.
    await Promise.all(this.#workers.values());
  }

  async #startWhenWanted(threads: number): Promise<void> {
    if (threads < 1) return;
    await this.#cache.helpersWanted();
    if (this.#isClosed) return;
    for (let index = 0; index < threads; index++) this.#start(index);
  }

  #start(index: number): void {
    const cache = this.#cache;
    const owner = cache.newOwner();
    const stats = this.#stats && { ...this.#stats, row: this.#stats.row + index };
    const workerData: DecompressionWorkerData = { buffer: cache.buffer, owner, stats };
    // No options of the process: `--input-type`, for one, keeps a thread from loading a file.
    // Nor our standard output: as a stream of Node's it would become non-blocking, for whoever gave it
    // to us as well.
    const streams = { stdout: true, stderr: true };
    const worker = new Worker(workerUrl(), { workerData, execArgv: [], ...streams });
    let isRunning = false;
    worker.unref();
    worker.on('message', () => {
      isRunning = true;
      cache.addHelper(1);
    });
    // One that fails is missed by nobody: whoever needs a cluster decompresses it.
    worker.on('error', () => undefined);
    const ended = new Promise<void>((resolve) => {
      worker.on('exit', () => {
        this.#workers.delete(worker);
        if (isRunning) cache.addHelper(-1);
        cache.releaseOwner(owner);
        resolve();
      });
    });
    this.#workers.set(worker, ended);
  }
}

/** The worker's bundle, which lies beside this one; from the sources, in `dist/`. */
function workerUrl(): URL {
  const isSource = import.meta.url.endsWith('.ts');
  return new URL(isSource ? '../../dist/decompress.js' : './decompress.js', import.meta.url);
}
