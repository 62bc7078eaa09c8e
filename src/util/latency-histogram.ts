/**
 * Times in buckets whose width grows with the time: 16 a power of two, so that what is read out of
 * them is at most a sixteenth too long. Counting one is two array accesses.
 */

import { assert } from './assert.ts';

/** Units a millisecond: a unit is 62.5 ns, which lets times up to 134 s fit 31 bits. */
const UNITS_PER_MS = 16_000;
const MAX_UNITS = 0x7fff_ffff;
/** Buckets a power of two. */
const STEPS = 16;

/** How many buckets there are. */
export const LATENCY_BUCKETS = 448;

/** The bucket of a time in milliseconds; times above 134 s are in the last. */
export function latencyBucket(milliseconds: number): number {
  const units = Math.min(milliseconds * UNITS_PER_MS, MAX_UNITS) | 0;
  if (units < 2 * STEPS) return Math.max(units, 0);
  const shift = 27 - Math.clz32(units);
  return shift * STEPS + (units >>> shift);
}

/** The time in milliseconds below which all that are in a bucket lie; none for the last. */
export function latencyBucketEnd(bucket: number): number {
  assert(bucket >= 0 && bucket < LATENCY_BUCKETS, 'there is no such bucket');
  if (bucket === LATENCY_BUCKETS - 1) return Number.POSITIVE_INFINITY;
  if (bucket < 2 * STEPS) return (bucket + 1) / UNITS_PER_MS;
  const shift = Math.floor(bucket / STEPS) - 1;
  return (((bucket % STEPS) + STEPS + 1) * 2 ** shift) / UNITS_PER_MS;
}

/**
 * The time in milliseconds within which the fraction `fraction` of those counted lie; 0 for none.
 *
 * @param counts one number a bucket
 */
export function latencyQuantile(counts: Float64Array, fraction: number): number {
  let total = 0;
  for (const count of counts) total += count;
  if (total === 0) return 0;
  // How many are to be passed, at least one: of one alone, it is every quantile.
  const wanted = Math.max(1, Math.ceil(total * fraction));
  let passed = 0;
  for (const [bucket, count] of counts.entries()) {
    passed += count;
    if (passed >= wanted) return latencyBucketEnd(bucket);
  }
  return Number.POSITIVE_INFINITY;
}
