/** What a cluster cache counts. Each thread adds to numbers of its own, so that counting costs nothing. */

import { COUNTER_LANES, LANE_NUMBERS } from './layout.ts';
import type { CacheMemory } from './memory.ts';

/** Totals of all threads. */
export interface ClusterCacheCounters {
  /** Reads of a compressed cluster, or a part of one, that were answered from the cache. */
  hits: number;
  /** Those for which the cluster had to be decompressed. */
  misses: number;
  /** Those of `hits` that were the first of a cluster that had been read ahead. */
  readAheadHits: number;
  /** Bytes of clusters that were decompressed before anybody asked for them. */
  readAheadBytes: number;
  /** Those of `readAheadBytes` that were dropped without ever being asked for. */
  wastedBytes: number;
  /** Reads that waited for another thread to decompress their cluster. */
  waits: number;
  /** Clusters that decompression threads have decompressed. */
  helped: number;
  /** Reads that went past the cache: it was full of clusters in use, or too small. */
  bypasses: number;
}

/** Number of each counter within a thread's. */
export const Counter = {
  hits: 0,
  misses: 1,
  readAheadHits: 2,
  readAheadBytes: 3,
  wastedBytes: 4,
  waits: 5,
  helped: 6,
  bypasses: 7,
} as const;

/** One thread's counters. */
export class Counters {
  readonly #numbers: Float64Array;
  readonly #first: number;

  constructor({ counters, owner }: CacheMemory) {
    this.#numbers = counters;
    this.#first = (owner % COUNTER_LANES) * LANE_NUMBERS;
  }

  add(counter: number, amount: number): void {
    this.#numbers[this.#first + counter]! += amount;
  }

  /** Totals of all threads. */
  totals(): ClusterCacheCounters {
    const total = (counter: number): number => {
      let sum = 0;
      for (let at = counter; at < this.#numbers.length; at += LANE_NUMBERS) {
        sum += this.#numbers[at]!;
      }
      return sum;
    };
    return {
      hits: total(Counter.hits),
      misses: total(Counter.misses),
      readAheadHits: total(Counter.readAheadHits),
      readAheadBytes: total(Counter.readAheadBytes),
      wastedBytes: total(Counter.wastedBytes),
      waits: total(Counter.waits),
      helped: total(Counter.helped),
      bypasses: total(Counter.bypasses),
    };
  }
}
