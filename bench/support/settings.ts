/**
 * Arguments of the bench program.
 */

import os from 'node:os';
import path from 'node:path';
import { parseArgs } from 'node:util';
import { BENCHES } from '../benches/index.ts';
import type { Bench } from './bench.ts';

export const USAGE = `usage: npm run bench -- [OPTION]... [BENCH]...

Measures this project against others, in turn, and prints the ratios of their speeds.
Without a BENCH, all are run.

  --pairs N            measured pairs after the warm-up (default 5)
  --size SIZE          size of the image that is read (default 1G)
  --seconds N          length of each measurement of random reads (default 3)
  --memory-seconds N   length of the reading in the bench memory (default 600)
  --baseline PLACE     compare the ratios with those of an earlier run: a JSON file of one bench,
                       or a directory of results; exit 3 if one is worse by more than the margin
  --margin N%          loss that is let pass (default 10%)
  --report             measure nothing; report, and compare, what is in the output directory
  --json               print the results, and the comparison, as JSON in place of the tables
  --temp-dir DIR       where images, mounts and sockets go for the time (default ${os.tmpdir()})
  --output-dir DIR     where the results go (default bench/results)
  --no-build           measure the built command as it is, even if it is older than the source
  --list               list the benches
  --help               show this
`;

/** A problem with how the program was called. */
export class UsageError extends Error {}

/** Settings of a run. */
export interface Settings {
  action: 'run' | 'report' | 'list' | 'help';
  benches: readonly Bench[];
  pairs: number;
  sizeBytes: number;
  seconds: number;
  memorySeconds: number;
  /** Results of an earlier run to compare with. */
  baseline: string | undefined;
  /** Relative loss that is let pass: 0.1 is 10%. */
  margin: number;
  isJson: boolean;
  tempDirectory: string;
  outputDirectory: string;
}

/**
 * Parses the arguments.
 *
 * @param root directory of the repository
 * @throws {UsageError} for what is not understood
 */
export function parseSettings(argv: string[], root: string): Settings {
  const { values, positionals } = parse(argv);
  const { help, list, report } = values;
  return {
    action: (help && 'help') || (list && 'list') || (report && 'report') || 'run',
    benches: selectBenches(positionals),
    pairs: parseCount('--pairs', values.pairs),
    sizeBytes: parseSize(values.size),
    seconds: parseCount('--seconds', values.seconds),
    memorySeconds: parseCount('--memory-seconds', values['memory-seconds']),
    baseline: values.baseline === undefined ? undefined : path.resolve(values.baseline),
    margin: parseMargin(values.margin),
    isJson: values.json,
    tempDirectory: path.resolve(values['temp-dir']),
    outputDirectory: path.resolve(values['output-dir'] ?? path.join(root, 'bench', 'results')),
  };
}

function parse(argv: string[]) {
  try {
    return parseArgs({
      args: argv,
      allowPositionals: true,
      options: {
        pairs: { type: 'string', default: '5' },
        size: { type: 'string', default: '1G' },
        seconds: { type: 'string', default: '3' },
        'memory-seconds': { type: 'string', default: '600' },
        baseline: { type: 'string' },
        margin: { type: 'string', default: '10%' },
        report: { type: 'boolean', default: false },
        json: { type: 'boolean', default: false },
        'temp-dir': { type: 'string', default: os.tmpdir() },
        'output-dir': { type: 'string' },
        // For run.mjs, which has done it by now.
        'no-build': { type: 'boolean' },
        list: { type: 'boolean', default: false },
        help: { type: 'boolean', short: 'h', default: false },
      },
    });
  } catch (error) {
    throw new UsageError((error as Error).message);
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

function parseMargin(text: string): number {
  const [, number] = /^(\d{1,2}(?:\.\d+)?)%$/.exec(text) ?? [];
  if (number === undefined) throw new UsageError(`--margin: not a percentage: '${text}'`);
  return Number(number) / 100;
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
