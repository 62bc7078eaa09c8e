/**
 * Recognizes reads that go on where others ended, or that keep a distance, and says what to
 * decompress in advance.
 *
 * Streams are told apart by where they read, not by who reads: that is the same for one client with
 * several streams and for one stream whose requests several connections or threads answer. The table
 * is shared by all threads. The window of a stream doubles as it goes on, and is halved whenever
 * something was dropped that was read ahead for it and that nobody had asked for.
 */

import { HeaderWord, STREAM_ENTRIES, STREAM_NUMBERS } from './layout.ts';
import type { CacheMemory } from './memory.ts';

/** A request: which disk of which image, and its bytes. */
export interface StreamRequest {
  image: number;
  /** What tells the disks of an image apart. */
  disk: number;
  offset: number;
  length: number;
}

/** Numbers of a stream. */
const Field = {
  image: 0,
  disk: 1,
  /** Of the last request. */
  start: 2,
  length: 3,
  /** The furthest that was asked for. */
  end: 4,
  /** From the start of the request before to that of the last. */
  stride: 5,
  /** Requests that went on where others ended, and that kept the stride. */
  score: 6,
  strideScore: 7,
  window: 8,
  /** How far was read ahead. */
  ahead: 9,
  /** When it was used last. */
  tick: 10,
  /** Clusters that were wasted since the window was changed. */
  wasted: 11,
  /** 1 once that made it smaller, until it is used. */
  isShrunk: 12,
} as const;

/** Requests that have to fit before anything is read ahead. */
const MIN_SCORE = 2;
/** A request of so many bytes that follows another is enough. */
const LONG_REQUEST = 256 * 1024;
const MIN_WINDOW = 128 * 1024;
const MAX_WINDOW = 4 * 1024 * 1024;
/** Most requests of a strided stream that are read ahead. */
const MAX_STRIDES = 8;

/** Follows streams; one a thread, on memory that is shared. */
export class Streams {
  /** What the last {@link note} says to read ahead: from here ... */
  from = 0;
  /** ... to here; no more than `from` means nothing. */
  to = 0;
  /** With a stride: the bytes that are wanted at `from`, and each so many bytes up to `to`. */
  stride = 0;
  partLength = 0;
  /** Number of the stream. */
  stream = -1;
  readonly #memory: CacheMemory;
  readonly #table: Float64Array;
  readonly #maxWindow: number;
  /** The last request that fitted nothing. */
  #lastStart = -1;

  /** @param capacityBytes of the cache: reading ahead takes a part of it at most */
  constructor(memory: CacheMemory, capacityBytes: number) {
    this.#memory = memory;
    this.#table = memory.streams;
    this.#maxWindow = Math.min(MAX_WINDOW, Math.floor(capacityBytes / 4));
  }

  /** Notes a request, and leaves what to read ahead in `from`, `to` and the other fields. */
  note(request: StreamRequest): void {
    const { offset, length } = request;
    this.to = this.from = offset + length;
    this.stride = 0;
    this.stream = -1;
    if (!this.#memory.lock(HeaderWord.streamsLock)) return;
    try {
      const at = this.#match(request);
      if (at < 0) {
        this.#begin(request);
        return;
      }
      this.#table[at + Field.tick] = this.#nextTick();
      if (this.#keepsStride(at, offset)) this.#stride(at, offset, length);
      else this.#goOn(at, offset, length);
    } finally {
      this.#memory.unlock(HeaderWord.streamsLock);
    }
  }

  /** Notes that a cluster was dropped that a stream had read ahead for nothing. */
  wasted(stream: number): void {
    this.#table[stream * STREAM_NUMBERS + Field.wasted]!++;
  }

  /** The stream that a request belongs to; -1 if there is none. */
  #match({ image, disk, offset, length }: StreamRequest): number {
    const table = this.#table;
    let near = -1;
    for (let at = 0; at < table.length; at += STREAM_NUMBERS) {
      if (table[at + Field.image] !== image || table[at + Field.disk] !== disk) continue;
      if (this.#keepsStride(at, offset)) return at;
      // Requests may overtake each other a little on their way here.
      const distance = Math.abs(offset - table[at + Field.end]!);
      if (distance <= 2 * Math.max(length, table[at + Field.length]!)) near = at;
    }
    return near;
  }

  #keepsStride(at: number, offset: number): boolean {
    const table = this.#table;
    const stride = table[at + Field.stride]!;
    const isNext = stride !== 0 && offset === table[at + Field.start]! + stride;
    return isNext && offset !== table[at + Field.end];
  }

  #goOn(at: number, offset: number, length: number): void {
    const table = this.#table;
    const end = offset + length;
    const before = table[at + Field.end]!;
    if (offset !== before) table[at + Field.stride] = offset - table[at + Field.start]!;
    table[at + Field.start] = offset;
    table[at + Field.length] = length;
    table[at + Field.strideScore] = 0;
    if (end <= before) return;
    table[at + Field.end] = end;
    const score = ++table[at + Field.score]!;
    if (score < MIN_SCORE && length < LONG_REQUEST) return;
    this.#shrink(at);
    const known = Math.max(end, table[at + Field.ahead]!);
    // In pieces, so that requests of a few bytes do not each ask for a few bytes more.
    if (known - end > table[at + Field.window]! / 2) return;
    const to = end + this.#grow(at, length);
    table[at + Field.ahead] = to;
    this.from = known;
    this.to = to;
    this.stream = at / STREAM_NUMBERS;
  }

  #stride(at: number, offset: number, length: number): void {
    const table = this.#table;
    const stride = table[at + Field.stride]!;
    table[at + Field.start] = offset;
    table[at + Field.length] = length;
    table[at + Field.end] = Math.max(table[at + Field.end]!, offset + length);
    const score = ++table[at + Field.strideScore]!;
    if (score < MIN_SCORE) return;
    this.#shrink(at);
    const count = Math.min(MAX_STRIDES, Math.floor(this.#grow(at, length) / length));
    const last = offset + count * stride;
    const next = offset + stride;
    // What was read ahead before is not asked for again.
    const ahead = table[at + Field.ahead]!;
    const isKnown = stride > 0 ? ahead >= next && ahead < last : ahead <= next && ahead > last;
    this.from = isKnown ? ahead + stride : next;
    this.to = last;
    this.stride = stride;
    this.partLength = length;
    table[at + Field.ahead] = last;
    this.stream = at / STREAM_NUMBERS;
  }

  #nextTick(): number {
    const { words } = this.#memory;
    const tick = (words[HeaderWord.streamTick]! + 1) & 0x7fffffff;
    words[HeaderWord.streamTick] = tick;
    return tick;
  }

  /** Halves the window of a stream for which something was read ahead in vain. */
  #shrink(at: number): void {
    const table = this.#table;
    if (table[at + Field.wasted] === 0) return;
    table[at + Field.wasted] = 0;
    table[at + Field.window] = Math.max(MIN_WINDOW / 2, table[at + Field.window]! / 2);
    table[at + Field.isShrunk] = 1;
  }

  /** The window to use now: twice the last, unless that was just halved. */
  #grow(at: number, length: number): number {
    const table = this.#table;
    const before = table[at + Field.window]!;
    const grown = before === 0 ? Math.max(MIN_WINDOW, length) : before * 2;
    const window = table[at + Field.isShrunk] === 1 ? before : grown;
    table[at + Field.isShrunk] = 0;
    return (table[at + Field.window] = Math.min(window, this.#maxWindow));
  }

  /** Puts a request that fits nothing in the place of the stream that was used longest ago. */
  #begin({ image, disk, offset, length }: StreamRequest): void {
    const table = this.#table;
    let oldest = 0;
    for (let at = STREAM_NUMBERS; at < STREAM_ENTRIES * STREAM_NUMBERS; at += STREAM_NUMBERS) {
      if (table[at + Field.tick]! < table[oldest + Field.tick]!) oldest = at;
    }
    const stride = this.#lastStart < 0 ? 0 : offset - this.#lastStart;
    this.#lastStart = offset;
    table.fill(0, oldest, oldest + STREAM_NUMBERS);
    table[oldest + Field.image] = image;
    table[oldest + Field.disk] = disk;
    table[oldest + Field.start] = offset;
    table[oldest + Field.length] = length;
    table[oldest + Field.end] = offset + length;
    table[oldest + Field.stride] = stride;
    table[oldest + Field.tick] = this.#nextTick();
  }
}
