/** `qcow2 convert`: write what images read as to a new image. */

import { availableParallelism } from 'node:os';
import { openImage } from '../../chain/open.ts';
import type { Image, OpenImageOptions } from '../../chain/open.ts';
import { prepareToRead } from '../../chain/prepare.ts';
import { Qcow2Error } from '../../errors.ts';
import { ConcatenatedDevice } from '../../operations/concatenated.ts';
import { convertSteps } from '../../operations/convert.ts';
import type { ConvertOptions } from '../../operations/convert.ts';
import type { UnreadableRange } from '../../operations/convert-chunk.ts';
import type { NewBitmap } from '../../qcow2/bitmap-changes.ts';
import { Qcow2Snapshot } from '../../qcow2/snapshots.ts';
import { threadsFor, withChunks } from '../../worker/convert-threads.ts';
import type { ConvertInput } from '../../worker/convert-protocol.ts';
import { usageError } from '../command.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import { CONVERT_OPTIONS, parseConvertOptions } from '../convert-options.ts';
import type { ConvertChoices } from '../convert-options.ts';
import { describeOutcome, filesOf, openConvertOutput, withOutcome } from '../convert-output.ts';
import type { ConvertOutput } from '../convert-output.ts';
import { asksForOptions, creationOptionsHelp } from '../creation-options.ts';
import { formatOption, givenImage, IMAGE_FORMATS, referenceOptions } from '../image-options.ts';
import type { GivenImage } from '../image-options.ts';
import { driveSteps, InterruptedError, Interrupts, ProgressReporter } from '../progress.ts';
import { openSnapshot } from '../snapshot-option.ts';
import { reportInterrupt } from '../write-options.ts';

/** Percent between two lines of progress. */
const STEP_PERCENT = 1;

export const command: CommandDefinition = {
  name: 'convert',
  summary: 'write the content of images to a new image',
  operands: 'IMAGE… OUTPUT',
  operandCount: [0, Infinity],
  details:
    'Several images are written one behind the other. Zeroes are left out of the output. An ' +
    'existing OUTPUT is overwritten, unless it is in use. If the conversion is interrupted or ' +
    'fails, what was made of the output is removed; with -n it is left incomplete.',
  examples: [
    'qcow2 convert -O qcow2 disk.raw disk.qcow2',
    'qcow2 convert -c -O qcow2 -o compression_type=zstd disk.qcow2 small.qcow2',
    'qcow2 convert -O qcow2 -B base.qcow2 -F qcow2 top.qcow2 copy.qcow2',
    'qcow2 convert -p -l before-upgrade disk.qcow2 old.raw',
    'qcow2 convert -n disk.qcow2 /dev/vg/disk',
  ],
  options: CONVERT_OPTIONS,
  run,
};

async function run(args: ParsedArguments, io: CommandIo): Promise<number> {
  if (asksForOptions(args.list('option'))) {
    const format = args.choice('output-format', IMAGE_FORMATS, 'raw');
    io.stdout(creationOptionsHelp(format, { withFile: args.operands.length > 1 }));
    return 0;
  }
  if (args.operands.length < 2) {
    throw new Qcow2Error('INVALID_OPTION', 'expected IMAGE… OUTPUT; see: qcow2 convert --help');
  }
  const paths = args.operands.slice(0, -1);
  const choices = parseConvertOptions(args, paths.length);
  const open = { ...formatOption(args.value('format')), ...referenceOptions(args) };
  const sources = paths.map((path) => givenImage(args, path));
  leaveCoreForWriting();
  const images: Image[] = [];
  try {
    for (const source of sources) images.push(openImage(source, open));
    for (const image of images) await prepareToRead(image);
    return await convert(images, { args, choices, given: sources, open, io });
  } finally {
    for (const image of images) image.close();
  }
}

/**
 * Has Node read files with one thread less than there are cores, instead of four: chunks that are
 * read ahead are written by this thread, which should not have to wait for a core. On two cores that
 * takes a tenth off the conversion of a file in the page cache.
 */
function leaveCoreForWriting(): void {
  const readers = Math.min(Math.max(availableParallelism() - 1, 1), 4);
  process.env['UV_THREADPOOL_SIZE'] ??= String(readers);
}

/** What a call is about. */
interface Call {
  args: ParsedArguments;
  choices: ConvertChoices;
  /** What the images were given as. */
  given: readonly GivenImage[];
  open: OpenImageOptions;
  io: CommandIo;
}

async function convert(images: readonly Image[], { args, choices, given, open, io }: Call) {
  const { outputPath } = choices;
  const isQuiet = args.flag('quiet');
  const sources = images.map((image) => {
    return choices.snapshot === undefined ? image : openSnapshot(image, choices.snapshot);
  });
  const inputs = images.map((image, index): ConvertInput => {
    const source = sources[index];
    const snapshotId = source instanceof Qcow2Snapshot ? source.info.id : undefined;
    // The files are locked already.
    return { path: given[index] ?? image.path, options: { ...open, lock: false }, snapshotId };
  });
  const source = new ConcatenatedDevice(sources);
  const show = args.flag('progress') && !isQuiet;
  const reporter = new ProgressReporter(io, { show, stepPercent: STEP_PERCENT });
  const bitmaps = bitmapsOf(images[0]!, choices, io);
  let output: ConvertOutput | undefined;
  // From before there is an output until it is finished or given up.
  using interrupts = new Interrupts();
  try {
    const drive = { reporter, interruptible: interrupts };
    output = await openConvertOutput(outputPath, {
      choices,
      size: source.size,
      inputs: images.flatMap(filesOf),
      open: referenceOptions(args),
      run: (steps) => driveSteps(steps, { ...drive, reporter: silentReporter(io) }),
    });
    const options: ConvertOptions = {
      ...output.plan,
      sourceBackingSize: images.length === 1 ? images[0]?.backing?.size : undefined,
      spec: output.spec,
      bytesPerSecond: choices.bytesPerSecond,
      onUnreadable: isQuiet ? undefined : (range) => warnUnreadable(range, io),
    };
    const threads = threadsFor(choices.threads, { images, spec: output.spec });
    const { target } = output;
    await withChunks({ threads, inputs, spec: output.spec, source }, (chunks) =>
      driveSteps(convertSteps(source, target, { ...options, chunks }), drive),
    );
    output.addBitmaps(bitmaps);
    output.finish();
    return 0;
  } catch (error) {
    if (output === undefined) {
      if (!(error instanceof InterruptedError)) throw error;
      return reportInterrupt(error, `${outputPath} was not made`, io);
    }
    const outcome = describeOutcome(output, outputPath);
    if (error instanceof InterruptedError) return reportInterrupt(error, outcome, io);
    throw withOutcome(error, outcome);
  } finally {
    reporter.end();
  }
}

function silentReporter(io: CommandIo): ProgressReporter {
  return new ProgressReporter(io, { show: false, stepPercent: STEP_PERCENT });
}

function warnUnreadable({ offset, length, problem }: UnreadableRange, io: CommandIo): void {
  const range = `bytes ${offset} to ${offset + length - 1}`;
  io.stderr(`qcow2: warning: zeroes take the place of ${range}: ${problem}\n`);
}

/** The bitmaps that are to be copied. */
function bitmapsOf(image: Image, { bitmaps }: ConvertChoices, io: CommandIo): NewBitmap[] {
  if (bitmaps === 'none') return [];
  if (image.format !== 'qcow2') throw usageError('--bitmaps cannot be: a raw image has no bitmaps');
  if (image.header.version < 3) {
    throw usageError('--bitmaps cannot be: an image with compat=0.10 has no bitmaps');
  }
  const broken = image.bitmaps.filter(({ isInconsistent }) => isInconsistent);
  for (const { name } of broken) {
    if (bitmaps === 'all') {
      throw new Qcow2Error('CORRUPT', 'it is inconsistent and cannot be copied', {
        file: image.path,
        structure: `bitmap '${name}'`,
        hint: 'leave it out with --skip-broken-bitmaps',
      });
    }
    io.stderr(`qcow2: warning: ${image.path}: bitmap '${name}' is inconsistent, and left out\n`);
  }
  return image.bitmaps
    .filter(({ isInconsistent }) => !isInconsistent)
    .map(({ name, granularity, isEnabled }) => {
      return { name, granularity, isEnabled, dirty: image.dirtyRanges(name) };
    });
}
