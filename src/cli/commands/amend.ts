/** `qcow2 amend`: change what a qcow2 image is. */

import { openImage } from '../../chain/open.ts';
import type { Image } from '../../chain/open.ts';
import { Qcow2Error } from '../../errors.ts';
import { amendSteps } from '../../operations/amend.ts';
import type { AmendOptions } from '../../operations/amend.ts';
import { amendOptionsHelp, parseAmendOptions } from '../amend-options.ts';
import { usageError } from '../command.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import { asksForOptions } from '../creation-options.ts';
import { formatOption, givenImage, REFERENCE_OPTIONS, referenceOptions } from '../image-options.ts';
import { driveSteps, InterruptedError, ProgressReporter } from '../progress.ts';
import { CACHE_OPTION, CHANGE_OPTIONS, reportInterrupt } from '../write-options.ts';

/** Percent between two lines of progress. */
const STEP_PERCENT = 1;

export const command: CommandDefinition = {
  name: 'amend',
  summary: 'change the version and other properties of a qcow2 image',
  operands: 'IMAGE',
  operandCount: [0, 1],
  details:
    'The disk reads as before, and so do its snapshots. compat=0.10 makes it an image for old ' +
    'programs, which have no bitmaps (they are removed) and no zero clusters (they become data ' +
    'where a backing file would show); it is refused where the image has what cannot be kept. ' +
    'data_file changes the name of the external data file, and does not touch that. A size is what ' +
    'resize would make of it, but to make the disk smaller --force is needed. Interrupted, the ' +
    'image is not amended.',
  examples: [
    'qcow2 amend -o compat=1.1,lazy_refcounts=on disk.qcow2',
    'qcow2 amend -p -o compat=0.10 disk.qcow2',
    'qcow2 amend -o help -f qcow2',
  ],
  options: {
    options: {
      kind: 'list',
      short: 'o',
      placeholder: 'OPTIONS',
      description: 'what to change: name=value,…; -o help lists the names',
    },
    force: { kind: 'flag', description: 'allow a smaller size, which deletes data' },
    progress: { kind: 'flag', short: 'p', description: 'show progress' },
    ...CHANGE_OPTIONS,
    ...CACHE_OPTION,
    ...REFERENCE_OPTIONS,
  },
  run,
};

async function run(args: ParsedArguments, io: CommandIo): Promise<number> {
  const [path] = args.operands;
  const format = formatOption(args.value('format'));
  const lists = args.list('options');
  if (lists.length === 0) throw usageError('say what to change: -o name=value; see -o help');
  if (asksForOptions(lists)) return showOptions(args, io);
  if (path === undefined) throw missingImage();
  if (format.format === 'raw') throw nothingToAmend(path);
  const options = { ...parseAmendOptions(lists), shrink: args.flag('force') };
  const given = givenImage(args, path);
  using image = openImage(given, { ...format, ...referenceOptions(args), writable: true });
  return await amend(image, options, { args, io });
}

async function amend(
  image: Image,
  options: AmendOptions,
  { args, io }: { args: ParsedArguments; io: CommandIo },
): Promise<number> {
  const { path, size: oldSize } = image;
  const bitmapCount = countBitmaps(image);
  const show = args.flag('progress') && !args.flag('quiet');
  const reporter = new ProgressReporter(io, { show, stepPercent: STEP_PERCENT });
  const steps = amendSteps(image, options);
  try {
    await driveSteps(steps, { reporter, interruptible: true });
    reporter.update({ done: 1, total: 1 });
  } catch (error) {
    if (!(error instanceof InterruptedError)) throw error;
    steps.return();
    const isResized = image.size !== oldSize;
    const outcome = isResized
      ? `${path} has its new size, and is not amended otherwise`
      : `${path} is not amended, and reads as before`;
    return reportInterrupt(error, outcome, io);
  } finally {
    reporter.end();
  }
  if (bitmapCount > 0 && countBitmaps(image) === 0) {
    io.stderr(
      `qcow2: warning: ${path}: its ${bitmapCount} bitmaps were removed, compat=0.10 has none\n`,
    );
  }
  return 0;
}

/** The bitmaps that an image has, though version 2 has none, or none that count. */
function countBitmaps(image: Image): number {
  return image.format === 'qcow2' && image.header.version > 2 ? image.bitmaps.length : 0;
}

/** Lists what can be amended of images of a format, which is given or found out. */
function showOptions(args: ParsedArguments, io: CommandIo): number {
  const [path] = args.operands;
  let { format } = formatOption(args.value('format'));
  if (format === undefined) {
    if (path === undefined) throw missingImage();
    const given = givenImage(args, path);
    using image = openImage(given, { ...referenceOptions(args), withoutBacking: true });
    ({ format } = image);
  }
  if (format === 'raw') throw nothingToAmend(path);
  io.stdout(amendOptionsHelp());
  return 0;
}

function missingImage(): Qcow2Error {
  return usageError('expected IMAGE; see: qcow2 amend --help');
}

function nothingToAmend(path: string | undefined): Qcow2Error {
  return new Qcow2Error('UNSUPPORTED', 'a raw image has nothing to amend', { file: path });
}
