/** The shared memory of a cluster cache as one thread sees it: its views, and its locks. */

import { Part } from './layout.ts';
import { HeaderWord } from './layout.ts';

/** How often a lock is tried before the thread waits a moment: it is never held for long. */
const SPINS = 200;
/** How often a thread waits a moment, and how long, before it does without. */
const NAPS = 10;
const NAP_MS = 0.2;

/** Views and locks: see the head of this file. */
export class CacheMemory {
  readonly buffer: SharedArrayBuffer;
  readonly words: Int32Array;
  readonly counters: Float64Array;
  readonly streams: Float64Array;
  /** The number of this thread, by which locks and slots being filled say who has them. */
  readonly owner: number;

  constructor(buffer: SharedArrayBuffer, owner?: number) {
    this.buffer = buffer;
    this.words = new Int32Array(buffer);
    this.counters = new Float64Array(buffer, Part.counters, (Part.streams - Part.counters) / 8);
    this.streams = new Float64Array(buffer, Part.streams, (Part.images - Part.streams) / 8);
    this.owner = owner ?? newOwner(this.words);
  }

  /**
   * Takes a lock, unless whoever has it keeps it for milliseconds: that thread waits for a
   * processor, or has been ended. What the lock is for is done without then.
   */
  lock(word: number): boolean {
    const { words, owner } = this;
    for (let nap = 0; ; nap++) {
      for (let spin = 0; spin < SPINS; spin++) {
        if (Atomics.compareExchange(words, word, 0, owner) === 0) return true;
      }
      if (nap === NAPS) return false;
      Atomics.wait(words, HeaderWord.never, 0, NAP_MS);
    }
  }

  unlock(word: number): void {
    Atomics.store(this.words, word, 0);
  }
}

/** The number of a thread that is about to use the memory. */
export function newOwner(words: Int32Array): number {
  return Atomics.add(words, HeaderWord.nextOwner, 1) + 1;
}
