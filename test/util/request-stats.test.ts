import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  LATENCY_BUCKETS,
  latencyBucket,
  latencyBucketEnd,
  latencyQuantile,
} from '../../src/util/latency-histogram.ts';
import {
  allocateStats,
  MAX_COUNTED_FILES,
  RequestKind,
  RequestStats,
  sumStats,
} from '../../src/util/request-stats.ts';

describe('the latency histogram', () => {
  it('keeps every time within a sixteenth', () => {
    fc.assert(
      fc.property(fc.double({ min: 0.002, max: 120_000, noNaN: true }), (ms) => {
        const end = latencyBucketEnd(latencyBucket(ms));
        expect(end).toBeGreaterThanOrEqual(ms);
        expect(end).toBeLessThanOrEqual(ms * (17 / 16) + 1 / 16_000);
      }),
    );
  });

  it('has buckets that follow one another without gaps', () => {
    for (let bucket = 1; bucket < LATENCY_BUCKETS; bucket++) {
      const start = latencyBucketEnd(bucket - 1);
      expect(start).toBeLessThan(latencyBucketEnd(bucket));
      expect(latencyBucket(start + 1e-9), String(bucket)).toBe(bucket);
    }
  });

  it('takes times that are nothing, negative or endless', () => {
    expect(latencyBucket(0)).toBe(0);
    expect(latencyBucket(-1)).toBe(0);
    expect(latencyBucket(1e9)).toBe(LATENCY_BUCKETS - 1);
    expect(latencyBucket(Number.POSITIVE_INFINITY)).toBe(LATENCY_BUCKETS - 1);
  });

  it('gives quantiles: of none 0, of one that one, of many the right one', () => {
    const counts = new Float64Array(LATENCY_BUCKETS);
    expect(latencyQuantile(counts, 0.5)).toBe(0);
    counts[latencyBucket(1)]! += 1;
    expect(latencyQuantile(counts, 0.01)).toBe(latencyBucketEnd(latencyBucket(1)));
    expect(latencyQuantile(counts, 1)).toBe(latencyBucketEnd(latencyBucket(1)));
    counts[latencyBucket(1)]! += 97;
    counts[latencyBucket(10)]! += 2;
    expect(latencyQuantile(counts, 0.98)).toBe(latencyBucketEnd(latencyBucket(1)));
    expect(latencyQuantile(counts, 0.99)).toBe(latencyBucketEnd(latencyBucket(10)));
  });
});

describe('RequestStats', () => {
  it('adds up what all threads have counted', () => {
    const memory = allocateStats(3);
    const [first, last] = [new RequestStats(memory, 0), new RequestStats(memory, 2)];
    first.add(RequestKind.read, 4096, 0.02);
    last.add(RequestKind.read, 512, 0.5);
    last.add(RequestKind.read, 0, 0.1);
    last.addError(RequestKind.read);
    last.add(RequestKind.other, 0, 2);
    first.addDepth(2, 2);
    last.addDepth(6, 8);
    first.fileCounter(1, 20)[1]! += 100;
    const counter = last.fileCounter(1, 20);
    counter[0]! += 2;
    counter[1]! += 10;
    // By another thread than the one that opened it.
    first.addRead(20, 1);
    for (const unknown of [21, 5000, -1]) first.addRead(unknown, 1000);
    const totals = sumStats(memory);
    expect(totals.kinds.read).toMatchObject({ count: 3, errors: 1, bytes: 4608, maxMs: 0.5 });
    expect(totals.kinds.read.meanMs).toBeCloseTo(0.62 / 3);
    expect(totals.kinds.other).toMatchObject({ count: 1, errors: 0, maxMs: 2 });
    expect(totals.kinds.write).toEqual({
      count: 0,
      errors: 0,
      bytes: 0,
      meanMs: 0,
      p50Ms: 0,
      p99Ms: 0,
      maxMs: 0,
    });
    expect(totals).toMatchObject({ meanDepth: 6.5, maxDepth: 8 });
    expect(totals.file(1)).toEqual({ reads: 3, bytes: 111 });
    expect(totals.file(0)).toEqual({ reads: 0, bytes: 0 });
    expect(Math.abs(Date.now() - totals.sinceMs)).toBeLessThan(10_000);
  });

  it('has p50 <= p99 <= max, whatever the times', () => {
    const times = fc.array(fc.double({ min: 0, max: 200_000, noNaN: true }), { minLength: 1 });
    fc.assert(
      fc.property(times, (milliseconds) => {
        const memory = allocateStats(1);
        const stats = new RequestStats(memory, 0);
        for (const time of milliseconds) stats.add(RequestKind.write, 1, time);
        const { p50Ms, p99Ms, maxMs, count } = sumStats(memory).kinds.write;
        expect(count).toBe(milliseconds.length);
        expect(maxMs).toBe(Math.max(...milliseconds));
        expect(p50Ms).toBeLessThanOrEqual(p99Ms);
        expect(p99Ms).toBeLessThanOrEqual(maxMs);
        const below = milliseconds.filter((time) => time <= p50Ms).length;
        expect(below).toBeGreaterThanOrEqual(milliseconds.length / 2);
      }),
      { numRuns: 50 },
    );
  });

  it('counts files beyond the last one with it, and has no row beyond the last one', () => {
    const memory = allocateStats(1);
    const stats = new RequestStats(memory, 0);
    stats.fileCounter(MAX_COUNTED_FILES + 7, 3)[1]! += 5;
    stats.fileCounter(MAX_COUNTED_FILES - 1, 4)[1]! += 1;
    expect(sumStats(memory).file(MAX_COUNTED_FILES - 1).bytes).toBe(6);
    expect(sumStats(memory).kinds.read.count).toBe(0);
    expect(() => new RequestStats(memory, 1)).toThrow('no row');
  });
});
