/** `qcow2 check`: is the metadata of an image sound? */

import { checkImage, openForCheck, openForRepair, repairImage } from '../../operations/check.ts';
import type { CheckProblem, CheckResult } from '../../operations/check.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import {
  CACHE_MODES,
  FORCE_SHARE_OPTION,
  formatOption,
  givenImage,
  IMAGE_FORMATS,
  IMAGE_OPTS_OPTIONS,
} from '../image-options.ts';
import { ProgressReporter } from '../progress.ts';

const EXIT_SOUND = 0;
const EXIT_FAILED = 1;
const EXIT_CORRUPT = 2;
const EXIT_LEAKS = 3;
const EXIT_UNSUPPORTED = 63;

const OUTPUTS = ['human', 'json'] as const;
const REPAIRS = ['leaks', 'all'] as const;

export const command: CommandDefinition = {
  name: 'check',
  summary: 'check the metadata of an image, and repair it',
  operands: 'IMAGE',
  operandCount: [1, 1],
  details:
    'Reads all metadata and, without -r, changes nothing. With -r, problems are repaired as far ' +
    'as that is possible, and the image is checked again; back it up first if that is possible ' +
    'too. What cannot be repaired safely is refused before anything is written. The exit code ' +
    'tells what is left: 0 if the image is sound, 1 if it could not be checked or repaired, 2 if ' +
    'it is corrupt, 3 if it only wastes space, and 63 if it is of a format that cannot be checked.',
  examples: ['qcow2 check disk.qcow2', 'qcow2 check --output=json -r all disk.qcow2'],
  options: {
    format: {
      kind: 'value',
      short: 'f',
      placeholder: 'FORMAT',
      description: 'format of the image (default: probed)',
      choices: IMAGE_FORMATS,
    },
    output: {
      kind: 'value',
      placeholder: 'FORMAT',
      description: 'human (default) or json',
      choices: OUTPUTS,
    },
    repair: {
      kind: 'value',
      short: 'r',
      placeholder: 'WHAT',
      description: 'repair leaks (only wasted space) or all',
      choices: REPAIRS,
    },
    cache: {
      kind: 'value',
      short: 'T',
      placeholder: 'MODE',
      description: 'cache mode; accepted, and all alike here',
      choices: CACHE_MODES,
    },
    progress: { kind: 'flag', short: 'p', description: 'show progress' },
    quiet: { kind: 'flag', short: 'q', description: 'print nothing but problems' },
    ...FORCE_SHARE_OPTION,
    ...IMAGE_OPTS_OPTIONS,
  },
  run,
};

function run(args: ParsedArguments, io: CommandIo): number {
  const isRepair = args.value('repair') !== undefined;
  const [path = ''] = args.operands;
  const isQuiet = args.flag('quiet');
  const open = isRepair ? openForRepair : openForCheck;
  using image = open(givenImage(args, path), {
    ...formatOption(args.value('format')),
    forceShare: args.flag('force-share'),
  });
  if (image.format !== 'qcow2') {
    io.stderr('qcow2: This image format does not support checks\n');
    return EXIT_UNSUPPORTED;
  }
  const show = args.flag('progress') && !isQuiet;
  const progress = new ProgressReporter(io, { show, stepPercent: 1 });
  const problems = new ProblemPrinter(io);
  let result: CheckResult;
  try {
    const onProblem = (problem: CheckProblem): void => problems.print(problem);
    const fix = args.choice('repair', REPAIRS, 'all');
    result = isRepair ? repairImage(image, { fix, onProblem }) : checkImage(image, { onProblem });
    progress.update({ done: 1, total: 1 });
  } finally {
    progress.end();
    problems.flush();
  }
  if (!isQuiet) {
    const isJson = args.choice('output', OUTPUTS, 'human') === 'json';
    io.stdout(
      isJson
        ? `${JSON.stringify({ ...result, filename: path }, undefined, 4)}\n`
        : describe(result),
    );
  }
  if (result['check-errors'] > 0) {
    io.stderr('qcow2: Check failed\n');
    return EXIT_FAILED;
  }
  if (result.corruptions !== undefined) return EXIT_CORRUPT;
  return result.leaks === undefined ? EXIT_SOUND : EXIT_LEAKS;
}

/** Writes problems in large pieces: there can be as many as clusters. */
class ProblemPrinter {
  readonly #io: CommandIo;
  #pending = '';

  constructor(io: CommandIo) {
    this.#io = io;
  }

  print({ message }: CheckProblem): void {
    // Names of snapshots come from the image: control characters must not reach the terminal.
    this.#pending += `${message.replace(/[^\P{Cc}\n]/gu, '?')}\n`;
    if (this.#pending.length > 32 * 1024) this.flush();
  }

  flush(): void {
    if (this.#pending !== '') this.#io.stderr(this.#pending);
    this.#pending = '';
  }
}

function describe(result: CheckResult): string {
  const { corruptions = 0, leaks = 0, 'check-errors': checkErrors } = result;
  const allocated = result['allocated-clusters'] ?? 0;
  const total = result['total-clusters'] ?? 0;
  const parts: string[] = describeRepairs(result);
  if (corruptions > 0) {
    parts.push(
      `\n${corruptions} errors were found on the image.\n` +
        'Data may be corrupted, or further writes to the image may corrupt it.\n',
    );
  }
  if (leaks > 0) {
    parts.push(
      `\n${leaks} leaked clusters were found on the image.\n` +
        'This means waste of disk space, but no harm to data.\n',
    );
  }
  if (checkErrors > 0) {
    parts.push(`\n${checkErrors} internal errors have occurred during the check.\n`);
  }
  if (corruptions + leaks + checkErrors === 0) parts.push('No errors were found on the image.\n');
  if (total > 0 && allocated > 0) {
    const fragmented = percent(result['fragmented-clusters'], allocated);
    const compressed = percent(result['compressed-clusters'], allocated);
    parts.push(
      `${allocated}/${total} = ${percent(allocated, total)}% allocated, ` +
        `${fragmented}% fragmented, ${compressed}% compressed clusters\n`,
    );
  }
  const endOffset = result['image-end-offset'] ?? 0;
  if (endOffset > 0) parts.push(`Image end offset: ${endOffset}\n`);
  return parts.join('');
}

function describeRepairs(result: CheckResult): string[] {
  const { 'leaks-fixed': leaks = 0, 'corruptions-fixed': corruptions = 0 } = result;
  if (leaks + corruptions === 0) return [];
  return [
    'The following inconsistencies were found and repaired:\n\n' +
      `    ${leaks} leaked clusters\n    ${corruptions} corruptions\n\n` +
      'Double checking the fixed image now...\n',
  ];
}

/** Percent with two decimals; halves between two of them go to the even one, as in C. */
function percent(part = 0, whole: number): string {
  const value = (part * 100) / whole;
  const isHalf = (value * 8) % 2 === 1;
  return isHalf ? ((2 * Math.round(value * 50)) / 100).toFixed(2) : value.toFixed(2);
}
