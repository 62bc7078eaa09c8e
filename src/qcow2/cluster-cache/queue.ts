/**
 * The queue of clusters to be decompressed in advance, by the numbers of their slots. What to do is
 * in the slot; an entry for a slot that needs nothing any more, or something else by now, does no harm.
 */

import { HeaderWord, NO_SLOT, Part, QUEUE_ENTRIES } from './layout.ts';
import type { CacheMemory } from './memory.ts';

const FIRST_ENTRY = Part.queue / 4;
/** How long a thread sleeps that could not look whether there is a job. */
const BUSY_MS = 1;

/** See the head of this file. */
export class JobQueue {
  readonly #memory: CacheMemory;
  readonly #words: Int32Array;

  constructor(memory: CacheMemory) {
    this.#memory = memory;
    this.#words = memory.words;
  }

  /** Appends a slot; false if there is no room. */
  push(slot: number): boolean {
    const words = this.#words;
    if (!this.#memory.lock(HeaderWord.queueLock)) return false;
    const tail = words[HeaderWord.queueTail]!;
    const hasRoom = ((tail - words[HeaderWord.queueHead]!) | 0) < QUEUE_ENTRIES;
    if (hasRoom) {
      words[FIRST_ENTRY + (tail & (QUEUE_ENTRIES - 1))] = slot;
      Atomics.store(words, HeaderWord.queueTail, (tail + 1) | 0);
    }
    this.#memory.unlock(HeaderWord.queueLock);
    if (hasRoom && Atomics.load(words, HeaderWord.sleepers) > 0) {
      Atomics.notify(words, HeaderWord.queueTail, 1);
    }
    return hasRoom;
  }

  /** Has all threads that take jobs end. */
  end(): void {
    const words = this.#words;
    Atomics.store(words, HeaderWord.ending, 1);
    // So that nobody falls asleep who has not seen it.
    Atomics.add(words, HeaderWord.queueTail, 1);
    Atomics.notify(words, HeaderWord.queueTail);
  }

  /** Takes the oldest slot, and sleeps until there is one; {@link NO_SLOT} at the end. */
  take(): number {
    const words = this.#words;
    for (;;) {
      const tail = Atomics.load(words, HeaderWord.queueTail);
      if (Atomics.load(words, HeaderWord.ending) !== 0) return NO_SLOT;
      if (this.#memory.lock(HeaderWord.queueLock)) {
        const slot = this.#shift();
        this.#memory.unlock(HeaderWord.queueLock);
        if (slot !== NO_SLOT) return slot;
        Atomics.add(words, HeaderWord.sleepers, 1);
        Atomics.wait(words, HeaderWord.queueTail, tail);
        Atomics.sub(words, HeaderWord.sleepers, 1);
      } else {
        Atomics.wait(words, HeaderWord.never, 0, BUSY_MS);
      }
    }
  }

  #shift(): number {
    const words = this.#words;
    const head = words[HeaderWord.queueHead]!;
    if (head === words[HeaderWord.queueTail]) return NO_SLOT;
    words[HeaderWord.queueHead] = (head + 1) | 0;
    return words[FIRST_ENTRY + (head & (QUEUE_ENTRIES - 1))]!;
  }
}
