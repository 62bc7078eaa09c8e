/** `qcow2 resize`: change the size of a disk. */

import { openImage } from '../../chain/open.ts';
import type { Image } from '../../chain/open.ts';
import {
  diskSizeOf,
  PREALLOCATION_MODES,
  resizeSteps,
  undoResize,
} from '../../operations/resize.ts';
import { usageError } from '../command.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import { formatOption, givenImage, REFERENCE_OPTIONS, referenceOptions } from '../image-options.ts';
import { driveSteps, InterruptedError, ProgressReporter } from '../progress.ts';
import { parseSize } from '../size.ts';
import { CHANGE_OPTIONS, reportInterrupt, warnIfGuessedRaw } from '../write-options.ts';

/** Percent between two lines of progress. */
const STEP_PERCENT = 1;

export const command: CommandDefinition = {
  name: 'resize',
  summary: 'change the size of a disk',
  operands: 'IMAGE [+|-]SIZE',
  operandCount: [2, 2],
  endsWithOperand: true,
  details:
    'SIZE is the new size, or what is added to or taken from the old one. What a disk gains reads ' +
    'as zeroes; what a smaller one had past its new end is deleted. Partitions and filesystems ' +
    'keep their size: make them smaller before the disk, and larger after it.',
  examples: ['qcow2 resize disk.qcow2 +10G', 'qcow2 resize --shrink disk.qcow2 8G'],
  options: {
    shrink: { kind: 'flag', description: 'allow a smaller size, which deletes data' },
    preallocation: {
      kind: 'value',
      placeholder: 'MODE',
      description: 'space for what the disk gains (default off)',
      choices: PREALLOCATION_MODES,
    },
    progress: { kind: 'flag', short: 'p', description: 'show progress of preallocation' },
    ...CHANGE_OPTIONS,
    ...REFERENCE_OPTIONS,
  },
  run,
};

async function run(args: ParsedArguments, io: CommandIo): Promise<number> {
  const [path = '', sizeText = ''] = args.operands;
  const format = formatOption(args.value('format'));
  const change = parseChange(sizeText);
  using image = openImage(givenImage(args, path), {
    ...format,
    ...referenceOptions(args),
    writable: true,
  });
  warnIfGuessedRaw(image, args, io);
  if (image.format === 'raw') image.growable = true;
  const oldSize = image.size;
  const size = newSizeOf(image, change);
  const isQuiet = args.flag('quiet');
  const show = args.flag('progress') && !isQuiet;
  const reporter = new ProgressReporter(io, { show, stepPercent: STEP_PERCENT });
  try {
    const shrink = args.flag('shrink');
    const preallocation = args.choice('preallocation', PREALLOCATION_MODES, 'off');
    const steps = resizeSteps(image, size, { shrink, preallocation });
    await driveSteps(steps, { reporter, interruptible: true });
  } catch (error) {
    if (!(error instanceof InterruptedError)) throw error;
    undoResize(image, oldSize);
    return reportInterrupt(error, `${path} has its old size again`, io);
  } finally {
    reporter.end();
  }
  if (!isQuiet) io.stdout('Image resized.\n');
  return 0;
}

/** A size, or by how much to change it. */
interface SizeChange {
  bytes: number;
  sign: '' | '+' | '-';
}

function parseChange(text: string): SizeChange {
  const sign = text.startsWith('+') ? '+' : text.startsWith('-') ? '-' : '';
  return { bytes: parseSize(text.slice(sign.length), 'the size'), sign };
}

function newSizeOf(image: Image, { bytes, sign }: SizeChange): number {
  const old = diskSizeOf(image);
  const size = { '': bytes, '+': old + bytes, '-': old - bytes }[sign];
  if (size > 0) return size;
  throw usageError(`the new size must be positive, not ${size} bytes`);
}
