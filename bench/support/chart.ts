/**
 * The chart: a bar a ratio, on a logarithmic axis, from 1 (as fast as the rival) to the median;
 * a whisker from the lowest to the highest ratio, and a mark at each threshold.
 *
 * The colours follow the reader's scheme, light or dark; what they say is also said in words.
 */

import type { ComparisonResult, RatioResult } from './measure.ts';
import { formatRatio, formatSpread, formatValue, VERDICT_WORDS } from './report.ts';

const WIDTH = 1040;
const LABEL_WIDTH = 320;
const NOTE_WIDTH = 200;
const MARGIN = 20;
const HEAD_HEIGHT = 84;
const ROW_HEIGHT = 46;
const FOOT_HEIGHT = 56;
const BAR_HEIGHT = 18;
const GRID_RATIOS = [0.05, 0.1, 0.2, 0.33, 0.5, 1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000];

/** A horizontal logarithmic axis that always shows 1. */
export interface Axis {
  minimum: number;
  maximum: number;
  /** Horizontal position of a ratio; one beyond the axis is put at its end. */
  readonly x: (ratio: number) => number;
}

/**
 * The axis on which all of `ratios` and some room about 1 can be seen.
 *
 * @param left position of the lowest ratio
 * @param right position of the highest
 */
export function logarithmicAxis(ratios: readonly number[], left: number, right: number): Axis {
  const minimum = Math.min(0.5, ...ratios) / 1.1;
  const maximum = Math.max(2, ...ratios) * 1.1;
  const scale = (right - left) / Math.log(maximum / minimum);
  const x = (ratio: number) => {
    const inside = Math.min(Math.max(ratio, minimum), maximum);
    return left + Math.log(inside / minimum) * scale;
  };
  return { minimum, maximum, x };
}

/** What the chart is drawn from, beside the results. */
export interface ChartOptions {
  /** A line below the title: when, on what. */
  subtitle: string;
}

/** Draws the chart of `results` as a complete SVG document. */
export function drawChart(results: readonly ComparisonResult[], options: ChartOptions): string {
  const rows = results.flatMap((result) => result.ratios.map((ratio) => ({ result, ratio })));
  const height = HEAD_HEIGHT + rows.length * ROW_HEIGHT + FOOT_HEIGHT;
  const shown = rows.flatMap(({ ratio: { summary, atLeast, aim } }) => [
    summary.minimum,
    summary.maximum,
    ...[atLeast, aim].filter((threshold) => threshold !== undefined),
  ]);
  const axis = logarithmicAxis(shown, MARGIN + LABEL_WIDTH, WIDTH - MARGIN - NOTE_WIDTH);
  const bottom = height - FOOT_HEIGHT;
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" role="img" ` +
      `width="${WIDTH}" height="${height}" aria-labelledby="title">`,
    STYLE,
    `<rect class="page" width="${WIDTH}" height="${height}" rx="8"/>`,
    text(
      'title',
      MARGIN,
      32,
      'Against the rival: right of 1x is faster, or takes less memory',
      'id="title"',
    ),
    text('small', MARGIN, 54, options.subtitle),
    ...drawGrid(axis, bottom),
    ...rows.map(({ result, ratio }, index) =>
      drawRow(axis, HEAD_HEIGHT + index * ROW_HEIGHT, result, ratio),
    ),
    ...drawLegend(height - 16),
    '</svg>\n',
  ].join('\n');
}

function drawGrid(axis: Axis, bottom: number): string[] {
  const top = HEAD_HEIGHT - 6;
  const visible = GRID_RATIOS.filter((ratio) => ratio >= axis.minimum && ratio <= axis.maximum);
  return visible.flatMap((ratio) => {
    const x = round(axis.x(ratio));
    const className = ratio === 1 ? 'one' : 'grid';
    return [
      `<line class="${className}" x1="${x}" y1="${top}" x2="${x}" y2="${bottom}"/>`,
      text('small middle', x, bottom + 14, `${ratio}x`),
    ];
  });
}

function drawRow(axis: Axis, top: number, result: ComparisonResult, ratio: RatioResult): string {
  const { summary, verdict, atLeast, aim } = ratio;
  const middle = top + ROW_HEIGHT / 2;
  const from = axis.x(1);
  const to = axis.x(summary.median);
  const bar =
    `x="${round(Math.min(from, to))}" y="${middle - BAR_HEIGHT / 2}" ` +
    `width="${round(Math.max(Math.abs(to - from), 1))}" height="${BAR_HEIGHT}"`;
  const [low, high] = [axis.x(summary.minimum), axis.x(summary.maximum)].map(round);
  const words = [formatSpread(summary), VERDICT_WORDS[verdict]].filter((word) => word !== '');
  const noteLeft = WIDTH - MARGIN - NOTE_WIDTH + 16;
  return [
    text('name', MARGIN, middle - 2, result.name),
    text('small', MARGIN, middle + 14, `against ${describeRival(result, ratio)}`),
    `<rect class="bar ${verdict}" ${bar}/>`,
    `<path class="whisker" d="M${low} ${middle}H${high}M${low} ${middle - 4}v8` +
      `M${high} ${middle - 4}v8"/>`,
    ...(atLeast === undefined ? [] : [atLeastMark(axis.x(atLeast), middle)]),
    ...(aim === undefined ? [] : [aimMark(axis.x(aim), middle)]),
    text('ratio', noteLeft, middle - 2, formatRatio(summary.median)),
    text('small', noteLeft, middle + 14, words.join(', ')),
  ].join('\n');
}

function describeRival({ unit, contenders }: ComparisonResult, { rival }: RatioResult): string {
  const ours = contenders[0]!;
  const theirs = contenders.find(({ name }) => name === rival)!;
  const values = [ours, theirs].map(({ summary }) => formatValue(summary.median, unit));
  return `${rival}: ${values.join(' / ')}`;
}

function drawLegend(y: number): string[] {
  const whisker = `M${MARGIN} ${y - 4}h22m0 -4v8m-22 -8v8`;
  return [
    `<path class="whisker" d="${whisker}"/>`,
    text('small', MARGIN + 30, y, 'lowest to highest pair'),
    atLeastMark(MARGIN + 190, y - 4),
    text('small', MARGIN + 200, y, 'at least'),
    aimMark(MARGIN + 280, y - 4),
    text('small', MARGIN + 292, y, 'aim'),
    text('small', MARGIN + 340, y, 'bar: median ratio, logarithmic; values are ours / rival’s'),
  ];
}

function atLeastMark(x: number, y: number): string {
  return `<line class="at-least-mark" x1="${round(x)}" y1="${y - 14}" x2="${round(x)}" y2="${y + 14}"/>`;
}

function aimMark(x: number, y: number): string {
  return `<path class="aim-mark" d="M${round(x)} ${y - 7}l6 7l-6 7l-6 -7z"/>`;
}

function text(classes: string, x: number, y: number, content: string, attributes = ''): string {
  return `<text class="${classes}" x="${x}" y="${y}" ${attributes}>${escapeXml(content)}</text>`;
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}

function escapeXml(content: string): string {
  return content.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');
}

// Plain rules, not custom properties, which many viewers of SVG do not know.
const STYLE = `<style>
text { font: 13px system-ui, 'Segoe UI', Helvetica, Arial, sans-serif; fill: #1f2328; }
.title { font-size: 18px; font-weight: 600; }
.name, .ratio { font-weight: 600; }
.small { font-size: 12px; fill: #59636e; }
.middle { text-anchor: middle; }
.page { fill: #ffffff; }
.grid { stroke: #d9dee3; }
.one { stroke: #1f2328; stroke-width: 1.5; }
.bar { fill: #9aa4ae; }
.bar.aim { fill: #4caf76; }
.bar.at-least { fill: #5b93e6; }
.bar.below { fill: #e98a4b; }
.whisker { stroke: #1f2328; stroke-width: 1.5; fill: none; }
.at-least-mark { stroke: #1f2328; stroke-width: 3; }
.aim-mark { fill: #ffffff; stroke: #1f2328; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
  text { fill: #e8edf2; }
  .small { fill: #a3adb8; }
  .page { fill: #12161b; }
  .grid { stroke: #333b44; }
  .one, .whisker, .at-least-mark, .aim-mark { stroke: #e8edf2; }
  .aim-mark { fill: #12161b; }
  .bar { fill: #7b8590; }
  .bar.aim { fill: #2f8f58; }
  .bar.at-least { fill: #3d74c8; }
  .bar.below { fill: #c06a2c; }
}
</style>`;
