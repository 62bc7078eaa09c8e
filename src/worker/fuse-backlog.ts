/** What the worker of a mount does about requests that come faster than it can answer them. */

import { Control } from './fuse-request.ts';

/** The time over which it is seen how busy the worker is, in milliseconds. */
const WINDOW_MS = 500;
/** Share of it that has to be spent on requests that came without a break, for it to be busy. */
const BUSY_SHARE = 0.7;

/** Calls threads that help, and tells when the worker is busy all the same. */
export class Backlog {
  readonly #words: Int32Array;
  readonly #tellBusy: () => void;
  #windowStart = 0;
  #busyMs = 0;
  /** Of the run of requests that is going on, what was counted already. */
  #countedMs = 0;

  /**
   * @param words the control of the mount
   * @param tellBusy called when the worker is busy, at most once in half a second
   */
  constructor(words: Int32Array, tellBusy: () => void) {
    this.#words = words;
    this.#tellBusy = tellBusy;
  }

  /** @param runMs how long requests have come one after the other */
  note(runMs: number): void {
    const words = this.#words;
    if (Atomics.load(words, Control.asleep) > 0) {
      Atomics.add(words, Control.calls, 1);
      Atomics.notify(words, Control.calls, 1);
    }
    if (runMs < this.#countedMs) this.#countedMs = 0;
    this.#busyMs += runMs - this.#countedMs;
    this.#countedMs = runMs;
    const now = performance.now();
    if (now - this.#windowStart < WINDOW_MS) return;
    const isWhole = now - this.#windowStart < 2 * WINDOW_MS;
    if (isWhole && this.#busyMs >= BUSY_SHARE * (now - this.#windowStart)) this.#tellBusy();
    this.#windowStart = now;
    this.#busyMs = 0;
  }
}
