/** A log that a client, or a damaged image, cannot flood. */

/** Lines of one window; those beyond it are only counted. */
const MAX_LINES = 10;
const WINDOW_MS = 10_000;

/** Passes on at most ten lines in ten seconds, and says how many it left out. */
export class RateLimitedLog {
  readonly #write: (message: string) => void;
  readonly #now: () => number;
  #windowStart = -Infinity;
  #lines = 0;
  #leftOut = 0;

  /** @param now the time in milliseconds */
  constructor(write: (message: string) => void, now: () => number = Date.now) {
    this.#write = write;
    this.#now = now;
  }

  write(message: string): void {
    const now = this.#now();
    if (now - this.#windowStart >= WINDOW_MS) {
      this.flush();
      this.#windowStart = now;
      this.#lines = 0;
    }
    this.#lines++;
    if (this.#lines > MAX_LINES) this.#leftOut++;
    else this.#write(message);
  }

  /** Says now how many lines were left out since the last time. */
  flush(): void {
    if (this.#leftOut === 0) return;
    const count = this.#leftOut;
    this.#leftOut = 0;
    this.#write(`${count} more ${count === 1 ? 'message was' : 'messages were'} left out`);
  }
}
