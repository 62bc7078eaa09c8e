/** How much of the machine's processors nobody uses. */

import { cpus } from 'node:os';

/** Measures idle time between two moments. */
export class IdleCores {
  #idleMs = 0;
  #since = 0;

  constructor() {
    this.restart();
  }

  /** Measures from now on. */
  restart(): void {
    this.#idleMs = totalIdleMs();
    this.#since = performance.now();
  }

  /** Cores that were idle since then, on average: 0.5 if one was for half of the time. */
  get average(): number {
    const elapsed = performance.now() - this.#since;
    return elapsed <= 0 ? 0 : (totalIdleMs() - this.#idleMs) / elapsed;
  }
}

function totalIdleMs(): number {
  return cpus().reduce((sum, { times }) => sum + times.idle, 0);
}
