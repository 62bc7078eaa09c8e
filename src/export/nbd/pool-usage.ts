/** What buffer pools of several threads have in use together, so that limits hold over all of them. */

/** What is counted: all buffers, those of large replies, and those of payloads that are arriving. */
export const Usage = { all: 0, large: 1, input: 2 } as const;

type Kind = (typeof Usage)[keyof typeof Usage];

const KINDS = Object.keys(Usage).length;
/** Numbers are of this unit, so that none of them comes near 2^31. */
const UNIT = 1024;

/**
 * Counters in shared memory: a row for each thread, which alone writes it. What another thread has
 * just changed may be seen a moment later.
 */
export class PoolUsage {
  /** To be given to the other threads. */
  readonly memory: SharedArrayBuffer;
  readonly #counters: Int32Array;
  readonly #row: number;

  /**
   * @param memory as made by {@link PoolUsage.memoryFor} (default: for this thread alone)
   * @param row the number of this thread, from 0
   */
  constructor(memory = PoolUsage.memoryFor(1), row = 0) {
    this.memory = memory;
    this.#counters = new Int32Array(memory);
    this.#row = row * KINDS;
  }

  /** Memory for the counters of so many threads. */
  static memoryFor(threads: number): SharedArrayBuffer {
    return new SharedArrayBuffer(threads * KINDS * Int32Array.BYTES_PER_ELEMENT);
  }

  /** Counts a buffer that this thread has taken. */
  add(kind: Kind, buffer: Uint8Array): void {
    const at = this.#row + kind;
    Atomics.store(this.#counters, at, this.#counters[at]! + unitsOf(buffer));
  }

  /** Counts a buffer that this thread has given back. */
  subtract(kind: Kind, buffer: Uint8Array): void {
    const at = this.#row + kind;
    Atomics.store(this.#counters, at, this.#counters[at]! - unitsOf(buffer));
  }

  /** Bytes in use by all threads. */
  total(kind: Kind): number {
    const counters = this.#counters;
    let sum = 0;
    for (let at: number = kind; at < counters.length; at += KINDS)
      sum += Atomics.load(counters, at);
    return sum * UNIT;
  }

  /** Forgets what a thread had in use, which has ended. */
  clear(row: number): void {
    for (let kind = 0; kind < KINDS; kind++) Atomics.store(this.#counters, row * KINDS + kind, 0);
  }
}

function unitsOf({ length }: Uint8Array): number {
  return Math.ceil(length / UNIT);
}
