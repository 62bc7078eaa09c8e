/**
 * Makes one disk what another reads as.
 *
 * What the source knows to be zero is not read, and zeroes that turn up in the data are not written
 * where the output reads as zeroes anyway. Chunks of data may be prepared by several threads at a
 * time; they are written by one, in their order, so that the output is the same whatever the number
 * of threads.
 */

import { setTimeout as delay } from 'node:timers/promises';
import type { BlockDevice } from '../device/block-device.ts';
import { alignedBuffer } from '../host/aligned-buffer.ts';
import { ALL_ZERO, ChunkPreparer, INCOMPRESSIBLE } from './convert-chunk.ts';
import type { ChunkRequest, ChunkSpec, PreparedChunk, UnreadableRange } from './convert-chunk.ts';
import { cutRuns, planConversion } from './convert-plan.ts';
import type { PlannedRun, PlanOptions } from './convert-plan.ts';
import type { AsyncSteps, Progress } from './progress.ts';

/** What a conversion writes to. */
export interface ConvertTarget {
  /** Stores bytes, not all of them zero. */
  write(bytes: Uint8Array, offset: number): void;
  /** Stores a cluster that is compressed already. */
  writeCompressed(compressed: Uint8Array, offset: number): void;
  /** Makes a range read as zeroes, if it does not. */
  zero(offset: number, length: number): void;
}

/** A chunk that is ready to be written. */
export interface Chunk extends PreparedChunk {
  bytes: Uint8Array;
  compressed: Uint8Array | undefined;
  /** Gives the memory back. */
  release(): void;
}

/** Where chunks come from: this thread, or others. */
export interface ChunkSource {
  /** Chunks that may be asked for before one is released. */
  readonly depth: number;
  /** Has a chunk prepared. */
  fetch(request: ChunkRequest): Chunk | Promise<Chunk>;
}

/** Options of {@link convertSteps}. */
export interface ConvertOptions extends PlanOptions {
  spec: ChunkSpec;
  /** Prepares the chunks (default: this thread). */
  chunks?: ChunkSource | undefined;
  /** Most bytes to write in a second; 0 for any number (default). */
  bytesPerSecond?: number | undefined;
  /** Told of what could not be read, when salvaging. */
  onUnreadable?: ((range: UnreadableRange) => void) | undefined;
}

/** Something to be done to the output, in its turn. */
interface Task {
  run: PlannedRun;
  chunk: Chunk | Promise<Chunk> | undefined;
}

/** How long to sleep at a time, where the rate is limited. */
const SLEEP_MS = 50;

/**
 * Copies `source` to `target`, a step at a time.
 * @throws {Qcow2Error} if the source cannot be read or the target not written
 */
export async function* convertSteps(
  source: BlockDevice,
  target: ConvertTarget,
  options: ConvertOptions,
): AsyncSteps<void> {
  const { spec, onUnreadable } = options;
  const chunks = options.chunks ?? new LocalChunks(source, spec);
  const limiter = new RateLimiter(options.bytesPerSecond ?? 0);
  const total = source.size;
  const tasks = queueTasks(cutRuns(planConversion(source, options), spec.chunkBytes), chunks);
  for (const { run, chunk } of tasks) {
    const { kind, start, end } = run;
    if (chunk !== undefined) {
      const ready = await chunk;
      for (const range of ready.unreadable) onUnreadable?.(range);
      store(ready, run, target, spec);
      ready.release();
      yield* limiter.wait(end - start, { done: end, total });
    } else if (kind === 'zero') {
      target.zero(start, end - start);
    }
    yield { done: end, total };
  }
}

/** The tasks in their order, with as many chunks under way as the source of chunks can have. */
function* queueTasks(runs: Iterable<PlannedRun>, chunks: ChunkSource): Generator<Task> {
  const queue: Task[] = [];
  let underWay = 0;
  for (const run of runs) {
    const { kind, start, end } = run;
    let chunk: Task['chunk'];
    if (kind === 'data') {
      while (underWay >= chunks.depth) {
        const task = queue.shift()!;
        yield task;
        if (task.chunk !== undefined) underWay--;
      }
      chunk = chunks.fetch({ offset: start, length: end - start });
      underWay++;
    }
    queue.push({ run, chunk });
    // Nothing is under way that these would have to wait for.
    if (underWay === 0) yield queue.shift()!;
  }
  yield* queue;
}

function store(chunk: Chunk, { start, end }: PlannedRun, target: ConvertTarget, spec: ChunkSpec) {
  const { bytes, compressed, runs, lengths } = chunk;
  if (spec.compression !== undefined) {
    const { clusterSize } = spec.compression;
    lengths.forEach((length, index) => {
      const at = index * clusterSize;
      const inDisk = Math.min(clusterSize, end - start - at);
      if (length === ALL_ZERO) target.zero(start + at, inDisk);
      else if (length === INCOMPRESSIBLE) target.write(bytes.subarray(at, at + inDisk), start + at);
      else target.writeCompressed(compressed!.subarray(at, at + length), start + at);
    });
    return;
  }
  let done = 0;
  for (let index = 0; index < runs.length; index += 2) {
    const from = runs[index]!;
    const to = runs[index + 1]!;
    if (from > done) target.zero(start + done, from - done);
    target.write(bytes.subarray(from, to), start + from);
    done = to;
  }
  if (start + done < end) target.zero(start + done, end - start - done);
}

/** Prepares chunks in this thread, one at a time. */
class LocalChunks implements ChunkSource {
  readonly depth = 1;
  readonly #preparer: ChunkPreparer;
  readonly #bytes: Uint8Array;
  readonly #compressed: Uint8Array | undefined;

  constructor(source: BlockDevice, spec: ChunkSpec) {
    this.#preparer = new ChunkPreparer(source, spec);
    this.#bytes = alignedBuffer(spec.chunkBytes);
    if (spec.compression !== undefined) this.#compressed = new Uint8Array(spec.chunkBytes);
  }

  fetch(request: ChunkRequest): Chunk {
    const bytes = this.#bytes;
    const compressed = this.#compressed;
    const prepared = this.#preparer.prepare(request, bytes, compressed);
    return { ...prepared, bytes, compressed, release: () => undefined };
  }
}

/** Keeps to a number of bytes a second. */
class RateLimiter {
  readonly #bytesPerSecond: number;
  readonly #start = performance.now();
  #bytes = 0;

  constructor(bytesPerSecond: number) {
    this.#bytesPerSecond = bytesPerSecond;
  }

  /** Takes note of bytes that were written, and sleeps until that many may have been. */
  async *wait(bytes: number, progress: Progress): AsyncSteps<void> {
    if (this.#bytesPerSecond === 0) return;
    this.#bytes += bytes;
    const until = this.#start + (this.#bytes / this.#bytesPerSecond) * 1000;
    for (;;) {
      const left = until - performance.now();
      if (left <= 0) return;
      await delay(Math.min(left, SLEEP_MS));
      yield progress;
    }
  }
}
