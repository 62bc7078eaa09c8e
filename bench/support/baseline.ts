/**
 * A run against an earlier one: whether the ratios to the rivals got worse.
 *
 * Ratios are compared, not rates: the rival ran on the same machine at the same time, so that a
 * slower machine, or a busier one, slows both. What was measured in another way (other sizes or
 * times) is shown and not judged.
 */

import type { Environment } from './environment.ts';
import { alignColumns, formatRatio, formatSpread } from './report.ts';
import type { BenchResult, ResultSettings } from './results.ts';
import type { ComparisonResult, RatioResult } from './measure.ts';
import type { Summary } from './statistics.ts';

/** How a ratio stands beside the earlier one. */
export type Standing =
  /** Worse by no more than the margin. */
  | 'ok'
  /** Worse by more than the margin. */
  | 'worse'
  /** Not measured before. */
  | 'new'
  /** Measured before, and not now. */
  | 'missing'
  /** Measured in another way before. */
  | 'other settings';

/** One ratio, before and now. */
export interface BaselineRow {
  bench: string;
  name: string;
  rival: string;
  before?: Summary;
  now?: Summary;
  /** Relative change of the median: -0.1 is a tenth worse. */
  change?: number;
  standing: Standing;
  /** What was different, for `other settings`. */
  differences: string[];
}

/** All ratios of two runs. */
export interface BaselineComparison {
  /** Relative loss that is let pass. */
  margin: number;
  rows: BaselineRow[];
  /** What was different about the machines and programs. */
  differences: string[];
  /** Whether nothing is worse or missing, and something was compared. */
  isGood: boolean;
}

/** What a comparison is made of. */
export interface BaselineInput {
  before: readonly BenchResult[];
  now: readonly BenchResult[];
  /** Relative loss that is let pass: 0.1 is 10%. */
  margin: number;
  /** Benches that were to be run now; others of the earlier run are left out (default: all). */
  asked?: readonly string[] | undefined;
}

/** Compares the ratios of `now` with those of `before`. */
export function compareWithBaseline(input: BaselineInput): BaselineComparison {
  const { before, now, margin, asked } = input;
  const rows: BaselineRow[] = [];
  const differences = new Set<string>();
  const isAsked = ({ bench }: BenchResult) => asked?.includes(bench) ?? true;
  const pairs = matchByKey(before.filter(isAsked), now, ({ bench }) => bench);
  for (const [earlier, later] of pairs) {
    if (earlier !== undefined && later !== undefined) {
      for (const line of environmentDifferences(earlier.environment, later.environment)) {
        differences.add(line);
      }
    }
    rows.push(...compareBench(earlier, later, margin));
  }
  const isCompared = rows.some(({ standing }) => standing === 'ok' || standing === 'worse');
  const isBad = rows.some(({ standing }) => standing === 'worse' || standing === 'missing');
  return { margin, rows, differences: [...differences], isGood: isCompared && !isBad };
}

function compareBench(
  before: BenchResult | undefined,
  now: BenchResult | undefined,
  margin: number,
): BaselineRow[] {
  const bench = (before ?? now)!.bench;
  const changed =
    before === undefined || now === undefined
      ? []
      : settingsDifferences(bench, before.settings, now.settings);
  return matchByKey(ratiosOf(before), ratiosOf(now), keyOf).map(([earlier, later]) => {
    const { name, rival } = (earlier ?? later)!;
    const row = { bench, name, rival };
    if (earlier === undefined) {
      return { ...row, now: later!.ratio.summary, standing: 'new', differences: [] };
    }
    if (later === undefined) {
      return { ...row, before: earlier.ratio.summary, standing: 'missing', differences: [] };
    }
    const [old, current] = [earlier.ratio.summary, later.ratio.summary];
    const change = current.median / old.median - 1;
    let standing: Standing = change < -margin ? 'worse' : 'ok';
    if (changed.length > 0) standing = 'other settings';
    return { ...row, before: old, now: current, change, standing, differences: changed };
  });
}

interface NamedRatio {
  name: string;
  rival: string;
  ratio: RatioResult;
}

function ratiosOf(result: BenchResult | undefined): NamedRatio[] {
  return (result?.comparisons ?? []).flatMap(({ name, ratios }: ComparisonResult) =>
    ratios.map((ratio) => ({ name, rival: ratio.rival, ratio })),
  );
}

function keyOf({ name, rival }: NamedRatio): string {
  return `${name}\0${rival}`;
}

/** Pairs the items of two lists; those of the first alone keep their place, the others follow. */
function matchByKey<T>(
  before: readonly T[],
  now: readonly T[],
  keyOf: (item: T) => string,
): [before: T | undefined, now: T | undefined][] {
  const left = new Map(now.map((item) => [keyOf(item), item]));
  const pairs: [T | undefined, T | undefined][] = before.map((item) => {
    const key = keyOf(item);
    const match = left.get(key);
    left.delete(key);
    return [item, match];
  });
  return [...pairs, ...[...left.values()].map((item): [undefined, T] => [undefined, item])];
}

/** The number of pairs changes how sure a median is, and not what it is of. */
function settingsDifferences(bench: string, before: ResultSettings, now: ResultSettings): string[] {
  const differences: string[] = [];
  const compare = (option: string, old: number | undefined, current: number | undefined) => {
    if (old === current) return;
    differences.push(`${option} ${old ?? '(none)'} before, ${current ?? '(none)'} now`);
  };
  compare('--size', before.sizeBytes, now.sizeBytes);
  if (bench === 'memory') compare('--memory-seconds', before.memorySeconds, now.memorySeconds);
  else compare('--seconds', before.seconds, now.seconds);
  return differences;
}

function environmentDifferences(before: Environment, now: Environment): string[] {
  const fields = ['node', 'system', 'processor', 'cores', 'root'] as const;
  const differences = fields
    .filter((field) => before[field] !== now[field])
    .map((field) => `${field}: ${String(before[field])} before, ${String(now[field])} now`);
  const tools = new Set([...Object.keys(before.tools), ...Object.keys(now.tools)]);
  for (const tool of tools) {
    const [old, current] = [before.tools[tool], now.tools[tool]];
    if (old === current) continue;
    differences.push(`${tool}: ${old ?? 'not there'} before, ${current ?? 'not there'} now`);
  }
  return differences;
}

const HEADINGS = ['bench', 'rival', 'before', 'min–max', 'now', 'min–max', 'change', ''];

/** The comparison for a terminal. */
export function formatBaseline(comparison: BaselineComparison): string {
  const { rows, margin, differences } = comparison;
  const cells = rows.map((row) => [
    row.name,
    row.rival,
    ...formatSummary(row.before),
    ...formatSummary(row.now),
    row.change === undefined ? '' : formatChange(row.change),
    describeStanding(row, margin),
  ]);
  const lines = alignColumns([HEADINGS, ...cells]);
  for (const difference of differences) lines.push(`not the same: ${difference}`);
  lines.push(conclude(comparison));
  return `${lines.join('\n')}\n`;
}

function formatSummary(summary: Summary | undefined): [median: string, spread: string] {
  return summary === undefined ? ['', ''] : [formatRatio(summary.median), formatSpread(summary)];
}

function formatChange(change: number): string {
  const percent = Math.round(change * 1000) / 10;
  return `${percent > 0 ? '+' : ''}${percent}%`;
}

function describeStanding({ standing, differences }: BaselineRow, margin: number): string {
  switch (standing) {
    case 'ok':
      return 'ok';
    case 'worse':
      return `worse by more than ${formatMargin(margin)}`;
    case 'new':
      return 'not in the baseline';
    case 'missing':
      return 'in the baseline, and not measured now';
    case 'other settings':
      return `not judged: ${differences.join('; ')}`;
  }
}

function conclude({ rows, margin, isGood }: BaselineComparison): string {
  const count = (wanted: Standing) => rows.filter(({ standing }) => standing === wanted).length;
  const judged = count('ok') + count('worse');
  const words = [
    `${judged} compared, ${count('worse')} worse by more than ${formatMargin(margin)}`,
  ];
  for (const [standing, word] of [
    ['missing', 'missing now'],
    ['new', 'not in the baseline'],
    ['other settings', 'not judged, measured with other settings'],
  ] as const) {
    if (count(standing) > 0) words.push(`${count(standing)} ${word}`);
  }
  if (judged === 0) words.push('nothing could be compared');
  return `${isGood ? 'passed' : 'failed'}: ${words.join('; ')}`;
}

function formatMargin(margin: number): string {
  return `${Math.round(margin * 1000) / 10}%`;
}
