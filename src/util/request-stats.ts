/**
 * What a server counts: requests, bytes, times, and what was read from each file.
 *
 * The counters lie in shared memory, a row for each thread, which alone adds to it: with plain
 * additions, which cost next to nothing. Whoever wants to know adds up the rows, and may see what
 * another thread has just added a moment later. A number is a double, which no machine that Node runs
 * on writes in two halves, so that none is ever seen half written.
 *
 * A row holds, in order: five numbers for each kind of request, those of the queue, two for each
 * file, and the histogram of each kind.
 */

import { assert } from './assert.ts';
import { LATENCY_BUCKETS, latencyBucket, latencyQuantile } from './latency-histogram.ts';

/** Kinds of requests, in the order of their counters. */
export const REQUEST_KINDS = [
  'read',
  'write',
  'zero',
  'trim',
  'flush',
  /** Which parts hold data: NBD's block status, FUSE's seeking for data and holes. */
  'extents',
  /** Whatever else there is: names, attributes, opening … */
  'other',
] as const;

/** Names of {@link RequestKind}. */
export type RequestKindName = (typeof REQUEST_KINDS)[number];

/** Number of each kind. */
export const RequestKind = {
  read: 0,
  write: 1,
  zero: 2,
  trim: 3,
  flush: 4,
  extents: 5,
  other: 6,
} as const satisfies Record<RequestKindName, number>;

/** One of the numbers of {@link RequestKind}. */
export type RequestKind = (typeof RequestKind)[RequestKindName];

/** Files that are counted apart; what is read from others counts for the last of them. */
export const MAX_COUNTED_FILES = 512;

/** Numbers of a kind. */
const KindCounter = { count: 0, errors: 1, bytes: 2, totalMs: 3, longestMs: 4 } as const;
const KIND_NUMBERS = Object.keys(KindCounter).length;
/** Numbers of the queue. */
const QueueCounter = { requests: 0, depths: 1, deepest: 2 } as const;
/** Numbers of a file: how often it was read, and bytes. */
const FILE_NUMBERS = 2;

const KINDS = REQUEST_KINDS.length;
const QUEUE = KINDS * KIND_NUMBERS;
const FILES = QUEUE + Object.keys(QueueCounter).length;
const HISTOGRAMS = FILES + MAX_COUNTED_FILES * FILE_NUMBERS;
/** Rows begin at multiples of two cache lines, so that threads do not slow one another down. */
const ROW_NUMBERS = Math.ceil((HISTOGRAMS + KINDS * LATENCY_BUCKETS) / 16) * 16;
/** Descriptors that are known by the file they are of; those of a process that serves are few. */
const MAX_DESCRIPTORS = 4096;
/** Where the table of descriptors begins: the number of each one's file, plus 1. In bytes. */
const DESCRIPTORS = 128;
/** Before the first row: when counting began, in milliseconds since 1970, and that table. */
const HEADER_NUMBERS = (DESCRIPTORS + 4 * MAX_DESCRIPTORS) / 8;

/**
 * Memory for the counters of so many threads, all 0. Pages that nobody counts in take no memory.
 *
 * @param threads rows; numbered from 0
 */
export function allocateStats(threads: number): SharedArrayBuffer {
  const memory = new SharedArrayBuffer(8 * (HEADER_NUMBERS + threads * ROW_NUMBERS));
  new Float64Array(memory)[0] = Date.now();
  return memory;
}

/** What one thread counts: see the head of this file. */
export class RequestStats {
  readonly #numbers: Float64Array;
  readonly #descriptors: Int32Array;

  /**
   * @param memory as made by {@link allocateStats}
   * @param row which no other thread has
   */
  constructor(memory: SharedArrayBuffer, row: number) {
    const start = 8 * (HEADER_NUMBERS + row * ROW_NUMBERS);
    assert(start < memory.byteLength, 'there is no row for this thread');
    this.#numbers = new Float64Array(memory, start, ROW_NUMBERS);
    this.#descriptors = new Int32Array(memory, DESCRIPTORS, MAX_DESCRIPTORS);
  }

  /**
   * Counts a request that was answered.
   *
   * @param bytes that it moved; 0 for one that failed
   * @param milliseconds from when it came to when its reply left
   */
  add(kind: RequestKind, bytes: number, milliseconds: number): void {
    const numbers = this.#numbers;
    const at = kind * KIND_NUMBERS;
    numbers[at]! += 1;
    numbers[at + KindCounter.bytes]! += bytes;
    numbers[at + KindCounter.totalMs]! += milliseconds;
    const longest = at + KindCounter.longestMs;
    if (milliseconds > numbers[longest]!) numbers[longest] = milliseconds;
    numbers[HISTOGRAMS + kind * LATENCY_BUCKETS + latencyBucket(milliseconds)]! += 1;
  }

  /** Counts a request that was answered with an error, besides counting it with {@link add}. */
  addError(kind: RequestKind): void {
    this.#numbers[kind * KIND_NUMBERS + KindCounter.errors]! += 1;
  }

  /**
   * Counts requests that came together.
   *
   * @param requests new ones
   * @param depth how many were under way then, they among them
   */
  addDepth(requests: number, depth: number): void {
    const numbers = this.#numbers;
    numbers[QUEUE + QueueCounter.requests]! += requests;
    numbers[QUEUE + QueueCounter.depths]! += requests * depth;
    const deepest = QUEUE + QueueCounter.deepest;
    if (depth > numbers[deepest]!) numbers[deepest] = depth;
  }

  /**
   * Two numbers for a file, to add to: how often it was read, and bytes.
   *
   * @param descriptor by which {@link addRead} knows it too, in all threads
   */
  fileCounter(index: number, descriptor: number): Float64Array {
    const file = Math.min(index, MAX_COUNTED_FILES - 1);
    if (descriptor < MAX_DESCRIPTORS) this.#descriptors[descriptor] = file + 1;
    const at = FILES + file * FILE_NUMBERS;
    return this.#numbers.subarray(at, at + FILE_NUMBERS);
  }

  /**
   * Counts bytes that were read past the engine: what the host sent to a client, and what another
   * thread decompressed in advance.
   */
  addRead(descriptor: number, bytes: number): void {
    const file = (this.#descriptors[descriptor] ?? 0) - 1;
    if (file < 0) return;
    const at = FILES + file * FILE_NUMBERS;
    this.#numbers[at]! += 1;
    this.#numbers[at + 1]! += bytes;
  }
}

/** What all threads together have counted of one kind of request. */
export interface KindTotals {
  count: number;
  /** Those of `count` that were answered with an error. */
  errors: number;
  bytes: number;
  /** Times in milliseconds; all 0 if there was none. `p50Ms` <= `p99Ms` <= `maxMs`. */
  meanMs: number;
  p50Ms: number;
  p99Ms: number;
  maxMs: number;
}

/** What all threads together have counted. */
export interface StatsTotals {
  /** When counting began, in milliseconds since 1970. */
  sinceMs: number;
  kinds: Record<RequestKindName, KindTotals>;
  /** How many requests a request found under way, itself among them; 0 where none was counted. */
  meanDepth: number;
  maxDepth: number;
  /** What was read from a file. */
  file(index: number): { reads: number; bytes: number };
}

/** Adds up the rows of all threads. */
export function sumStats(memory: SharedArrayBuffer): StatsTotals {
  const all = new Float64Array(memory);
  const sum = new Float64Array(ROW_NUMBERS);
  const maxima = new Set([QUEUE + QueueCounter.deepest]);
  for (let kind = 0; kind < KINDS; kind++) maxima.add(kind * KIND_NUMBERS + KindCounter.longestMs);
  for (let row = HEADER_NUMBERS; row < all.length; row += ROW_NUMBERS) {
    for (let at = 0; at < ROW_NUMBERS; at++) {
      const number = all[row + at]!;
      if (number === 0) continue;
      sum[at] = maxima.has(at) ? Math.max(sum[at]!, number) : sum[at]! + number;
    }
  }
  const requests = sum[QUEUE + QueueCounter.requests]!;
  return {
    sinceMs: all[0]!,
    kinds: Object.fromEntries(
      REQUEST_KINDS.map((name) => [name, kindTotals(sum, RequestKind[name])]),
    ) as StatsTotals['kinds'],
    meanDepth: requests === 0 ? 0 : sum[QUEUE + QueueCounter.depths]! / requests,
    maxDepth: sum[QUEUE + QueueCounter.deepest]!,
    file(index) {
      const at = FILES + Math.min(index, MAX_COUNTED_FILES - 1) * FILE_NUMBERS;
      return { reads: sum[at]!, bytes: sum[at + 1]! };
    },
  };
}

function kindTotals(sum: Float64Array, kind: RequestKind): KindTotals {
  const at = kind * KIND_NUMBERS;
  const histogram = HISTOGRAMS + kind * LATENCY_BUCKETS;
  const buckets = sum.subarray(histogram, histogram + LATENCY_BUCKETS);
  const count = sum[at]!;
  const maxMs = sum[at + KindCounter.longestMs]!;
  return {
    count,
    errors: sum[at + KindCounter.errors]!,
    bytes: sum[at + KindCounter.bytes]!,
    meanMs: count === 0 ? 0 : sum[at + KindCounter.totalMs]! / count,
    p50Ms: Math.min(latencyQuantile(buckets, 0.5), maxMs),
    p99Ms: Math.min(latencyQuantile(buckets, 0.99), maxMs),
    maxMs,
  };
}
