/**
 * Threads that serve clients of a read-only NBD server beside its own thread.
 *
 * All clients come to the server's own thread, which hands connections to others by a second
 * descriptor: so one place counts them, and they spread as it wants. Unless a number of threads is
 * asked for, none is started before the own thread has been busy for a while with several clients at
 * once, and a core was idle; some of the clients move to it then, between two of their requests. A
 * client that is alone, or one of many that rest, costs no thread.
 */

import { once } from 'node:events';
import { closeSync } from 'node:fs';
import type { Socket } from 'node:net';
import { Worker } from 'node:worker_threads';
import type { ClientThreads, ThreadHost } from '../export/nbd/client-threads.ts';
import type { Connection, MovedClient } from '../export/nbd/connection.ts';
import type { ImageSpec } from '../export/nbd/image-set.ts';
import { PoolUsage } from '../export/nbd/pool-usage.ts';
import { IdleCores } from '../host/idle-cores.ts';
import { canCopyDescriptors, copyDescriptor } from '../host/socket-copy.ts';
import type { SharedClusterCache } from '../qcow2/cluster-cache/shared-cluster-cache.ts';
import type { NbdThreadData, NbdThreadMessage, NbdThreadRequest } from './nbd-protocol.ts';
import { THREAD_LIMITS } from './thread-count.ts';
import { fromWireError } from './wire-error.ts';

/** How often the own thread's load is looked at, while it has several clients. */
const SAMPLE_MS = 50;
/** Samples in a row that have to be busy before something is done about it. */
const BUSY_SAMPLES = 5;
/** Share of the time that the own thread spends on requests, from which on it is busy. */
const BUSY_SHARE = 0.7;
/** Share that a client has to cause for it to count. */
const ACTIVE_SHARE = 0.1;
/** Cores that have to be idle meanwhile, for another thread to be of use. */
const IDLE_CORES = 0.5;
/** How long nothing else is done while clients are on their way to another thread. */
const MOVE_MS = 1000;
/** How long a thread may take to end once its clients have to be gone. */
const END_MS = 2000;

/** What {@link NbdThreads} are made of. */
export interface NbdThreadsOptions {
  /** How many, with the server's own; at least 2. */
  threads: number;
  images: readonly ImageSpec[];
  /** The one of the server's own images: other ones are not served. */
  fingerprint: string;
  /** Memory for what is counted of requests, with a row for each thread (default: nothing is). */
  stats?: SharedArrayBuffer | undefined;
  /** The cache that the server's own images use (default: each thread has its own). */
  clusterCache?: SharedClusterCache | undefined;
  /** Cores that have to be idle before a thread is started unasked (default 0.5). */
  idleCores?: number;
}

interface Thread {
  readonly worker: Worker;
  readonly row: number;
  isReady: boolean;
  /** By name; with the descriptor, while that is not the thread's to close. */
  readonly clients: Map<string, number | undefined>;
  /** Settles once it is ready, or has ended. */
  readonly settled: Promise<void>;
  readonly ended: Promise<unknown>;
}

/** See the head of this file. */
export class NbdThreads implements ClientThreads {
  readonly most: number;
  readonly #options: NbdThreadsOptions;
  /** Those that have not ended. */
  readonly #threads = new Set<Thread>();
  #host: ThreadHost | undefined;
  /** How many have ever been started: one that ends is not replaced. */
  #started = 0;
  #isClosing = false;
  #timer: NodeJS.Timeout | undefined;
  #busySamples = 0;
  #sampledAt = 0;
  #idle: IdleCores | undefined;
  #movingUntil = 0;
  /** What was seen of the own clients' {@link Connection.busyMs}. */
  #seen = new Map<Connection, number>();

  constructor(options: NbdThreadsOptions) {
    this.most = options.threads;
    this.#options = options;
  }

  get clientCount(): number {
    let count = 0;
    for (const { clients } of this.#threads) count += clients.size;
    return count;
  }

  start(host: ThreadHost): void {
    this.#host = host;
  }

  /** Starts all threads now; returns once they serve, or could not be started. */
  async startAll(): Promise<void> {
    this.#startThreads(this.most);
    await Promise.all([...this.#threads].map(({ settled }) => settled));
  }

  take(socket: Socket, name: string): boolean {
    const thread = this.#leastLoaded();
    if (thread === undefined || this.#host!.clients.size <= thread.clients.size) return false;
    const descriptor = copyDescriptor(socket);
    if (descriptor === undefined) return false;
    socket.on('error', () => undefined);
    // The connection itself stays open: by the other descriptor.
    socket.destroy();
    this.#hand(thread, { kind: 'client', name, descriptor });
    return true;
  }

  watch(): void {
    if (this.#timer !== undefined || this.#isClosing || this.#host!.clients.size < 2) return;
    this.#sampledAt = performance.now();
    this.#seen = new Map([...this.#host!.clients.connections].map((each) => [each, each.busyMs]));
    this.#timer = setInterval(() => this.#sample(), SAMPLE_MS).unref();
  }

  async close(graceMs: number): Promise<void> {
    this.#isClosing = true;
    this.#stopWatching();
    await Promise.all(
      [...this.#threads].map(async ({ worker, ended }) => {
        worker.postMessage({ kind: 'close', graceMs } satisfies NbdThreadRequest);
        const timer = setTimeout(() => void worker.terminate(), graceMs + END_MS);
        await ended;
        clearTimeout(timer);
      }),
    );
  }

  #stopWatching(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#busySamples = 0;
    this.#seen.clear();
  }

  /** Looks at what the own thread has been doing, and gets help if that is too much. */
  #sample(): void {
    const { clients } = this.#host!;
    if (clients.size < 2) {
      this.#stopWatching();
      return;
    }
    const now = performance.now();
    const elapsed = now - this.#sampledAt;
    const active: Connection[] = [];
    const seen = new Map<Connection, number>();
    let busyMs = 0;
    for (const connection of clients.connections) {
      const share = connection.busyMs - (this.#seen.get(connection) ?? 0);
      seen.set(connection, connection.busyMs);
      busyMs += share;
      if (share > ACTIVE_SHARE * elapsed && connection.isMovable) active.push(connection);
    }
    this.#seen = seen;
    this.#sampledAt = now;
    const isBusy = busyMs > BUSY_SHARE * elapsed && active.length >= 2;
    this.#busySamples = isBusy ? this.#busySamples + 1 : 0;
    if (this.#busySamples === 1) this.#idle = new IdleCores();
    if (this.#busySamples < BUSY_SAMPLES || now < this.#movingUntil) return;
    this.#busySamples = 0;
    if (this.#idle!.average < (this.#options.idleCores ?? IDLE_CORES)) return;
    if (!this.#share(active)) this.#startThreads(active.length - 1);
  }

  /** Moves clients to threads that have fewer; false if there are none. */
  #share(active: readonly Connection[]): boolean {
    const { clients } = this.#host!;
    let remaining = clients.size;
    const loads = new Map<Thread, number>();
    for (const thread of this.#threads) if (thread.isReady) loads.set(thread, thread.clients.size);
    // One at least stays: the own thread is there anyway.
    for (const connection of active.slice(1)) {
      const [thread, load] = [...loads].sort(([, a], [, b]) => a - b)[0] ?? [];
      if (thread === undefined || load === undefined || load + 1 >= remaining) break;
      clients.move(connection, (client, name) => this.#handMoved(thread, client, name));
      loads.set(thread, load + 1);
      remaining--;
    }
    if (remaining === clients.size) return false;
    this.#movingUntil = performance.now() + MOVE_MS;
    return true;
  }

  #handMoved(chosen: Thread, moved: MovedClient, name: string): void {
    const { descriptor } = moved;
    // It may have ended since it was chosen.
    const thread = this.#threads.has(chosen) ? chosen : this.#leastLoaded();
    if (thread !== undefined) {
      this.#hand(thread, { kind: 'client', name, descriptor, moved });
      return;
    }
    closeSync(descriptor);
    this.#host!.onGone(name);
  }

  #hand(thread: Thread, request: NbdThreadRequest & { kind: 'client' }): void {
    thread.clients.set(request.name, request.descriptor);
    thread.worker.postMessage(request);
  }

  #leastLoaded(): Thread | undefined {
    if (this.#isClosing) return undefined;
    let least: Thread | undefined;
    for (const thread of this.#threads) {
      if (!thread.isReady) continue;
      if (least === undefined || thread.clients.size < least.clients.size) least = thread;
    }
    return least;
  }

  /** Starts so many threads, if there are not too many already, and none that is just starting. */
  #startThreads(count: number): void {
    // Without koffi, or Linux, no client could be handed to them.
    if (this.#isClosing || !canCopyDescriptors()) return;
    if ([...this.#threads].some(({ isReady }) => !isReady)) return;
    const last = Math.min(this.#started + count, this.most - 1);
    while (this.#started < last) this.#threads.add(this.#startThread(++this.#started));
  }

  #startThread(row: number): Thread {
    const { images, fingerprint, clusterCache, stats } = this.#options;
    const { usage, handshakeTimeoutMs, idleTimeoutMs, tls, warn } = this.#host!;
    const cacheOwner = clusterCache?.newOwner();
    const data: NbdThreadData = {
      images,
      fingerprint,
      clusterCache: clusterCache?.buffer,
      cacheOwner,
      usage,
      row,
      handshakeTimeoutMs,
      idleTimeoutMs,
      stats,
      tls,
    };
    // No options of the process: `--input-type`, for one, keeps a thread from loading a file.
    const worker = new Worker(workerUrl(), {
      workerData: data,
      resourceLimits: THREAD_LIMITS,
      execArgv: [],
      // Ours would become a stream of Node's, and non-blocking for others who have it.
      stdout: true,
      stderr: true,
    });
    const ended = once(worker, 'exit').catch(() => undefined);
    let settle = (): void => undefined;
    const settled = new Promise<void>((resolve) => (settle = resolve));
    const thread: Thread = { worker, row, isReady: false, clients: new Map(), settled, ended };
    let reason: string | undefined;
    worker.on('message', (message: NbdThreadMessage) => {
      if (message.kind === 'ready') {
        thread.isReady = true;
        settle();
      } else if (message.kind === 'failed') {
        reason = fromWireError(message.error).message;
      } else this.#heed(thread, message);
    });
    worker.on('error', (error) => (reason = error.message));
    worker.on('exit', () => {
      settle();
      const isMissed = thread.clients.size > 0 || !this.#isClosing;
      if (isMissed) warn(this.#describeEnd(thread, reason));
      this.#forget(thread);
      if (cacheOwner !== undefined) clusterCache?.releaseOwner(cacheOwner);
    });
    return thread;
  }

  #heed({ clients }: Thread, message: NbdThreadMessage): void {
    const { log, onGone } = this.#host!;
    if (message.kind === 'taken') clients.set(message.name, undefined);
    else if (message.kind === 'log') log(message.name, message.message, message.level);
    else if (message.kind === 'gone') {
      clients.delete(message.name);
      onGone(message.name);
    }
  }

  #describeEnd({ isReady, clients }: Thread, reason = 'it ended'): string {
    if (!isReady) return `another thread cannot help to serve: ${reason}`;
    const { size } = clients;
    const lost = size === 0 ? '' : `, and ${size} ${size === 1 ? 'client' : 'clients'} with it`;
    return `a thread that helped to serve is gone${lost}: ${reason}`;
  }

  /** Tidies up after a thread that has ended. What it had opened itself is closed. */
  #forget(thread: Thread): void {
    this.#threads.delete(thread);
    const { usage, onGone } = this.#host!;
    new PoolUsage(usage).clear(thread.row);
    const clients = [...thread.clients];
    thread.clients.clear();
    for (const [name, descriptor] of clients) {
      if (descriptor !== undefined) closeSync(descriptor);
      onGone(name);
    }
  }
}

/** The worker's bundle, which lies beside this one; from the sources, in `dist/`. */
function workerUrl(): URL {
  const isSource = import.meta.url.endsWith('.ts');
  return new URL(isSource ? '../../dist/nbd-clients.js' : './nbd-clients.js', import.meta.url);
}
