/**
 * Operations that take long are generators: they yield how far they are every few milliseconds and
 * return their result, so that whoever drives them can show it, stop them, or just run them.
 */

/** How far an operation is. */
export interface Progress {
  /** Bytes dealt with; never more than `total`. */
  done: number;
  /** Bytes in all. */
  total: number;
}

/** A running operation: yields its progress, returns its result. */
export type Steps<Result> = Generator<Progress, Result, void>;

/** As {@link Steps}, of an operation that waits for others on the way. */
export type AsyncSteps<Result> = AsyncGenerator<Progress, Result, void>;

/** Runs an operation to its end. */
export function runSteps<Result>(steps: Steps<Result>): Result {
  for (;;) {
    const next = steps.next();
    if (next.done === true) return next.value;
  }
}

/** Progress in percent, 0 to 100. Nothing to do is all done. */
export function percentOf({ done, total }: Progress): number {
  return total === 0 ? 100 : (done / total) * 100;
}
