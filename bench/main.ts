/**
 * The bench program: the run, what it leaves behind, and how it stands beside an earlier one.
 */

import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { BENCHES } from './benches/index.ts';
import { compareWithBaseline, formatBaseline } from './support/baseline.ts';
import type { Bench, BenchContext } from './support/bench.ts';
import { drawChart } from './support/chart.ts';
import { Cleanup } from './support/cleanup.ts';
import { describeEnvironment } from './support/environment.ts';
import { ImageStore } from './support/images.ts';
import { measureComparison, type ComparisonResult } from './support/measure.ts';
import { findProgram, ProgramRunner } from './support/process.ts';
import { formatMarkdown, formatRound, formatTable } from './support/report.ts';
import { readResults, writeResult, type BenchResult } from './support/results.ts';
import { parseSettings, UsageError, USAGE, type Settings } from './support/settings.ts';

/** Exit code where a ratio is worse than the baseline's, or is missing. */
const WORSE = 3;

/**
 * Runs the program.
 *
 * @param root directory of the repository
 * @returns the exit code: 1 if a bench failed, 2 for wrong usage, 3 if the baseline is not reached
 */
export async function main(argv: string[], root: string): Promise<number> {
  let settings: Settings;
  let baseline: BenchResult[] | undefined;
  try {
    settings = parseSettings(argv, root);
    // Read now: it may lie where the results go, and it may not be what it should.
    baseline = settings.baseline === undefined ? undefined : readBaseline(settings.baseline);
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    process.stderr.write(`bench: ${error.message}; see --help\n`);
    return 2;
  }
  switch (settings.action) {
    case 'help':
      process.stdout.write(USAGE);
      return 0;
    case 'list':
      for (const { name, summary } of BENCHES) {
        process.stdout.write(`${name.padEnd(10)} ${summary}\n`);
      }
      return 0;
    case 'report':
      return reportStored(settings, baseline);
    case 'run': {
      const { results, failed } = await runBenches(settings, root);
      const status = report(settings, { results, baseline });
      return failed ? 1 : status;
    }
  }
}

function readBaseline(place: string): BenchResult[] {
  try {
    return readResults(place);
  } catch (error) {
    throw new UsageError(`--baseline: ${(error as Error).message}`);
  }
}

/** Reports what earlier runs left of the benches that are asked for, in the order of the benches. */
function reportStored(settings: Settings, baseline: BenchResult[] | undefined): number {
  let stored: BenchResult[];
  try {
    stored = readResults(settings.outputDirectory);
  } catch (error) {
    process.stderr.write(`bench: ${(error as Error).message}\n`);
    return 1;
  }
  const results = settings.benches.flatMap(({ name }) => {
    return stored.find(({ bench }) => bench === name) ?? [];
  });
  return report(settings, { results, baseline });
}

async function runBenches(
  settings: Settings,
  root: string,
): Promise<{ results: BenchResult[]; failed: boolean }> {
  const cleanup = new Cleanup();
  cleanup.handleSignals();
  const results: BenchResult[] = [];
  let failed = false;
  try {
    const context = makeContext(settings, root, cleanup);
    for (const bench of settings.benches) {
      const missing = bench.tools.filter((tool) => findProgram(tool) === undefined);
      if (missing.length > 0) {
        process.stderr.write(`${bench.name}: left out, not installed: ${missing.join(', ')}\n`);
        continue;
      }
      try {
        const comparisons = await runBench(bench, context, settings.pairs);
        const result = describeResult(settings, root, { bench: bench.name, comparisons });
        writeResult(settings.outputDirectory, result);
        results.push(result);
      } catch (error) {
        if (cleanup.interrupted) break;
        failed = true;
        process.stderr.write(`${bench.name}: failed: ${(error as Error).message}\n`);
      }
    }
  } finally {
    await cleanup.run();
  }
  return { results, failed };
}

async function runBench(
  bench: Bench,
  context: BenchContext,
  pairs: number,
): Promise<ComparisonResult[]> {
  process.stderr.write(`${bench.name}: preparing\n`);
  const results: ComparisonResult[] = [];
  for (const comparison of await bench.prepare(context)) {
    const result = await measureComparison(comparison, pairs, (round) => {
      const count = comparison.isMeasuredOnce === true ? 1 : pairs;
      process.stderr.write(`${formatRound(round, count)}\n`);
    });
    for (const name of result.missing) {
      process.stderr.write(`${comparison.name}: ${name} is left out, it is not installed\n`);
    }
    results.push(result);
  }
  return results;
}

function makeContext(settings: Settings, root: string, cleanup: Cleanup): BenchContext {
  const directory = mkdtempSync(path.join(settings.tempDirectory, 'qcow2-bench-'));
  cleanup.add(directory, () => rmSync(directory, { recursive: true, force: true }));
  const programs = new ProgramRunner(cleanup);
  return {
    directory,
    cleanup,
    programs,
    images: new ImageStore(directory, programs, settings.sizeBytes),
    qcow2: [process.execPath, path.join(root, 'dist', 'cli.cjs')],
    library: path.join(root, 'dist', 'index.js'),
    clients: path.join(root, 'bench', 'clients'),
    seconds: settings.seconds,
    memorySeconds: settings.memorySeconds,
  };
}

function describeResult(
  { pairs, sizeBytes, seconds, memorySeconds }: Settings,
  root: string,
  { bench, comparisons }: Pick<BenchResult, 'bench' | 'comparisons'>,
): BenchResult {
  return {
    bench,
    date: new Date().toISOString(),
    environment: describeEnvironment(root),
    settings: { pairs, sizeBytes, seconds, memorySeconds },
    comparisons,
  };
}

/** Writes the table and the chart, prints, and returns the exit code. */
function report(
  settings: Settings,
  { results, baseline }: { results: BenchResult[]; baseline: BenchResult[] | undefined },
): number {
  const { outputDirectory, isJson, margin } = settings;
  const comparisons = results.flatMap((result) => result.comparisons);
  const asked = settings.benches.map(({ name }) => name);
  const comparison =
    baseline && compareWithBaseline({ before: baseline, now: results, margin, asked });
  if (isJson) {
    process.stdout.write(`${JSON.stringify({ results, baseline: comparison }, undefined, 2)}\n`);
  }
  if (results.length > 0) {
    mkdirSync(outputDirectory, { recursive: true });
    const subtitle = describeRun(results);
    writeFileSync(path.join(outputDirectory, 'chart.svg'), drawChart(comparisons, { subtitle }));
    writeFileSync(path.join(outputDirectory, 'table.md'), formatMarkdown(comparisons));
    if (!isJson) {
      process.stdout.write(`\n${formatTable(comparisons)}`);
      process.stdout.write(`\nResults, table.md and chart.svg are in ${outputDirectory}\n`);
    }
  }
  if (comparison === undefined) return 0;
  if (!isJson) process.stdout.write(`\n${formatBaseline(comparison)}`);
  return comparison.isGood ? 0 : WORSE;
}

/** When, how and on what the last of the results was measured. */
function describeRun(results: readonly BenchResult[]): string {
  const { date, settings, environment } = results.at(-1)!;
  const { cores, processor, node, tools } = environment;
  return [
    date.slice(0, 10),
    `${settings.pairs} pairs each`,
    `${cores} × ${processor ?? 'unknown processor'}`,
    `Node ${node}`,
    tools['qemu-img'] ?? 'no QEMU',
  ].join(' · ');
}
