/** Lines about failed reads: each once, and no more than a log can bear. */

/** Distinct lines that are kept apart; a damaged image has more bad clusters than anyone reads. */
const MAX_DISTINCT_LINES = 100;

/** Tells of failures through `write`, each distinct one once. */
export class ErrorLog {
  readonly #write: (line: string) => void;
  readonly #seen = new Set<string>();

  constructor(write: (line: string) => void) {
    this.#write = write;
  }

  /** Logs `error`, which came of `action`, if this is new. Never throws. */
  report(action: string, error: unknown): void {
    const message = error instanceof Error ? error.message : String(error);
    const line = `${action}: ${message}`;
    if (this.#seen.has(line) || this.#seen.size > MAX_DISTINCT_LINES) return;
    this.#seen.add(line);
    const isLast = this.#seen.size > MAX_DISTINCT_LINES;
    try {
      this.#write(isLast ? 'further errors are not logged' : line);
    } catch {
      // A full disk must not end the mount: the reader gets its error number all the same.
    }
  }
}
