/** Checks an invariant of ours: a failure is a bug in this package, never a property of the input. */
export function assert(condition: unknown, invariant: string): asserts condition {
  if (!condition) throw new AssertionError(invariant);
}

/** A broken invariant of this package. */
export class AssertionError extends Error {
  override readonly name = 'AssertionError';

  constructor(invariant: string) {
    super(`internal error: ${invariant}`);
  }
}
