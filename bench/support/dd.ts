/**
 * dd: reading a file in order, and the rate that it reports.
 */

import type { BenchContext } from './bench.ts';

/**
 * Reads a file from its first byte to its last, a mebibyte at a time.
 *
 * @returns bytes a second by dd's own clock
 * @throws {Error} if it did not read exactly `expectedBytes`
 */
export async function readWithDd(
  context: BenchContext,
  file: string,
  expectedBytes: number,
): Promise<number> {
  const command = ['dd', `if=${file}`, 'of=/dev/null', 'bs=1M'] as const;
  const { stderr } = await context.programs.run(command);
  return transferRate(stderr, expectedBytes);
}

/**
 * The rate that dd reports, from its own clock.
 *
 * @throws {Error} if it did not copy exactly `expectedBytes`
 */
export function transferRate(report: string, expectedBytes: number): number {
  const match = /^(\d+) bytes .*copied, ([\d.e+-]+) s,/m.exec(report);
  const bytes = Number(match?.[1]);
  if (bytes !== expectedBytes) throw new Error(`dd copied ${bytes} of ${expectedBytes} bytes`);
  return bytes / Number(match?.[2]);
}
