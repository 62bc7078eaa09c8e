import { describe, expect, it } from 'vitest';
import { drawChart, logarithmicAxis } from '../../bench/support/chart.ts';
import type { ComparisonResult } from '../../bench/support/measure.ts';
import { judge, summarize, type Thresholds } from '../../bench/support/statistics.ts';

function comparison(ratios: number[], thresholds: Thresholds, name = 'seq'): ComparisonResult {
  const contender = (contenderName: string, values: number[]) => {
    return { name: contenderName, values, summary: summarize(values) };
  };
  const summary = summarize(ratios);
  const verdict = judge(summary.median, thresholds);
  return {
    name,
    unit: 'bytes/s',
    contenders: [
      contender(
        'qcow2',
        ratios.map((ratio) => ratio * 1e9),
      ),
      contender(
        'rival',
        ratios.map(() => 1e9),
      ),
    ],
    ratios: [{ rival: 'rival', ...thresholds, values: ratios, summary, verdict }],
    missing: [],
  };
}

/** The bar, as positions of its ends, and the lines and marks of a chart's only row. */
function barOf(svg: string): { left: number; right: number; verdict: string } {
  const match = /<rect class="bar ([\w-]+)" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"/.exec(svg);
  const [, verdict = '', left, width] = match ?? [];
  return { verdict, left: Number(left), right: Number(left) + Number(width) };
}

function positionOfOne(svg: string): number {
  return Number(/<line class="one" x1="([\d.]+)"/.exec(svg)?.[1]);
}

describe('logarithmicAxis', () => {
  it('puts equal factors equally far apart', () => {
    const { x } = logarithmicAxis([0.1, 10], 0, 600);
    expect(x(10) - x(1)).toBeCloseTo(x(1) - x(0.1));
    expect(x(4) - x(2)).toBeCloseTo(x(2) - x(1));
  });

  it('shows every ratio, and 1', () => {
    const { x, minimum, maximum } = logarithmicAxis([3, 4], 100, 200);
    expect(minimum).toBeLessThan(1);
    expect(maximum).toBeGreaterThan(4);
    expect(x(minimum)).toBeCloseTo(100);
    expect(x(maximum)).toBeCloseTo(200);
  });

  it('keeps what lies outside at its ends', () => {
    const { x } = logarithmicAxis([1], 100, 200);
    expect(x(1e9)).toBeCloseTo(200);
    expect(x(1e-9)).toBeCloseTo(100);
  });
});

describe('drawChart', () => {
  const options = { subtitle: 'on a machine' };

  it('draws a faster median to the right of 1, a slower one to the left', () => {
    const faster = drawChart([comparison([2, 3, 4], { atLeast: 2, aim: 5 })], options);
    expect(barOf(faster).left).toBeCloseTo(positionOfOne(faster), 0);
    expect(barOf(faster).verdict).toBe('at-least');
    const slower = drawChart([comparison([0.2, 0.3, 0.4], { atLeast: 2 })], options);
    expect(barOf(slower).right).toBeCloseTo(positionOfOne(slower), 0);
    expect(barOf(slower).verdict).toBe('below');
  });

  it('spans the whisker from the lowest to the highest ratio', () => {
    const svg = drawChart([comparison([1, 3, 10], {})], options);
    const [, low, high] = /class="whisker" d="M([\d.]+) [\d.]+H([\d.]+)M/.exec(svg) ?? [];
    expect(Number(low)).toBeCloseTo(positionOfOne(svg), 0);
    expect(Number(high)).toBeGreaterThan(barOf(svg).right);
  });

  it('says in words what the colours say, with the values', () => {
    const svg = drawChart([comparison([3, 3, 3], { atLeast: 2, aim: 3 })], options);
    expect(svg).toContain('aim reached');
    expect(svg).toContain('against rival: 3.00 GB/s / 1.00 GB/s');
    expect(svg).toContain('on a machine');
  });

  it('marks only the thresholds that there are', () => {
    const marks = (svg: string) => [
      svg.split('<line class="at-least-mark"').length - 1,
      svg.split('<path class="aim-mark"').length - 1,
    ];
    const inLegend = 1;
    expect(marks(drawChart([comparison([1], {})], options))).toEqual([inLegend, inLegend]);
    expect(marks(drawChart([comparison([1], { atLeast: 2, aim: 3 })], options))).toEqual([
      inLegend + 1,
      inLegend + 1,
    ]);
  });

  it('has colours for light and dark pages, and escapes names', () => {
    const svg = drawChart([comparison([1], {}, 'a <b> & c')], options);
    expect(svg).toContain('prefers-color-scheme: dark');
    expect(svg).toContain('a &lt;b&gt; &amp; c');
    expect(svg).not.toContain('<b>');
  });
});
