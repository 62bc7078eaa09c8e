/** Holding an operation back to so many bytes a second, as qemu-img's `-r` does. */

import type { Progress } from './progress.ts';

/** Longest sleep at a time: signals are looked for between two of them. */
const SLICE_MS = 20;

/** Spreads the bytes that an operation writes over time. */
export class RateLimit {
  readonly #bytesPerSecond: number;
  /** When the bytes that were spent so far are paid for, as `performance.now()` tells it. */
  #dueMs: number;

  /** @param bytesPerSecond 0 for no limit */
  constructor(bytesPerSecond: number) {
    this.#bytesPerSecond = bytesPerSecond;
    this.#dueMs = performance.now();
  }

  /** Waits as long as `bytes` take, and tells `progress` meanwhile. */
  *spend(bytes: number, progress: Progress): Generator<Progress, void, void> {
    if (this.#bytesPerSecond === 0) return;
    this.#dueMs = Math.max(this.#dueMs, performance.now() - SLICE_MS);
    this.#dueMs += (bytes / this.#bytesPerSecond) * 1000;
    for (;;) {
      const remaining = this.#dueMs - performance.now();
      if (remaining <= 0) return;
      sleep(Math.min(remaining, SLICE_MS));
      yield progress;
    }
  }
}

function sleep(milliseconds: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, milliseconds);
}
