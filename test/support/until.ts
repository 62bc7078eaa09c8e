/** Waiting in tests. */

import { setTimeout as sleep } from 'node:timers/promises';

/** Waits until something is so; fails the test if it does not come about in time. */
export async function until(condition: () => boolean, timeoutMs = 10_000): Promise<void> {
  const deadline = Date.now() + timeoutMs;
  while (!condition()) {
    if (Date.now() > deadline) throw new Error(`this did not happen within ${timeoutMs} ms`);
    await sleep(10);
  }
}
