/**
 * Memory over time: what a process had resident while something went on, and whether that grew.
 */

import { currentRssBytes, peakRssBytes } from './process.ts';
import { quantile } from './statistics.ts';

const SAMPLE_INTERVAL_MS = 100;

/** Memory at one moment. */
export interface MemorySample {
  /** Since the watching began. */
  seconds: number;
  rssBytes: number;
}

/** What a watched process took, in bytes. */
export interface MemoryUse {
  /** Most that was ever resident. */
  peakBytes: number;
  /** Median about a tenth of the way, when whatever fills at first is full. */
  earlyBytes: number;
  /** Median of the last tenth. */
  lateBytes: number;
}

/**
 * Runs `work` and watches a process meanwhile.
 *
 * @throws {Error} what `work` throws, or if the process or the figures about it are not there
 */
export async function watchMemory(pid: number, work: () => Promise<void>): Promise<MemoryUse> {
  const samples: MemorySample[] = [];
  const start = performance.now();
  const sample = (): void => {
    const rssBytes = currentRssBytes(pid);
    if (rssBytes === undefined) return;
    samples.push({ seconds: (performance.now() - start) / 1000, rssBytes });
  };
  const timer = setInterval(sample, SAMPLE_INTERVAL_MS);
  try {
    await work();
  } finally {
    clearInterval(timer);
  }
  sample();
  const peakBytes = peakRssBytes(pid);
  if (peakBytes === undefined) throw new Error('the memory of the process cannot be told');
  return { peakBytes, ...earlyAndLate(samples) };
}

/**
 * Medians of what was resident between 5% and 15% of the time, and in the last 10%: single
 * collections of garbage do not show in them, and growth that goes on does.
 *
 * @throws {Error} if there are too few samples for both
 */
export function earlyAndLate(
  samples: readonly MemorySample[],
): Pick<MemoryUse, 'earlyBytes' | 'lateBytes'> {
  const end = samples.at(-1)?.seconds ?? 0;
  const medianOf = (from: number, to: number): number => {
    const inside = samples.filter(({ seconds }) => seconds >= from * end && seconds <= to * end);
    if (inside.length === 0) throw new Error('too short a time to see whether memory grows');
    return quantile(
      inside.map(({ rssBytes }) => rssBytes),
      0.5,
    );
  };
  return { earlyBytes: medianOf(0.05, 0.15), lateBytes: medianOf(0.9, 1) };
}
