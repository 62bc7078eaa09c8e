/**
 * The statistics of a bench: ratios of pairs, their median and their spread, and what they reach.
 *
 * A ratio is formed within one pair, whose two halves ran right after each other, so that what the
 * machine was doing at the time weighs on both. The median of those ratios is the result.
 */

/** Whether more is better (bytes or operations a second) or less is (seconds, bytes of memory). */
export type Quantity = 'rate' | 'time' | 'size';

/** What a list of numbers amounts to. */
export interface Summary {
  count: number;
  median: number;
  minimum: number;
  maximum: number;
  lowerQuartile: number;
  upperQuartile: number;
}

/** The ratio that must be reached, and the one to aim for; either may be missing. */
export interface Thresholds {
  atLeast?: number | undefined;
  aim?: number | undefined;
}

/** How far a ratio got; `unjudged` where there is no threshold to hold it against. */
export type Verdict = 'aim' | 'at-least' | 'below' | 'unjudged';

/**
 * The value below which the fraction `fraction` of `values` lies, interpolated linearly between
 * neighbours.
 *
 * @param fraction from 0 (the minimum) to 1 (the maximum)
 * @throws {RangeError} for an empty list or a fraction outside 0 to 1
 */
export function quantile(values: readonly number[], fraction: number): number {
  if (values.length === 0) throw new RangeError('a quantile needs at least one value');
  if (!(fraction >= 0 && fraction <= 1)) throw new RangeError(`no such quantile: ${fraction}`);
  const sorted = [...values].sort((a, b) => a - b);
  const position = (sorted.length - 1) * fraction;
  const below = Math.floor(position);
  const lower = sorted[below]!;
  const upper = sorted[Math.min(below + 1, sorted.length - 1)]!;
  return lower + (upper - lower) * (position - below);
}

/**
 * Median, range and quartiles of `values`.
 *
 * @throws {RangeError} for an empty list
 */
export function summarize(values: readonly number[]): Summary {
  return {
    count: values.length,
    median: quantile(values, 0.5),
    minimum: quantile(values, 0),
    maximum: quantile(values, 1),
    lowerQuartile: quantile(values, 0.25),
    upperQuartile: quantile(values, 0.75),
  };
}

/**
 * How many times as good `ours` is as `rival`'s: above 1 is faster, for rates and for times alike,
 * and takes less memory.
 *
 * @throws {RangeError} unless both are positive and finite, as a measurement is
 */
export function speedRatio(quantity: Quantity, ours: number, rival: number): number {
  for (const value of [ours, rival]) {
    if (!(value > 0 && Number.isFinite(value))) {
      throw new RangeError(`not a measurement of a rate, time or size: ${value}`);
    }
  }
  return quantity === 'rate' ? ours / rival : rival / ours;
}

/** What `ratio` reaches of `thresholds`. Exactly the threshold is enough. */
export function judge(ratio: number, { atLeast, aim }: Thresholds): Verdict {
  if (atLeast === undefined && aim === undefined) return 'unjudged';
  if (aim !== undefined && ratio >= aim) return 'aim';
  if (atLeast === undefined) return 'below';
  return ratio >= atLeast ? 'at-least' : 'below';
}
