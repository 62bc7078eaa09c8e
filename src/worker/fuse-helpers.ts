/**
 * Threads that answer requests of a read-only mount beside its worker.
 *
 * The worker alone waits for requests in the kernel. A helper sleeps on a number in shared memory until
 * the worker finds that requests come without a break, and calls it; then it takes requests from the
 * same queue, by a descriptor of its own, for as long as there are some. So one request at a time costs
 * what it costs with one thread, and the end of the mount always shows in the worker. Unless a number of
 * threads is asked for, helpers are started one by one, when the worker has been busy for a while and a
 * core was idle all the same.
 */

import { once } from 'node:events';
import { closeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { cloneFuseDevice } from '../host/fuse-clone.ts';
import { IdleCores } from '../host/idle-cores.ts';
import type { SharedClusterCache } from '../qcow2/cluster-cache/shared-cluster-cache.ts';
import { Control } from './fuse-request.ts';
import type { HelperInput, HelperMessage, MountRequest } from './fuse-request.ts';
import type { MountStatsMemory } from './mount-stats.ts';
import { THREAD_LIMITS } from './thread-count.ts';
import { fromWireError } from './wire-error.ts';

/** How long it is watched whether a core is idle, before a thread is started for a busy worker. */
const WATCH_MS = 200;
/** Cores that have to be idle meanwhile, for another thread to be of use. */
const IDLE_CORES = 0.5;
/** How long helpers may take to finish the requests that they have. */
const STOP_TIMEOUT_MS = 1500;

/** What {@link FuseHelpers} are made of. */
export interface FuseHelpersOptions {
  request: MountRequest;
  /** Of the connection; the caller's to close, after {@link FuseHelpers.stop}. */
  fd: number;
  control: SharedArrayBuffer;
  /** Where all threads count what they do: a row for the worker and each of these. */
  stats?: MountStatsMemory;
  /** The one of the worker's image: another one is not served. */
  fingerprint: string;
  /** What the worker's image uses. */
  clusterCache: SharedClusterCache;
  /** How many there may be. */
  most: number;
  /** A line for the log. */
  log: (line: string) => void;
}

/** See the head of this file. */
export class FuseHelpers {
  readonly #options: FuseHelpersOptions;
  readonly #words: Int32Array;
  readonly #running = new Map<Worker, Promise<unknown>>();
  /** How many have ever been started: one that ends is not replaced. */
  #started = 0;
  #isWatching = false;
  #isStopping = false;

  constructor(options: FuseHelpersOptions) {
    this.#options = options;
    this.#words = new Int32Array(options.control);
  }

  /** Starts all of them. */
  startAll(): void {
    while (this.#start());
  }

  /** Told that the worker has been busy: starts another one if there is a core for it. */
  async workerIsBusy(): Promise<void> {
    if (this.#isWatching || this.#started >= this.#options.most) return;
    this.#isWatching = true;
    const idle = new IdleCores();
    await sleep(WATCH_MS, undefined, { ref: false });
    this.#isWatching = false;
    if (idle.average >= IDLE_CORES) this.#start();
  }

  /** Ends them, with the requests that they have; returns once they have ended. */
  async stop(): Promise<void> {
    this.#isStopping = true;
    Atomics.store(this.#words, Control.stopHelpers, 1);
    Atomics.add(this.#words, Control.calls, 1);
    for (const word of [Control.stopHelpers, Control.calls]) Atomics.notify(this.#words, word);
    const timeout = sleep(STOP_TIMEOUT_MS, undefined, { ref: false });
    await Promise.race([timeout, Promise.all(this.#running.values())]);
  }

  /** Starts one; false if it cannot be, or there are enough. */
  #start(): boolean {
    const { request, fd, control, stats, fingerprint, clusterCache, most, log } = this.#options;
    if (this.#isStopping || this.#started >= most) return false;
    const clone = cloneFuseDevice(fd);
    if (clone === undefined) {
      this.#started = most;
      return false;
    }
    this.#started++;
    const cacheOwner = clusterCache.newOwner();
    const input: HelperInput = {
      request,
      control,
      ...(stats === undefined ? {} : { stats }),
      fd: clone,
      fingerprint,
      clusterCache: clusterCache.buffer,
      cacheOwner,
      row: this.#started,
    };
    const worker = new Worker(helperUrl(), {
      workerData: input,
      resourceLimits: THREAD_LIMITS,
      execArgv: [],
    });
    let reason: string | undefined;
    worker.on('message', ({ error }: HelperMessage) => (reason = fromWireError(error).message));
    worker.on('error', (error) => (reason = error.message));
    const ended = once(worker, 'exit')
      .catch(() => once(worker, 'exit'))
      .then(() => {
        this.#running.delete(worker);
        clusterCache.releaseOwner(cacheOwner);
        // What it has not answered fails now; nobody waits for ever.
        closeSync(clone);
        if (!this.#isStopping && reason !== undefined) log(`a thread less to serve: ${reason}`);
      });
    this.#running.set(worker, ended);
    return true;
  }
}

/** The bundle, which lies beside whichever bundle this code is in. */
function helperUrl(): URL {
  return new URL('./fuse-helper.js', import.meta.url);
}
