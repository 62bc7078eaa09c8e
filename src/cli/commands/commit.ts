/** `qcow2 commit`: write what an overlay has to its backing file. */

import { openImage } from '../../chain/open.ts';
import type { ChainedQcow2Image, Image, OpenImageOptions } from '../../chain/open.ts';
import { prepareToRead } from '../../chain/prepare.ts';
import { Qcow2Error } from '../../errors.ts';
import { commitSteps, findBacking } from '../../operations/commit.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import { formatOption, givenImage, REFERENCE_OPTIONS, referenceOptions } from '../image-options.ts';
import type { GivenImage } from '../image-options.ts';
import { driveSteps, InterruptedError, ProgressReporter } from '../progress.ts';
import { parseSize } from '../size.ts';
import { CACHE_OPTION, CHANGE_OPTIONS, reportInterrupt } from '../write-options.ts';

/** Percent between two lines of progress. */
const STEP_PERCENT = 1;

export const command: CommandDefinition = {
  name: 'commit',
  summary: 'write what an overlay has to its backing file',
  operands: 'IMAGE',
  operandCount: [1, 1],
  details:
    'IMAGE is empty afterwards and reads as before. Other overlays of the same backing file show ' +
    'what was committed too, and are worthless after it. With -b, what IMAGE and all layers above ' +
    'BASE have goes to BASE; IMAGE stays as it is then (as with -d), and the layers in between ' +
    'must not be used by themselves any more. Interrupted, IMAGE still has all its data, and can ' +
    'be committed again.',
  examples: ['qcow2 commit overlay.qcow2', 'qcow2 commit -p -b base.qcow2 overlay.qcow2'],
  options: {
    base: {
      kind: 'value',
      short: 'b',
      placeholder: 'BASE',
      description: 'commit to this file of the backing chain',
    },
    keep: { kind: 'flag', short: 'd', description: 'leave IMAGE as it is, do not empty it' },
    'rate-limit': {
      kind: 'value',
      short: 'r',
      placeholder: 'SIZE',
      description: 'bytes a second at most',
    },
    progress: { kind: 'flag', short: 'p', description: 'show progress' },
    ...CHANGE_OPTIONS,
    ...CACHE_OPTION,
    ...REFERENCE_OPTIONS,
  },
  run,
};

async function run(args: ParsedArguments, io: CommandIo): Promise<number> {
  const [path = ''] = args.operands;
  const open = { ...formatOption(args.value('format')), ...referenceOptions(args) };
  const given = givenImage(args, path);
  const rate = args.value('rate-limit');
  const bytesPerSecond = rate === undefined ? 0 : parseSize(rate, 'the rate');
  const baseName = args.value('base');
  const depth = baseName === undefined ? 1 : depthOf(given, open, baseName);
  using opened = openImage(given, { ...open, writable: true, writableBacking: depth });
  const image = overlayOf(opened);
  await prepareToRead(image);
  const isQuiet = args.flag('quiet');
  const show = args.flag('progress') && !isQuiet;
  const reporter = new ProgressReporter(io, { show, stepPercent: STEP_PERCENT });
  try {
    const keepsOverlay = args.flag('keep') || baseName !== undefined;
    const steps = commitSteps(image, { keepsOverlay, depth, bytesPerSecond });
    await driveSteps(steps, { reporter, interruptible: true });
  } catch (error) {
    if (!(error instanceof InterruptedError)) throw error;
    const outcome = `${path} still has all its data, and can be committed again`;
    return reportInterrupt(error, outcome, io);
  } finally {
    reporter.end();
  }
  if (!isQuiet) io.stdout('Image committed.\n');
  return 0;
}

/** How far below the image the layer is that `-b` names. */
function depthOf(given: GivenImage, open: OpenImageOptions, name: string): number {
  using image = openImage(given, { ...open, forceShare: true });
  const depth = findBacking(overlayOf(image), name);
  if (depth !== undefined) return depth;
  throw new Qcow2Error('NOT_FOUND', `there is no '${name}' in its backing chain`, {
    file: image.path,
  });
}

function overlayOf(image: Image): ChainedQcow2Image {
  if (image.format === 'qcow2' && image.backing !== undefined) return image;
  throw new Qcow2Error('INVALID_OPTION', 'it has no backing file to commit to', {
    file: image.path,
  });
}
