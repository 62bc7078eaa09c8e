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
 * The rate in fio's JSON report, which messages may precede.
 *
 * @throws {Error} if it holds no job, an error, or no reads
 */
export function readsPerSecond(report: string): number {
  return rateOf(report, 'read');
}

function rateOf(report: string, direction: 'read' | 'write'): number {
  const start = report.search(/^\{/m);
  if (start < 0) throw new Error('fio printed no report');
  const parsed = JSON.parse(report.slice(start)) as {
    jobs?: { error?: number; read?: { iops?: number }; write?: { iops?: number } }[];
  };
  const job = parsed.jobs?.[0];
  if (job?.error !== 0) throw new Error(`fio reports error ${job?.error ?? '(no job)'}`);
  const rate = job[direction]?.iops ?? 0;
  if (!(rate > 0)) throw new Error(direction === 'read' ? 'fio read nothing' : 'fio wrote nothing');
  return rate;
}
