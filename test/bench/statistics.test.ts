import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { judge, quantile, speedRatio, summarize } from '../../bench/support/statistics.ts';

const measurements = fc.array(fc.double({ min: 1e-6, max: 1e12, noNaN: true }), { minLength: 1 });

describe('quantile', () => {
  it('is the middle value of an odd count, whatever their order', () => {
    expect(quantile([9, 1, 5], 0.5)).toBe(5);
  });

  it('lies between the middle values of an even count', () => {
    expect(quantile([4, 1, 2, 3], 0.5)).toBe(2.5);
  });

  it('interpolates quartiles linearly', () => {
    expect(quantile([10, 20, 30, 40], 0.25)).toBe(17.5);
    expect(quantile([10, 20, 30, 40, 50], 0.75)).toBe(40);
  });

  it('sorts numbers as numbers', () => {
    expect(quantile([100, 20, 3], 1)).toBe(100);
  });

  it('leaves the list as it is', () => {
    const values = [3, 1, 2];
    quantile(values, 0.5);
    expect(values).toEqual([3, 1, 2]);
  });

  it('refuses an empty list and fractions outside 0 to 1', () => {
    expect(() => quantile([], 0.5)).toThrow('at least one value');
    expect(() => quantile([1], 1.01)).toThrow('no such quantile');
    expect(() => quantile([1], Number.NaN)).toThrow('no such quantile');
  });
});

describe('summarize', () => {
  it('gives median, range and quartiles', () => {
    expect(summarize([5, 1, 4, 2, 3])).toEqual({
      count: 5,
      median: 3,
      minimum: 1,
      maximum: 5,
      lowerQuartile: 2,
      upperQuartile: 4,
    });
  });

  it('keeps its numbers in order', () => {
    fc.assert(
      fc.property(measurements, (values) => {
        const { minimum, lowerQuartile, median, upperQuartile, maximum } = summarize(values);
        const slack = 1 + 1e-12;
        expect(minimum).toBe(Math.min(...values));
        expect(maximum).toBe(Math.max(...values));
        expect(minimum).toBeLessThanOrEqual(lowerQuartile * slack);
        expect(lowerQuartile).toBeLessThanOrEqual(median * slack);
        expect(median).toBeLessThanOrEqual(upperQuartile * slack);
        expect(upperQuartile).toBeLessThanOrEqual(maximum * slack);
      }),
    );
  });
});

describe('speedRatio', () => {
  it('is above 1 for a higher rate and for a shorter time', () => {
    expect(speedRatio('rate', 3e9, 1e9)).toBe(3);
    expect(speedRatio('time', 0.5, 2)).toBe(4);
  });

  it('refuses what no measurement gives', () => {
    for (const value of [0, -1, Number.NaN, Number.POSITIVE_INFINITY]) {
      expect(() => speedRatio('rate', 1, value)).toThrow(RangeError);
      expect(() => speedRatio('time', value, 1)).toThrow(RangeError);
    }
  });
});

describe('judge', () => {
  it('takes exactly the threshold for reached', () => {
    expect(judge(1.5, { atLeast: 1.5, aim: 3 })).toBe('at-least');
    expect(judge(3, { atLeast: 1.5, aim: 3 })).toBe('aim');
    expect(judge(1.49, { atLeast: 1.5, aim: 3 })).toBe('below');
  });

  it('does with one threshold, or none', () => {
    expect(judge(0.3, { aim: 1 / 3 })).toBe('below');
    expect(judge(0.4, { aim: 1 / 3 })).toBe('aim');
    expect(judge(6, { atLeast: 5 })).toBe('at-least');
    expect(judge(4, { atLeast: 5 })).toBe('below');
    expect(judge(1, {})).toBe('unjudged');
  });
});
