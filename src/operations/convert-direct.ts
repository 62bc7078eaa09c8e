/**
 * Chunks of a source whose bytes lie as they are in a file of the host.
 *
 * They are read by Node's own pool of threads, while this thread looks at those that have arrived
 * and writes them. That needs no worker threads, which take as long to start as copying a hundred
 * megabytes. Chunks that are in several pieces, or compressed, come from another source of chunks.
 */

import { read } from 'node:fs';
import type { BlockDevice, HostRange } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import { alignedBuffer } from '../host/aligned-buffer.ts';
import { ChunkPreparer } from './convert-chunk.ts';
import type { ChunkRequest, ChunkSpec } from './convert-chunk.ts';
import type { Chunk, ChunkSource } from './convert.ts';

/** What a {@link DirectChunks} is made of. */
export interface DirectChunksOptions {
  source: BlockDevice;
  /** Without compression. */
  spec: ChunkSpec;
  /** Where other chunks come from (default: this thread reads them). Asked for at the first one. */
  others?: { depth: number; open: () => ChunkSource } | undefined;
}

/** Chunks in memory, one of which is read while the other is written: more would leave the cache. */
const DEPTH = 2;

/** See the head of this file. */
export class DirectChunks implements ChunkSource {
  readonly depth: number;
  readonly #source: BlockDevice;
  readonly #spec: ChunkSpec;
  readonly #preparer: ChunkPreparer;
  readonly #openOthers: (() => ChunkSource) | undefined;
  #others: ChunkSource | undefined;
  readonly #freeBuffers: Uint8Array[] = [];
  /** Buffers that there are. */
  #buffers = 0;
  /** Those who wait for a buffer, first come first served. */
  readonly #waiting: ((buffer: Uint8Array) => void)[] = [];

  constructor({ source, spec, others }: DirectChunksOptions) {
    this.depth = Math.max(DEPTH, others?.depth ?? 0);
    this.#source = source;
    this.#spec = spec;
    this.#preparer = new ChunkPreparer(source, spec);
    this.#openOthers = others?.open;
  }

  fetch(request: ChunkRequest): Chunk | Promise<Chunk> {
    const range = this.#rangeOf(request);
    if (range !== undefined) return this.#readAhead(request, range);
    if (this.#openOthers === undefined) return this.#readHere(request);
    this.#others ??= this.#openOthers();
    return this.#others.fetch(request);
  }

  #rangeOf({ offset, length }: ChunkRequest): HostRange | undefined {
    try {
      return this.#source.hostRange?.(offset, length);
    } catch (error) {
      // Reading meets it too, and knows what to do then.
      if (error instanceof Qcow2Error) return undefined;
      throw error;
    }
  }

  #readAhead(request: ChunkRequest, { descriptor, hostOffset }: HostRange): Promise<Chunk> {
    const promise = new Promise<Chunk>((resolve, reject) => {
      this.#withBuffer((bytes) => {
        const { length } = request;
        read(descriptor, bytes, 0, length, hostOffset, (error, count) => {
          try {
            // What could not be read is read again, for the error that belongs to it.
            const isRead = error === null && count === length;
            resolve(isRead ? this.#examine(request, bytes) : this.#prepare(request, bytes));
          } catch (failure) {
            const problem = failure as Error;
            reject(problem);
          }
        });
      });
    });
    // An error waits for its turn: those of chunks before it come first.
    promise.catch(() => undefined);
    return promise;
  }

  /** Has this thread read a chunk, when it has a buffer for it. */
  #readHere(request: ChunkRequest): Promise<Chunk> {
    const promise = new Promise<Chunk>((resolve, reject) => {
      this.#withBuffer((bytes) => {
        try {
          resolve(this.#prepare(request, bytes));
        } catch (failure) {
          const problem = failure as Error;
          reject(problem);
        }
      });
    });
    promise.catch(() => undefined);
    return promise;
  }

  #examine(request: ChunkRequest, bytes: Uint8Array): Chunk {
    const prepared = this.#preparer.examine(request, bytes);
    return { ...prepared, bytes, compressed: undefined, release: () => this.#giveBack(bytes) };
  }

  #prepare(request: ChunkRequest, bytes: Uint8Array): Chunk {
    const prepared = this.#preparer.prepare(request, bytes, undefined);
    return { ...prepared, bytes, compressed: undefined, release: () => this.#giveBack(bytes) };
  }

  /** Calls `use` with a buffer of its own, as soon as there is one. */
  #withBuffer(use: (buffer: Uint8Array) => void): void {
    const free = this.#freeBuffers.pop();
    if (free !== undefined) {
      use(free);
    } else if (this.#buffers < DEPTH) {
      this.#buffers++;
      use(alignedBuffer(this.#spec.chunkBytes));
    } else {
      this.#waiting.push(use);
    }
  }

  #giveBack(buffer: Uint8Array): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#freeBuffers.push(buffer);
    else next(buffer);
  }
}
