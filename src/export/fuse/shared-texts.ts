/**
 * Short texts as they were when somebody opened them, in shared memory: the requests of one who
 * reads go to whichever thread is free, and all of them must give the same bytes.
 */

import type { BlockDevice } from '../../device/block-device.ts';
import { MemoryDevice } from '../../device/memory.ts';

/** Texts that are kept. The oldest makes room. */
const SLOTS = 8;
/** Longest text. Pages that were never written take no memory. */
const SLOT_BYTES = 64 * 1024;
/** Handles are above those that a thread gives out by itself, and below 2^53. */
const FIRST_HANDLE = 2 ** 40;

/** Bytes of the header: how many texts were kept, then for each slot its number and its length. */
const HEADER_BYTES = 4 * (1 + 2 * SLOTS);

/** The texts of all threads: see the head of this file. */
export class SharedTexts {
  readonly #words: Int32Array;
  readonly #bytes: Uint8Array;

  /** @param memory as made by {@link SharedTexts.allocate} */
  constructor(memory: SharedArrayBuffer) {
    this.#words = new Int32Array(memory, 0, HEADER_BYTES / 4);
    this.#bytes = new Uint8Array(memory, HEADER_BYTES);
  }

  static allocate(): SharedArrayBuffer {
    return new SharedArrayBuffer(HEADER_BYTES + SLOTS * SLOT_BYTES);
  }

  /** Keeps a text and returns its handle; undefined if it is too long for that. */
  keep(text: BlockDevice): number | undefined {
    const { size } = text;
    if (size > SLOT_BYTES) return undefined;
    const bytes = new Uint8Array(size);
    text.read(bytes, 0);
    // Below 2^31, and never 0, which is the number of a slot that holds nothing.
    const number = (Atomics.add(this.#words, 0, 1) & 0x3fff_ffff) + 1;
    const slot = number % SLOTS;
    Atomics.store(this.#words, 1 + 2 * slot, 0);
    this.#bytes.set(bytes, slot * SLOT_BYTES);
    Atomics.store(this.#words, 2 + 2 * slot, size);
    Atomics.store(this.#words, 1 + 2 * slot, number);
    return FIRST_HANDLE + number;
  }

  /** The text of a handle; undefined for one that is not known, or was given up. */
  at(handle: number): BlockDevice | undefined {
    const number = handle - FIRST_HANDLE;
    if (!(number > 0 && number <= 0x4000_0000)) return undefined;
    const slot = number % SLOTS;
    if (Atomics.load(this.#words, 1 + 2 * slot) !== number) return undefined;
    const size = Atomics.load(this.#words, 2 + 2 * slot);
    const bytes = new Uint8Array(size);
    bytes.set(this.#bytes.subarray(slot * SLOT_BYTES, slot * SLOT_BYTES + size));
    // It may have made room for another while it was copied.
    return Atomics.load(this.#words, 1 + 2 * slot) === number ? new MemoryDevice(bytes) : undefined;
  }
}
