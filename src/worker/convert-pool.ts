/**
 * Threads that prepare the chunks of a conversion. Each has the images open for itself; chunks are
 * in memory that all threads share. The caller's own thread is one of them: it prepares a chunk
 * whenever the others have enough to do, and until they have started, which takes as long as
 * copying a hundred megabytes.
 */

import { MessageChannel, receiveMessageOnPort, Worker } from 'node:worker_threads';
import type { MessagePort } from 'node:worker_threads';
import { Qcow2Error } from '../errors.ts';
import type { BlockDevice } from '../device/block-device.ts';
import { ChunkPreparer } from '../operations/convert-chunk.ts';
import type { ChunkRequest, ChunkSpec, PreparedChunk } from '../operations/convert-chunk.ts';
import type { Chunk, ChunkSource } from '../operations/convert.ts';
import { assert } from '../util/assert.ts';
import { slotBytes, slotParts } from './convert-protocol.ts';
import type {
  ConvertInput,
  ConvertRequest,
  ConvertResponse,
  ConvertWorkerData,
} from './convert-protocol.ts';
import { fromWireError } from './wire-error.ts';

/** What a {@link ConvertPool} is made of. */
export interface ConvertPoolOptions {
  /** Number of threads, with the caller's if that has a `source`; at least one other is started. */
  threads: number;
  inputs: readonly ConvertInput[];
  spec: ChunkSpec;
  /** What the inputs are together, for the caller's thread (default: it prepares nothing). */
  source?: BlockDevice | undefined;
}

/** Chunks that another thread has at a time: one in work, and two to go on with. */
const CHUNKS_PER_THREAD = 3;
/** Chunks under way for each thread: those, and one that is done and waits for those before it. */
const SLOTS_PER_THREAD = 4;
/** Memory for chunks, where that leaves each thread one. */
const MAX_SLOTS_BYTES = 64 * 1024 * 1024;

/** How many threads a pool starts, so that the memory for chunks stays in bounds. */
function workerCount({ threads, spec, source }: ConvertPoolOptions): number {
  const wanted = source === undefined ? threads : threads - 1;
  const possible = Math.floor(MAX_SLOTS_BYTES / slotBytes(spec)) - 1;
  return Math.max(1, Math.min(wanted, possible));
}

/** Chunks that may be asked for of a pool before one is released. */
export function poolDepth(options: ConvertPoolOptions): number {
  const workers = workerCount(options);
  const possible = Math.floor(MAX_SLOTS_BYTES / slotBytes(options.spec));
  return Math.max(workers + 1, Math.min((workers + 1) * SLOTS_PER_THREAD, possible));
}

interface Pending {
  resolve: (chunk: Chunk) => void;
  reject: (error: Error) => void;
}

interface Thread {
  worker: Worker;
  port: MessagePort;
  /** Chunks that it has been asked for and not given yet. */
  load: number;
}

/** See the head of this file. Has to be closed. */
export class ConvertPool implements ChunkSource {
  readonly depth: number;
  readonly #spec: ChunkSpec;
  readonly #slots: readonly SharedArrayBuffer[];
  readonly #freeSlots: number[];
  readonly #threads: Thread[];
  /** By slot. */
  readonly #pending = new Map<number, Pending>();
  /** Number of threads that have started. Shared, so that it can be seen between two events. */
  readonly #started = new Int32Array(new SharedArrayBuffer(4));
  readonly #local: ChunkPreparer | undefined;
  #failure: Error | undefined;

  constructor(options: ConvertPoolOptions) {
    const { inputs, spec, source } = options;
    this.depth = poolDepth(options);
    this.#spec = spec;
    const slots = Array.from({ length: this.depth }, () => new SharedArrayBuffer(slotBytes(spec)));
    this.#slots = slots;
    this.#freeSlots = slots.map((_slot, index) => index);
    const data = { inputs, spec, slots, started: this.#started };
    if (source !== undefined) this.#local = new ChunkPreparer(source, spec);
    this.#threads = Array.from({ length: workerCount(options) }, () => this.#startThread(data));
  }

  fetch(request: ChunkRequest): Chunk | Promise<Chunk> {
    const slot = this.#freeSlots.pop();
    assert(slot !== undefined, 'no more chunks are asked for than there are slots');
    this.#receive();
    const thread = this.#threads.reduce((least, each) => (each.load < least.load ? each : least));
    const isBusy = thread.load >= CHUNKS_PER_THREAD || Atomics.load(this.#started, 0) === 0;
    const promise =
      this.#local !== undefined && isBusy
        ? this.#prepare(this.#local, request, slot)
        : this.#request(thread, request, slot);
    // An error waits for its turn: those of chunks before it come first.
    if (promise instanceof Promise) promise.catch(() => undefined);
    return promise;
  }

  /** Ends the threads. */
  async close(): Promise<void> {
    this.#failure ??= new Qcow2Error('CLOSED', 'the conversion has ended');
    await Promise.all(
      this.#threads.map(({ worker, port }) => {
        port.close();
        return worker.terminate();
      }),
    );
  }

  /** Has this thread prepare a chunk. */
  #prepare(local: ChunkPreparer, request: ChunkRequest, slot: number): Chunk | Promise<Chunk> {
    const { bytes, compressed } = slotParts(this.#slots[slot]!, this.#spec);
    try {
      return this.#chunk(slot, local.prepare(request, bytes, compressed));
    } catch (failure) {
      const error = failure as Error;
      return Promise.reject(error);
    }
  }

  /** Has another thread prepare a chunk. */
  #request(thread: Thread, { offset, length }: ChunkRequest, slot: number): Promise<Chunk> {
    const promise = new Promise<Chunk>((resolve, reject) => {
      if (this.#failure !== undefined) reject(this.#failure);
      this.#pending.set(slot, { resolve, reject });
    });
    thread.load++;
    const request: ConvertRequest = { slot, offset, length };
    thread.port.postMessage(request);
    return promise;
  }

  /** Takes in what threads have answered, without waiting for the event loop to bring it. */
  #receive(): void {
    for (const thread of this.#threads) {
      for (let next; (next = receiveMessageOnPort(thread.port)) !== undefined;) {
        this.#settle(thread, next.message as ConvertResponse);
      }
    }
  }

  #startThread(shared: Omit<ConvertWorkerData, 'port'>): Thread {
    const { port1: port, port2 } = new MessageChannel();
    const data: ConvertWorkerData = { ...shared, port: port2 };
    // No options of the process: `--input-type`, for one, keeps a thread from loading a file.
    const worker = new Worker(workerUrl(), {
      workerData: data,
      transferList: [port2],
      execArgv: [],
    });
    const thread: Thread = { worker, port, load: 0 };
    port.on('message', (response: ConvertResponse) => this.#settle(thread, response));
    worker.on('error', (error) => this.#fail(error));
    worker.on('exit', () => this.#fail(new Error('a thread of the conversion has ended')));
    return thread;
  }

  #settle(thread: Thread, response: ConvertResponse): void {
    thread.load--;
    const { slot } = response;
    const pending = this.#pending.get(slot);
    this.#pending.delete(slot);
    if (!response.ok) {
      pending?.reject(fromWireError(response.error));
      return;
    }
    pending?.resolve(this.#chunk(slot, response.prepared));
  }

  #chunk(slot: number, prepared: PreparedChunk): Chunk {
    const { bytes, compressed } = slotParts(this.#slots[slot]!, this.#spec);
    const release = (): void => {
      this.#freeSlots.push(slot);
    };
    return { ...prepared, bytes, compressed, release };
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    for (const { reject } of this.#pending.values()) reject(this.#failure);
    this.#pending.clear();
  }
}

/** The worker's bundle, which lies beside this one; from the sources, in `dist/`. */
function workerUrl(): URL {
  const isSource = import.meta.url.endsWith('.ts');
  return new URL(isSource ? '../../dist/convert.js' : './convert.js', import.meta.url);
}
