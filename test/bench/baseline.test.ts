import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import { main } from '../../bench/main.ts';
import { compareWithBaseline, formatBaseline } from '../../bench/support/baseline.ts';
import type { Environment } from '../../bench/support/environment.ts';
import type { ComparisonResult } from '../../bench/support/measure.ts';
import { readResults, writeResult, type BenchResult } from '../../bench/support/results.ts';
import { judge, summarize } from '../../bench/support/statistics.ts';

const ENVIRONMENT: Environment = {
  node: 'v20.19.0',
  system: 'Linux 6 x64',
  processor: 'a processor',
  cores: 2,
  memoryBytes: 2 ** 33,
  loadAverage: [0, 0, 0],
  root: true,
  commit: 'abc',
  tools: { 'qemu-img': 'qemu-img version 7.2' },
};

/** A comparison with one rival a list of ratios. */
function comparison(name: string, ratios: Record<string, number[]>): ComparisonResult {
  const contender = (who: string, values: number[]) => {
    return { name: who, values, summary: summarize(values) };
  };
  const [first = [1]] = Object.values(ratios);
  return {
    name,
    unit: 'bytes/s',
    contenders: [
      contender(
        'qcow2',
        first.map((ratio) => ratio * 1e9),
      ),
      ...Object.keys(ratios).map((rival) => contender(rival, [1e9])),
    ],
    ratios: Object.entries(ratios).map(([rival, values]) => {
      const summary = summarize(values);
      return { rival, values, summary, verdict: judge(summary.median, {}) };
    }),
    missing: [],
  };
}

function result(
  bench: string,
  comparisons: ComparisonResult[],
  changed: { settings?: object; environment?: object } = {},
): BenchResult {
  return {
    bench,
    date: '2026-01-01T00:00:00.000Z',
    environment: { ...ENVIRONMENT, ...changed.environment },
    settings: { pairs: 5, sizeBytes: 2 ** 30, seconds: 3, memorySeconds: 600, ...changed.settings },
    comparisons,
  };
}

const seq = (median: number, changed = {}) =>
  result('seq', [comparison('seq', { rival: [median - 0.5, median, median + 0.5] })], changed);

describe('compareWithBaseline', () => {
  const margin = 0.1;

  it('lets a loss within the margin pass, and no more', () => {
    const compare = (now: number) =>
      compareWithBaseline({ before: [seq(2)], now: [seq(now)], margin });
    expect(compare(1.81)).toMatchObject({ isGood: true, rows: [{ standing: 'ok' }] });
    expect(compare(1.79)).toMatchObject({ isGood: false, rows: [{ standing: 'worse' }] });
    expect(compare(1.79).rows[0]?.change).toBeCloseTo(-0.105);
    expect(compare(3)).toMatchObject({ isGood: true, rows: [{ standing: 'ok' }] });
    expect(compare(3).rows[0]?.change).toBeCloseTo(0.5);
  });

  it('shows before, now and the change in a table', () => {
    const table = formatBaseline(
      compareWithBaseline({ before: [seq(2)], now: [seq(1.5)], margin }),
    );
    expect(table).toMatch(
      /seq +rival +2\.00x +1\.50–2\.50 +1\.50x +1\.00–2\.00 +-25% +worse by more than 10%/,
    );
    expect(table).toContain('failed: 1 compared, 1 worse by more than 10%');
  });

  it('fails for what was measured before and is not now, and not for what is new', () => {
    const two = result('seq', [comparison('seq', { rival: [2], other: [3] })]);
    const one = result('seq', [comparison('seq', { rival: [2] })]);
    const lost = compareWithBaseline({ before: [two], now: [one], margin });
    expect(lost.isGood).toBe(false);
    expect(formatBaseline(lost)).toMatch(/other +3\.00x .*in the baseline, and not measured now/);
    const gained = compareWithBaseline({ before: [one], now: [two], margin });
    expect(gained.isGood).toBe(true);
    expect(formatBaseline(gained)).toMatch(/other .*3\.00x.* not in the baseline/);
  });

  it('tells of whole benches that are in one run alone', () => {
    const rand = result('rand', [comparison('rand, 1 job', { rival: [4] })]);
    const lost = compareWithBaseline({ before: [seq(2), rand], now: [seq(2)], margin });
    expect(lost.isGood).toBe(false);
    expect(formatBaseline(lost)).toContain(
      'failed: 1 compared, 0 worse by more than 10%; 1 missing',
    );
    const gained = compareWithBaseline({ before: [seq(2)], now: [seq(2), rand], margin });
    expect(gained.isGood).toBe(true);
  });

  it('leaves out benches that were not asked for', () => {
    const rand = result('rand', [comparison('rand, 1 job', { rival: [4] })]);
    const input = { before: [seq(2), rand], now: [seq(2)], margin, asked: ['seq'] };
    expect(compareWithBaseline(input)).toMatchObject({ isGood: true, rows: [{ bench: 'seq' }] });
  });

  it('does not judge what was measured with other settings, and says which', () => {
    const smaller = seq(1, { settings: { sizeBytes: 2 ** 20 } });
    const compared = compareWithBaseline({ before: [seq(2)], now: [smaller], margin });
    expect(compared.rows[0]?.standing).toBe('other settings');
    // Nothing was compared, so nothing was found good.
    expect(compared.isGood).toBe(false);
    expect(formatBaseline(compared)).toContain('not judged: --size 1073741824 before, 1048576 now');
    expect(formatBaseline(compared)).toContain('nothing could be compared');
  });

  it('judges whatever the number of pairs, and each bench by the time that it depends on', () => {
    const settings = { pairs: 9, memorySeconds: 60 };
    const now = seq(2, { settings });
    expect(compareWithBaseline({ before: [seq(2)], now: [now], margin }).isGood).toBe(true);
    const memory = (changed = {}) => result('memory', [comparison('memory', { r: [1] })], changed);
    const compared = compareWithBaseline({
      before: [memory()],
      now: [memory({ settings })],
      margin,
    });
    expect(compared.rows[0]?.differences).toEqual(['--memory-seconds 600 before, 60 now']);
  });

  it('says what was different about the machine', () => {
    const elsewhere = seq(2, { environment: { node: 'v24.0.0', tools: {} } });
    const compared = compareWithBaseline({ before: [seq(2)], now: [elsewhere], margin });
    expect(compared.differences).toEqual([
      'node: v20.19.0 before, v24.0.0 now',
      'qemu-img: qemu-img version 7.2 before, not there now',
    ]);
    expect(formatBaseline(compared)).toContain('not the same: node: v20.19.0 before, v24.0.0 now');
  });
});

describe('bench --report --baseline', () => {
  let directory: string;
  let printed: { stdout: string; stderr: string };

  beforeEach(() => {
    directory = mkdtempSync(path.join(tmpdir(), 'qcow2-baseline-'));
    printed = { stdout: '', stderr: '' };
    for (const stream of ['stdout', 'stderr'] as const) {
      vi.spyOn(process[stream], 'write').mockImplementation((text) => {
        printed[stream] += String(text);
        return true;
      });
    }
  });

  afterEach(() => {
    vi.restoreAllMocks();
    rmSync(directory, { recursive: true });
  });

  const renamed = (median: number): BenchResult => ({ ...seq(median), bench: 'fuse-seq' });
  const run = (...args: string[]) =>
    main(['--report', '--output-dir', path.join(directory, 'now'), ...args], directory);

  function store(place: string, ...results: BenchResult[]): string {
    const target = path.join(directory, place);
    for (const one of results) writeResult(target, one);
    return target;
  }

  it('exits 3 past the margin and 0 within it, for a directory and for a file', async () => {
    store('now', renamed(1.7));
    const before = store('before', renamed(2));
    expect(await run('--baseline', before)).toBe(3);
    expect(printed.stdout).toMatch(/-15% +worse by more than 10%/);
    expect(await run('--baseline', before, '--margin', '20%')).toBe(0);
    expect(await run('--baseline', path.join(before, 'fuse-seq.json'))).toBe(3);
  });

  it('prints JSON on request, and nothing else', async () => {
    store('now', renamed(1.7));
    expect(await run('--json', '--baseline', store('before', renamed(2)))).toBe(3);
    const document = JSON.parse(printed.stdout) as {
      results: BenchResult[];
      baseline: { isGood: boolean; rows: { change: number; standing: string }[] };
    };
    expect(document.results).toEqual([renamed(1.7)]);
    expect(document.baseline.isGood).toBe(false);
    expect(document.baseline.rows[0]).toMatchObject({ standing: 'worse', name: 'seq' });
  });

  it('says in one line what is wrong with the baseline', async () => {
    store('now', renamed(2));
    const broken = path.join(directory, 'broken.json');
    for (const [content, problem] of [
      ['{', 'is not JSON'],
      ['[]', 'is not the result of a bench'],
      ['{"bench":"x","settings":{"pairs":1},"comparisons":[{}]}', 'is not the result of a bench'],
    ] as const) {
      writeFileSync(broken, content);
      printed.stderr = '';
      expect(await run('--baseline', broken)).toBe(2);
      expect(printed.stderr).toContain(problem);
      expect(printed.stderr.trim().split('\n')).toHaveLength(1);
    }
    expect(await run('--baseline', path.join(directory, 'nowhere'))).toBe(2);
    expect(await run('--baseline', broken, '--margin', 'much')).toBe(2);
    expect(() => readResults(path.join(directory, 'nowhere'))).toThrow('is not there');
  });
});
