/** `qcow2 compare`: do two images read the same? */

import { openImage } from '../../chain/open.ts';
import type { Image } from '../../chain/open.ts';
import { prepareToRead } from '../../chain/prepare.ts';
import { CompareError, compareSteps } from '../../operations/compare.ts';
import type { CompareResult } from '../../operations/compare.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import {
  CACHE_MODES,
  FORCE_SHARE_OPTION,
  formatOption,
  givenImage,
  IMAGE_OPTS_OPTIONS,
  IMAGE_FORMATS,
  REFERENCE_OPTIONS,
  referenceOptions,
} from '../image-options.ts';
import { driveSteps, ProgressReporter } from '../progress.ts';
import { reportError } from '../report.ts';

const EXIT_IDENTICAL = 0;
const EXIT_DIFFERENT = 1;
const EXIT_OPEN = 2;
const EXIT_EXTENTS = 3;
const EXIT_READ = 4;

/** Percent between two lines of progress. */
const STEP_PERCENT = 2;

export const command: CommandDefinition = {
  name: 'compare',
  summary: 'compare the content of two images',
  operands: 'IMAGE IMAGE',
  operandCount: [2, 2],
  details:
    'An image that is shorter than the other is taken to go on with zeroes. The exit code is ' +
    '0 if the images are identical, 1 if they differ, 2 if one cannot be opened, 3 if it cannot ' +
    'be found out how one is allocated, and 4 if one cannot be read.',
  examples: ['qcow2 compare disk.qcow2 disk.raw', 'qcow2 compare -s -p old.qcow2 new.qcow2'],
  options: {
    format: {
      kind: 'value',
      short: 'f',
      placeholder: 'FORMAT',
      description: 'format of the first image (default: probed)',
      choices: IMAGE_FORMATS,
    },
    'second-format': {
      kind: 'value',
      short: 'F',
      placeholder: 'FORMAT',
      description: 'format of the second image (default: probed)',
      choices: IMAGE_FORMATS,
    },
    'source-cache': {
      kind: 'value',
      short: 'T',
      placeholder: 'MODE',
      description: 'cache mode; accepted, and all alike here',
      choices: CACHE_MODES,
    },
    progress: { kind: 'flag', short: 'p', description: 'show progress' },
    quiet: { kind: 'flag', short: 'q', description: 'print nothing but errors' },
    strict: {
      kind: 'flag',
      short: 's',
      description: 'sizes and allocation must be equal too',
    },
    ...REFERENCE_OPTIONS,
    ...FORCE_SHARE_OPTION,
    ...IMAGE_OPTS_OPTIONS,
  },
  errorExitCode: EXIT_OPEN,
  run,
};

async function run(args: ParsedArguments, io: CommandIo): Promise<number> {
  const [firstPath = '', secondPath = ''] = args.operands;
  const isQuiet = args.flag('quiet');
  const references = referenceOptions(args);
  using first = openImage(givenImage(args, firstPath), {
    ...formatOption(args.value('format')),
    ...references,
  });
  using second = openImage(givenImage(args, secondPath, 'second-format'), {
    ...formatOption(args.value('second-format')),
    ...references,
  });
  await prepareToRead(first);
  await prepareToRead(second);

  const show = args.flag('progress') && !isQuiet;
  const reporter = new ProgressReporter(io, { show, stepPercent: STEP_PERCENT });
  try {
    const steps = compareSteps(first, second, {
      strict: args.flag('strict'),
      extentWindows: [extentWindow(first), extentWindow(second)],
    });
    const result = await driveSteps(steps, { reporter });
    if (!isQuiet) io.stdout(describe(result));
    return result.identical ? EXIT_IDENTICAL : EXIT_DIFFERENT;
  } catch (error) {
    if (!(error instanceof CompareError)) throw error;
    reportError(error, io);
    return error.phase === 'read' ? EXIT_READ : EXIT_EXTENTS;
  } finally {
    reporter.end();
  }
}

/** Bytes of an L2 table that QEMU looks at at a time, unless a cluster is smaller. */
const L2_SLICE_BYTES = 4096;

/** Bytes of the disk that one slice of an L2 table maps, which bounds the extents that QEMU tells. */
function extentWindow(image: Image): number | undefined {
  if (image.format === 'raw') return undefined;
  const { clusterSize, l2EntrySize } = image.header;
  return (Math.min(L2_SLICE_BYTES, clusterSize) / l2EntrySize) * clusterSize;
}

const SIZE_WARNING = 'Warning: Image size mismatch!\n';

function describe(result: CompareResult): string {
  if (result.identical) {
    return `${result.sizesDiffer ? SIZE_WARNING : ''}Images are identical.\n`;
  }
  const { kind, offset, isPastShorter } = result;
  switch (kind) {
    case 'size':
      return 'Strict mode: Image size mismatch!\n';
    case 'allocation':
      return `Strict mode: Offset ${offset} block status mismatch!\n`;
    case 'content':
      return `${isPastShorter ? SIZE_WARNING : ''}Content mismatch at offset ${offset}!\n`;
  }
}
