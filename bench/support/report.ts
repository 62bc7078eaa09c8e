/**
 * Results in words: values with their units, lines of progress and the table at the end.
 */

import type { Unit } from './bench.ts';
import type { ComparisonResult, RatioResult, Round } from './measure.ts';
import type { Summary, Verdict } from './statistics.ts';

/** A value with its unit: `1.21 GB/s`, `34.1k/s`, `52 ms`. */
export function formatValue(value: number, unit: Unit): string {
  if (unit === 'bytes/s') {
    return value >= 1e9 ? `${digits(value / 1e9)} GB/s` : `${digits(value / 1e6)} MB/s`;
  }
  if (unit === 'reads/s' || unit === 'writes/s') {
    return value >= 1e3 ? `${digits(value / 1e3)}k/s` : `${digits(value)}/s`;
  }
  if (unit === 'bytes') return formatMemory(value);
  return value >= 1 ? `${digits(value)} s` : `${digits(value * 1e3)} ms`;
}

/** A ratio as it stands in tables: `3.02x`. */
export function formatRatio(ratio: number): string {
  return `${digits(ratio)}x`;
}

/** A memory size in MiB. */
export function formatMemory(bytes: number | undefined): string {
  return bytes === undefined ? '' : `${Math.round(bytes / 2 ** 20)} MiB`;
}

/** What a verdict is called. */
export const VERDICT_WORDS: Readonly<Record<Verdict, string>> = {
  aim: 'aim reached',
  'at-least': 'at least reached',
  below: 'below',
  unjudged: '',
};

/** Columns that hold thresholds: ratios, or values where those are bounded. */
function formatThresholds(
  { unit, bounds }: ComparisonResult,
  { atLeast, aim }: RatioResult,
): [atLeast: string, aim: string] {
  if (bounds !== undefined) {
    return [`≤ ${formatValue(bounds.atMost, unit)}`, `≤ ${formatValue(bounds.aim, unit)}`];
  }
  return [
    atLeast === undefined ? '' : formatRatio(atLeast),
    aim === undefined ? '' : formatRatio(aim),
  ];
}

/** The line of a round, as in `fuse-seq  pair 3/5  qcow2 1.21 GB/s  …`. */
export function formatRound({ comparison, number, measured }: Round, pairs: number): string {
  const round = number === 0 ? 'warm-up' : `pair ${number}/${pairs}`;
  const values = measured.map(({ name, value, ratio }) => {
    const inBrackets = ratio === undefined ? '' : ` (${formatRatio(ratio)})`;
    return `${name} ${formatValue(value, comparison.unit)}${inBrackets}`;
  });
  return [comparison.name, round, ...values].join('  ');
}

const HEADINGS = [
  'bench',
  'rival',
  'qcow2',
  'rival’s',
  'ratio',
  'min–max',
  'at least',
  'aim',
  'result',
  'peak memory, ours / rival’s',
] as const;

/** One row of cells a ratio, without the headings. */
export function tableRows(results: readonly ComparisonResult[]): string[][] {
  return results.flatMap((result) =>
    result.ratios.map((ratio) => {
      const { name, unit, contenders } = result;
      const ours = contenders[0]!;
      const theirs = contenders.find((contender) => contender.name === ratio.rival)!;
      const memory = [ours, theirs].map(({ peakRssBytes }) => formatMemory(peakRssBytes) || '?');
      return [
        name,
        ratio.rival,
        formatValue(ours.summary.median, unit),
        formatValue(theirs.summary.median, unit),
        formatRatio(ratio.summary.median),
        formatSpread(ratio.summary),
        ...formatThresholds(result, ratio),
        VERDICT_WORDS[ratio.verdict],
        memory.every((cell) => cell === '?') ? '' : memory.join(' / '),
      ];
    }),
  );
}

/** The table for a terminal, in aligned columns. */
export function formatTable(results: readonly ComparisonResult[]): string {
  const rows = [[...HEADINGS], ...tableRows(results)];
  return `${alignColumns(rows).join('\n')}\n`;
}

/** Rows of as many cells each as lines in which columns begin one below the other. */
export function alignColumns(rows: readonly (readonly string[])[]): string[] {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows.map((row) =>
    row
      .map((cell, column) => cell.padEnd(widths[column]!))
      .join('  ')
      .trimEnd(),
  );
}

/** The table in Markdown. */
export function formatMarkdown(results: readonly ComparisonResult[]): string {
  const rows = [[...HEADINGS], HEADINGS.map(() => '---'), ...tableRows(results)];
  return rows.map((row) => `| ${row.join(' | ')} |\n`).join('');
}

/** Lowest and highest ratio. */
export function formatSpread({ minimum, maximum }: Summary): string {
  return `${digits(minimum)}–${digits(maximum)}`;
}

/** Three significant digits, but no exponent and no more than two decimals. */
function digits(value: number): string {
  if (value >= 100) return value.toFixed(0);
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}
