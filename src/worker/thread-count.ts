/** How many threads serve an image that is only read. */

import { availableParallelism } from 'node:os';

/** Most threads that can be asked for. */
export const MAX_SERVING_THREADS = 64;
/** Most that are used unasked: each takes some 10 MB, and the kernel's locks are shared by all. */
const MAX_UNASKED = 8;

/** What an extra thread's heap may take: caches lie outside it. */
export const THREAD_LIMITS = { maxOldGenerationSizeMb: 128, maxYoungGenerationSizeMb: 4 };

/** Threads at most, where nobody said how many: as many as there are cores. */
export function defaultServingThreads(): number {
  return Math.min(availableParallelism(), MAX_UNASKED);
}
