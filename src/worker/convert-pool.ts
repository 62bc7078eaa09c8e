/**
 * Threads that prepare the chunks of a conversion. Each has the images open for itself; chunks are
 * in memory that all threads share. Until the first thread has started, which takes as long as
 * copying a hundred megabytes, the caller's own thread prepares them.
 */

import { Worker } from 'node:worker_threads';
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
  /** Number of threads. */
  threads: number;
  inputs: readonly ConvertInput[];
  spec: ChunkSpec;
  /** What the inputs are together, for the caller's thread (default: it prepares nothing). */
  source?: BlockDevice | undefined;
}

/**
 * Chunks under way for each thread: one in work, one waiting, and one that is done and waits for
 * those before it.
 */
const SLOTS_PER_THREAD = 3;

interface Pending {
  resolve: (chunk: Chunk) => void;
  reject: (error: Error) => void;
}

interface Thread {
  worker: Worker;
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
  #local: ChunkPreparer | undefined;
  #failure: Error | undefined;

  constructor({ threads, inputs, spec, source }: ConvertPoolOptions) {
    this.depth = threads * SLOTS_PER_THREAD;
    this.#spec = spec;
    const slots = Array.from({ length: this.depth }, () => new SharedArrayBuffer(slotBytes(spec)));
    this.#slots = slots;
    this.#freeSlots = slots.map((_slot, index) => index);
    const data: ConvertWorkerData = { inputs, spec, slots, started: this.#started };
    if (source !== undefined) this.#local = new ChunkPreparer(source, spec);
    this.#threads = Array.from({ length: threads }, () => this.#startThread(data));
  }

  fetch({ offset, length }: ChunkRequest): Chunk | Promise<Chunk> {
    const slot = this.#freeSlots.pop();
    assert(slot !== undefined, 'no more chunks are asked for than there are slots');
    if (this.#local !== undefined) {
      if (Atomics.load(this.#started, 0) === 0) {
        const { bytes, compressed } = slotParts(this.#slots[slot]!, this.#spec);
        return this.#chunk(slot, this.#local.prepare({ offset, length }, bytes, compressed));
      }
      this.#local = undefined;
    }
    const promise = new Promise<Chunk>((resolve, reject) => {
      if (this.#failure !== undefined) reject(this.#failure);
      this.#pending.set(slot, { resolve, reject });
    });
    // An error waits for its turn: those of chunks before it come first.
    promise.catch(() => undefined);
    const thread = this.#threads.reduce((least, each) => (each.load < least.load ? each : least));
    thread.load++;
    const request: ConvertRequest = { slot, offset, length };
    thread.worker.postMessage(request);
    return promise;
  }

  /** Ends the threads. */
  async close(): Promise<void> {
    this.#failure ??= new Qcow2Error('CLOSED', 'the conversion has ended');
    await Promise.all(this.#threads.map(({ worker }) => worker.terminate()));
  }

  #startThread(data: ConvertWorkerData): Thread {
    // No options of the process: `--input-type`, for one, keeps a thread from loading a file.
    const worker = new Worker(workerUrl(), { workerData: data, execArgv: [] });
    const thread = { worker, load: 0 };
    worker.on('message', (response: ConvertResponse) => {
      thread.load--;
      this.#settle(response);
    });
    worker.on('error', (error) => this.#fail(error));
    worker.on('exit', () => this.#fail(new Error('a thread of the conversion has ended')));
    return thread;
  }

  #settle(response: ConvertResponse): void {
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
