/**
 * fio: random reads and writes, as a rate.
 */

import type { BenchContext } from './bench.ts';
import type { Command } from './process.ts';

/**
 * Runs a job of 4 KiB random reads for as long as the run's measurements last.
 *
 * @param options fio options that say what is read how, without the dashes
 * @returns reads a second
 * @throws {Error} if fio fails, reports an error or reads nothing
 */
export async function randomReads(context: BenchContext, options: string[]): Promise<number> {
  const command: Command = [
    'fio',
    '--name=random-reads',
    '--rw=randread',
    '--bs=4k',
    '--norandommap',
    '--time_based',
    `--runtime=${context.seconds}`,
    '--thread',
    '--group_reporting',
    '--output-format=json',
    ...options.map((option) => `--${option}`),
  ];
  const { stdout } = await context.programs.run(command);
  return readsPerSecond(stdout);
}

/**
 * Runs a job of random writes over the nbd engine for as long as the run's measurements last.
 *
 * @returns writes a second
 * @throws {Error} if fio fails, reports an error or writes nothing
 */
export async function randomWrites(
  context: BenchContext,
  { uri, blockSize }: { uri: string; blockSize: string },
): Promise<number> {
  const command: Command = [
    'fio',
    '--name=random-writes',
    '--rw=randwrite',
    `--bs=${blockSize}`,
    '--norandommap',
    '--time_based',
    `--runtime=${context.seconds}`,
    '--thread',
    '--ioengine=nbd',
    `--uri=${uri}`,
    '--iodepth=16',
    '--output-format=json',
  ];
  const { stdout } = await context.programs.run(command);
  return rateOf(stdout, 'write');
}

/**
 * Reads a disk at full speed in three ways at once: all of it in order, all of it at random, and
 * its first `compressedBytes` at random.
 *
 * @param options fio options that say what is read, without the dashes
 * @throws {Error} if fio fails, reports an error, or one of the three reads nothing
 */
export async function readInManyWays(
  context: BenchContext,
  { options, compressedBytes }: { options: readonly string[]; compressedBytes: number },
  seconds: number,
): Promise<void> {
  const { stdout } = await context.programs.run([
    'fio',
    '--time_based',
    `--runtime=${seconds}`,
    '--thread',
    '--norandommap',
    '--output-format=json',
    ...options.map((option) => `--${option}`),
    ...['--name=in-order', '--rw=read', '--bs=1m'],
    ...['--name=at-random', '--rw=randread', '--bs=64k'],
    ...['--name=compressed', '--rw=randread', '--bs=64k', `--size=${compressedBytes}`],
  ]);
  for (const job of jobsOf(stdout)) requireRate(job, 'read');
}

/**
 * The rate in fio's JSON report, which messages may precede.
 *
 * @throws {Error} if it holds no job, an error, or no reads
 */
export function readsPerSecond(report: string): number {
  return rateOf(report, 'read');
}

/** What is used of a job in fio's report. */
interface Job {
  error?: number;
  read?: { iops?: number };
  write?: { iops?: number };
}

function rateOf(report: string, direction: 'read' | 'write'): number {
  return requireRate(jobsOf(report)[0], direction);
}

function jobsOf(report: string): Job[] {
  const start = report.search(/^\{/m);
  if (start < 0) throw new Error('fio printed no report');
  return (JSON.parse(report.slice(start)) as { jobs?: Job[] }).jobs ?? [];
}

function requireRate(job: Job | undefined, direction: 'read' | 'write'): number {
  if (job?.error !== 0) throw new Error(`fio reports error ${job?.error ?? '(no job)'}`);
  const rate = job[direction]?.iops ?? 0;
  if (!(rate > 0)) throw new Error(direction === 'read' ? 'fio read nothing' : 'fio wrote nothing');
  return rate;
}
