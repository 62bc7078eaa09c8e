/**
 * The bench program: arguments, the run, and what it leaves behind.
 */

import { execFileSync, type StdioOptions } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { bench as check } from './benches/check.ts';
import { bench as convert } from './benches/convert.ts';
import { bench as fuseRand } from './benches/fuse-rand.ts';
import { bench as fuseSeq } from './benches/fuse-seq.ts';
import { bench as fuseWrite } from './benches/fuse-write.ts';
import { bench as info } from './benches/info.ts';
import { bench as libWrite } from './benches/lib-write.ts';
import { bench as map } from './benches/map.ts';
import { bench as mount } from './benches/mount.ts';
import { bench as nbdRand } from './benches/nbd-rand.ts';
import { bench as nbdSeq } from './benches/nbd-seq.ts';
import { bench as nbdWrite } from './benches/nbd-write.ts';
import { bench as nbdZlib } from './benches/nbd-zlib.ts';
import { bench as nbdZstd } from './benches/nbd-zstd.ts';
import type { Bench, BenchContext } from './support/bench.ts';
import { drawChart } from './support/chart.ts';
import { Cleanup } from './support/cleanup.ts';
import { ImageStore } from './support/images.ts';
import { measureComparison, type ComparisonResult } from './support/measure.ts';
import { findProgram, ProgramRunner } from './support/process.ts';
import { formatMarkdown, formatRound, formatTable } from './support/report.ts';

const BENCHES: readonly Bench[] = [
  fuseSeq,
  fuseRand,
  fuseWrite,
  nbdSeq,
  nbdRand,
  nbdWrite,
  nbdZlib,
  nbdZstd,
  mount,
  info,
  map,
  check,
  libWrite,
  convert,
];

const USAGE = `usage: npm run bench -- [OPTION]... [BENCH]...

Measures this project against others, in turn, and prints the ratios of their speeds.
Without a BENCH, all are run.

  --pairs N          measured pairs after the warm-up (default 5)
  --size SIZE        size of the image that is read (default 1G)
  --seconds N        length of each measurement of random reads (default 3)
  --temp-dir DIR     where images, mounts and sockets go for the time (default ${os.tmpdir()})
  --output-dir DIR   where the results go (default bench/results)
  --no-build         measure the built command as it is, even if it is older than the source
  --list             list the benches
  --help             show this
`;

/** A problem with how the program was called. */
class UsageError extends Error {}

/** Settings of a run. */
interface Settings {
  benches: readonly Bench[];
  pairs: number;
  sizeBytes: number;
  seconds: number;
  tempDirectory: string;
  outputDirectory: string;
}

/**
 * Runs the program.
 *
 * @param root directory of the repository
 * @returns the exit code: 1 if a bench failed, 2 for wrong usage
 */
export async function main(argv: string[], root: string): Promise<number> {
  try {
    const { values, positionals } = parseArgs({
      args: argv,
      allowPositionals: true,
      options: {
        pairs: { type: 'string', default: '5' },
        size: { type: 'string', default: '1G' },
        seconds: { type: 'string', default: '3' },
        'temp-dir': { type: 'string', default: os.tmpdir() },
        'output-dir': { type: 'string', default: path.join(root, 'bench', 'results') },
        // For run.mjs, which has done it by now.
        'no-build': { type: 'boolean' },
        list: { type: 'boolean', default: false },
        help: { type: 'boolean', short: 'h', default: false },
      },
    });
    if (values.help) {
      process.stdout.write(USAGE);
      return 0;
    }
    if (values.list) {
      for (const { name, summary } of BENCHES) {
        process.stdout.write(`${name.padEnd(10)} ${summary}\n`);
      }
      return 0;
    }
    const settings: Settings = {
      benches: selectBenches(positionals),
      pairs: parseCount('--pairs', values.pairs),
      sizeBytes: parseSize(values.size),
      seconds: parseCount('--seconds', values.seconds),
      tempDirectory: path.resolve(values['temp-dir']),
      outputDirectory: path.resolve(values['output-dir']),
    };
    return await runBenches(settings, root);
  } catch (error) {
    const isUsage =
      error instanceof UsageError ||
      (error instanceof TypeError && 'code' in error && String(error.code).startsWith('ERR_PARSE'));
    if (!isUsage) throw error;
    process.stderr.write(`bench: ${error.message}; see --help\n`);
    return 2;
  }
}

async function runBenches(settings: Settings, root: string): Promise<number> {
  const cleanup = new Cleanup();
  cleanup.handleSignals();
  const results: ComparisonResult[] = [];
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
        const ofBench = await runBench(bench, context, settings.pairs);
        results.push(...ofBench);
        writeResult(settings, root, bench.name, ofBench);
      } catch (error) {
        if (cleanup.interrupted) break;
        failed = true;
        process.stderr.write(`${bench.name}: failed: ${(error as Error).message}\n`);
      }
    }
  } finally {
    await cleanup.run();
  }
  if (results.length > 0) report(settings, results);
  return failed ? 1 : 0;
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
      process.stderr.write(`${formatRound(round, pairs)}\n`);
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
    qcow2: [process.execPath, path.join(root, 'dist', 'cli.js')],
    library: path.join(root, 'dist', 'index.js'),
    clients: path.join(root, 'bench', 'clients'),
    seconds: settings.seconds,
  };
}

function writeResult(
  settings: Settings,
  root: string,
  name: string,
  comparisons: readonly ComparisonResult[],
): void {
  const { pairs, sizeBytes, seconds, outputDirectory } = settings;
  mkdirSync(outputDirectory, { recursive: true });
  const result = {
    bench: name,
    date: new Date().toISOString(),
    environment: describeEnvironment(root),
    settings: { pairs, sizeBytes, seconds },
    comparisons,
  };
  const file = path.join(outputDirectory, `${name}.json`);
  writeFileSync(file, `${JSON.stringify(result, undefined, 2)}\n`);
}

function report(settings: Settings, results: readonly ComparisonResult[]): void {
  const { outputDirectory, pairs } = settings;
  const cpus = os.cpus();
  const subtitle = [
    new Date().toISOString().slice(0, 10),
    `${pairs} pairs each`,
    `${cpus.length} × ${cpus[0]?.model.trim() ?? 'unknown processor'}`,
    `Node ${process.version}`,
    toolVersion('qemu-img') ?? 'no QEMU',
  ].join(' · ');
  writeFileSync(path.join(outputDirectory, 'chart.svg'), drawChart(results, { subtitle }));
  writeFileSync(path.join(outputDirectory, 'table.md'), formatMarkdown(results));
  process.stdout.write(`\n${formatTable(results)}`);
  process.stdout.write(`\nResults, table.md and chart.svg are in ${outputDirectory}\n`);
}

function describeEnvironment(root: string) {
  const cpus = os.cpus();
  return {
    node: process.version,
    system: `${os.type()} ${os.release()} ${os.arch()}`,
    processor: cpus[0]?.model.trim(),
    cores: cpus.length,
    memoryBytes: os.totalmem(),
    loadAverage: os.loadavg(),
    root: process.getuid?.() === 0,
    commit: firstLine('git', ['-C', root, 'describe', '--always', '--dirty']),
    tools: Object.fromEntries(
      ['qemu-img', 'nbdcopy', 'fio', 'guestmount'].map((tool) => [tool, toolVersion(tool)]),
    ),
  };
}

function toolVersion(tool: string): string | undefined {
  return findProgram(tool) === undefined ? undefined : firstLine(tool, ['--version']);
}

function firstLine(program: string, args: string[]): string | undefined {
  try {
    const stdio: StdioOptions = ['ignore', 'pipe', 'ignore'];
    return execFileSync(program, args, { encoding: 'utf8', stdio }).split('\n')[0];
  } catch {
    return undefined;
  }
}

function selectBenches(names: readonly string[]): readonly Bench[] {
  if (names.length === 0) return BENCHES;
  return names.map((name) => {
    const found = BENCHES.find((bench) => bench.name === name);
    const known = BENCHES.map((bench) => bench.name).join(', ');
    if (found === undefined) throw new UsageError(`no bench '${name}', only ${known}`);
    return found;
  });
}

function parseCount(option: string, text: string): number {
  if (!/^[1-9]\d{0,5}$/.test(text)) throw new UsageError(`${option}: not a count: '${text}'`);
  return Number(text);
}

function parseSize(text: string): number {
  const [, number, suffix] = /^([1-9]\d{0,11})([KMGT]?)$/i.exec(text) ?? [];
  if (number === undefined) throw new UsageError(`--size: not a size: '${text}'`);
  const sizeBytes = Number(number) * 1024 ** ' KMGT'.indexOf((suffix || ' ').toUpperCase());
  if (sizeBytes < 2 ** 20 || sizeBytes > 2 ** 40 || sizeBytes % 4096 !== 0) {
    throw new UsageError('--size: from 1M to 1T, in steps of 4K');
  }
  return sizeBytes;
}
