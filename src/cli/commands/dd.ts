/** `qcow2 dd`: copy some blocks of a disk to a new image. */

import { openImage } from '../../chain/open.ts';
import type { Image } from '../../chain/open.ts';
import { prepareToRead } from '../../chain/prepare.ts';
import type { BlockDevice } from '../../device/block-device.ts';
import { convertSteps } from '../../operations/convert.ts';
import { DEFAULT_SPARSE_BYTES } from '../../operations/convert-raw.ts';
import { selectBlocks } from '../../operations/dd.ts';
import type { BlockSelection } from '../../operations/dd.ts';
import type { Steps } from '../../operations/progress.ts';
import { usageError } from '../command.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import type { ConvertChoices } from '../convert-options.ts';
import { describeOutcome, filesOf, openConvertOutput, withOutcome } from '../convert-output.ts';
import type { ConvertOutput } from '../convert-output.ts';
import {
  FORCE_SHARE_OPTION,
  formatOption,
  givenImage,
  IMAGE_FORMATS,
  IMAGE_OPTS_OPTIONS,
  namedImage,
  REFERENCE_OPTIONS,
  referenceOptions,
} from '../image-options.ts';
import { driveSteps, InterruptedError, Interrupts, ProgressReporter } from '../progress.ts';
import { parseSize } from '../size.ts';
import { CHANGE_OPTIONS, reportInterrupt } from '../write-options.ts';

/** Percent between two lines of progress. */
const STEP_PERCENT = 1;
/** QEMU's bounds, of a block and of the numbers of blocks. */
const MAX_BLOCK_BYTES = 2 ** 31 - 1;
const BLOCK_COUNT_BOUND = 2 ** 63;

export const command: CommandDefinition = {
  name: 'dd',
  summary: 'copy some blocks of a disk to a new image',
  operands: 'if=IMAGE of=OUTPUT [bs=SIZE] [count=BLOCKS] [skip=BLOCKS]',
  operandCount: [0, Infinity],
  details:
    'bs is the size of a block (default 512 bytes; need not be a multiple of that). skip leaves out ' +
    'blocks at the start. count says, as it does in qemu-img, at which block to stop: the blocks ' +
    'that are skipped count. OUTPUT is made, or overwritten unless it is in use, with the size of ' +
    'what is copied; zeroes are left out of it. If copying fails or is interrupted, what was made ' +
    'of OUTPUT is removed.',
  examples: [
    'qcow2 dd -O qcow2 if=disk.raw of=disk.qcow2',
    'qcow2 dd -f qcow2 bs=1M skip=1 count=9 if=disk.qcow2 of=eight-mebibytes.raw',
  ],
  options: {
    format: CHANGE_OPTIONS.format,
    'output-format': {
      kind: 'value',
      short: 'O',
      placeholder: 'FORMAT',
      description: 'format of OUTPUT (default raw)',
      choices: IMAGE_FORMATS,
    },
    progress: { kind: 'flag', short: 'p', description: 'show progress' },
    ...IMAGE_OPTS_OPTIONS,
    ...REFERENCE_OPTIONS,
    ...FORCE_SHARE_OPTION,
  },
  run,
};

async function run(args: ParsedArguments, io: CommandIo): Promise<number> {
  const { input, output, selection } = parseOperands(args.operands);
  const open = { ...formatOption(args.value('format')), ...referenceOptions(args) };
  using image = openImage(givenImage(args, input), open);
  await prepareToRead(image);
  const { device, isPastEnd } = selectBlocks(image, selection);
  if (isPastEnd) {
    io.stderr(
      `qcow2: warning: ${image.path}: cannot skip to the specified offset; nothing is copied\n`,
    );
  }
  return await copy(device, output, { image, args, io });
}

/** What to copy, and where. */
interface Operands {
  input: string;
  output: string;
  selection: BlockSelection;
}

function parseOperands(operands: readonly string[]): Operands {
  const values = new Map<string, string>();
  for (const operand of operands) {
    const [name = '', ...rest] = operand.split('=');
    const isKnown = ['if', 'of', 'bs', 'count', 'skip'].includes(name) && rest.length > 0;
    if (!isKnown) throw usageError(`unknown operand '${operand}'; see: qcow2 dd --help`);
    values.set(name, rest.join('='));
    // As in QEMU, a value that cannot be is refused even if another takes its place.
    parseSelection(values);
  }
  const [input, output] = [values.get('if'), values.get('of')];
  if (input === undefined || output === undefined) {
    throw usageError('say what to copy, and where: if=IMAGE of=OUTPUT');
  }
  const outputPath = namedImage(output);
  if (typeof outputPath !== 'string') {
    throw usageError('the output is given by its name, not by options');
  }
  return { input, output: outputPath, selection: parseSelection(values) };
}

function parseSelection(values: ReadonlyMap<string, string>): BlockSelection {
  const blocks = (name: string): number | undefined => {
    const text = values.get(name);
    return text === undefined ? undefined : parseSize(text, name, BLOCK_COUNT_BOUND);
  };
  const blockBytes = blocks('bs');
  if (blockBytes !== undefined && (blockBytes < 1 || blockBytes > MAX_BLOCK_BYTES)) {
    throw usageError(`bs must be 1 to ${MAX_BLOCK_BYTES}, not '${values.get('bs')}'`);
  }
  return { blockBytes, count: blocks('count'), skip: blocks('skip') };
}

/** What a call is about. */
interface Call {
  image: Image;
  args: ParsedArguments;
  io: CommandIo;
}

async function copy(source: BlockDevice, path: string, { image, args, io }: Call): Promise<number> {
  const show = args.flag('progress');
  const reporter = new ProgressReporter(io, { show, stepPercent: STEP_PERCENT });
  const making = new ProgressReporter(io, { show: false, stepPercent: STEP_PERCENT });
  let output: ConvertOutput | undefined;
  // From before there is an output until it is finished or given up.
  using interrupts = new Interrupts();
  try {
    output = await openConvertOutput(path, {
      choices: choicesFor(path, formatOption(args.value('output-format')).format ?? 'raw'),
      size: source.size,
      inputs: filesOf(image),
      open: referenceOptions(args),
      run: <Result>(steps: Steps<Result>) =>
        driveSteps(steps, { reporter: making, interruptible: interrupts }),
    });
    const { target, spec, plan } = output;
    const steps = convertSteps(source, target, { ...plan, spec });
    await driveSteps(steps, { reporter, interruptible: interrupts });
    output.finish();
    return 0;
  } catch (error) {
    const isInterrupt = error instanceof InterruptedError;
    if (output === undefined && !isInterrupt) throw error;
    const outcome = output === undefined ? `${path} was not made` : describeOutcome(output, path);
    if (isInterrupt) return reportInterrupt(error, outcome, io);
    throw withOutcome(error, outcome);
  } finally {
    reporter.end();
  }
}

/** The output is a plain new image, whatever is copied. */
function choicesFor(
  outputPath: string,
  outputFormat: ConvertChoices['outputFormat'],
): ConvertChoices {
  return {
    outputPath,
    target: undefined,
    outputFormat,
    creation: {},
    isCreated: true,
    isCompressed: false,
    hasBacking: false,
    snapshot: undefined,
    outputIsZero: false,
    sparseBytes: DEFAULT_SPARSE_BYTES,
    salvage: false,
    bitmaps: 'none',
    threads: 1,
    bytesPerSecond: 0,
    durable: true,
  };
}
