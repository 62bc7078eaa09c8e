import { describe, expect, it } from 'vitest';
import type { Comparison } from '../../bench/support/bench.ts';
import { measureComparison } from '../../bench/support/measure.ts';
import { earlyAndLate, watchMemory } from '../../bench/support/memory.ts';
import { formatTable, tableRows } from '../../bench/support/report.ts';

const MEBIBYTE = 2 ** 20;

describe('earlyAndLate', () => {
  const samples = (rss: (share: number) => number) =>
    Array.from({ length: 101 }, (_, index) => {
      return { seconds: index * 6, rssBytes: rss(index / 100) };
    });

  it('sees growth that goes on', () => {
    const { earlyBytes, lateBytes } = earlyAndLate(samples((share) => 100 + 100 * share));
    expect(earlyBytes).toBeCloseTo(110);
    expect(lateBytes).toBeCloseTo(195);
  });

  it('does not take what fills at the beginning, or a peak, for growth', () => {
    const use = earlyAndLate(samples((share) => (share < 0.04 ? 10 : share === 0.5 ? 900 : 100)));
    expect(use).toEqual({ earlyBytes: 100, lateBytes: 100 });
  });

  it('refuses to judge a time too short to have samples in both', () => {
    expect(() => earlyAndLate([])).toThrow('too short');
    expect(() => earlyAndLate(samples(() => 1).slice(0, 2))).toThrow('too short');
  });
});

describe('watchMemory', () => {
  it('sees what this process takes', async () => {
    const kept: Uint8Array[] = [];
    const { earlyBytes, lateBytes, peakBytes } = await watchMemory(process.pid, async () => {
      await sleep(500);
      kept.push(new Uint8Array(128 * MEBIBYTE).fill(1));
      await sleep(800);
    });
    expect(kept).toHaveLength(1);
    expect(lateBytes - earlyBytes).toBeGreaterThan(100 * MEBIBYTE);
    expect(peakBytes).toBeGreaterThanOrEqual(lateBytes);
  });

  it('says that a process is not there', async () => {
    const pid = 2 ** 22 + 1;
    await expect(watchMemory(pid, () => Promise.resolve())).rejects.toThrow('cannot be told');
  });
});

describe('a comparison of bytes with bounds', () => {
  const compare = (ours: number): Comparison => ({
    name: 'memory',
    unit: 'bytes',
    ours: { name: 'qcow2', measure: () => Promise.resolve({ value: ours * MEBIBYTE }) },
    rivals: [{ name: 'rival', measure: () => Promise.resolve({ value: 40 * MEBIBYTE }) }],
    bounds: { atMost: 200 * MEBIBYTE, aim: 120 * MEBIBYTE },
    isMeasuredOnce: true,
  });

  it('is judged by the bounds, and says them in the table', async () => {
    const rounds: number[] = [];
    for (const [ours, verdict] of [
      [120, 'aim reached'],
      [121, 'at least reached'],
      [200, 'at least reached'],
      [201, 'below'],
    ] as const) {
      const result = await measureComparison(compare(ours), 5, ({ number }) => rounds.push(number));
      const [row] = tableRows([result]);
      expect(row?.slice(2, 9)).toEqual([
        `${ours} MiB`,
        '40 MiB',
        `${(40 / ours).toFixed(2)}x`,
        `${(40 / ours).toFixed(2)}–${(40 / ours).toFixed(2)}`,
        '≤ 200 MiB',
        '≤ 120 MiB',
        verdict,
      ]);
      expect(formatTable([result])).toContain('≤ 200 MiB');
    }
    // No warm-up, and one round however many pairs are asked for.
    expect(rounds).toEqual([1, 1, 1, 1]);
  });
});

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
