/** `qcow2 create`: make a new image. */

import { Qcow2Error } from '../../errors.ts';
import { createSteps, newImageSize } from '../../operations/create.ts';
import { usageError } from '../command.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import {
  asksForOptions,
  backingOf,
  creationOptionsHelp,
  describeCreation,
  parseCreationOptions,
  toCreateOptions,
} from '../creation-options.ts';
import { IMAGE_FORMATS, IMAGE_OPTS_OPTIONS, refuseObjects } from '../image-options.ts';
import { driveSteps, InterruptedError, ProgressReporter } from '../progress.ts';
import { parseSize } from '../size.ts';
import { reportInterrupt } from '../write-options.ts';

export const command: CommandDefinition = {
  name: 'create',
  summary: 'make a new image',
  operands: 'IMAGE [SIZE]',
  operandCount: [0, 2],
  details:
    'The image is laid out as qemu-img lays it out. A file of that name is overwritten, unless it ' +
    'is in use or the new image refers to it. SIZE may be left out with a backing file: the disk ' +
    'is as large as that then. Names of a backing file and a data file are taken from the ' +
    "image's directory.",
  examples: [
    'qcow2 create -f qcow2 disk.qcow2 20G',
    'qcow2 create -f qcow2 -b disk.qcow2 -F qcow2 overlay.qcow2',
    'qcow2 create -f qcow2 -o cluster_size=1M,preallocation=metadata disk.qcow2 20G',
    'qcow2 create -f qcow2 -o help',
  ],
  options: {
    format: {
      kind: 'value',
      short: 'f',
      placeholder: 'FORMAT',
      description: 'format of the new image (default raw)',
      choices: IMAGE_FORMATS,
    },
    option: {
      kind: 'list',
      short: 'o',
      placeholder: 'NAME=VALUE,…',
      description: 'what the image is to be; -o help lists it all',
    },
    backing: {
      kind: 'value',
      short: 'b',
      placeholder: 'FILE',
      description: 'backing file',
    },
    'backing-format': {
      kind: 'value',
      short: 'F',
      placeholder: 'FORMAT',
      description: 'format of the backing file; required with one',
    },
    'unsafe-backing': {
      kind: 'flag',
      short: 'u',
      description: 'do not open the backing file, which may be missing',
    },
    quiet: { kind: 'flag', short: 'q', description: 'print nothing but errors' },
    object: IMAGE_OPTS_OPTIONS.object,
  },
  run,
};

async function run(args: ParsedArguments, io: CommandIo): Promise<number> {
  const format = args.choice('format', IMAGE_FORMATS, 'raw');
  const lists = args.list('option');
  const [path, sizeText] = args.operands;
  refuseObjects(args);
  if (asksForOptions(lists)) {
    io.stdout(creationOptionsHelp(format, { withFile: path !== undefined }));
    return 0;
  }
  if (path === undefined) throw usageError('expected IMAGE [SIZE]; see: qcow2 create --help');
  refuseProtocol(path);
  const values = parseCreationOptions(format, lists);
  addArguments(values, args, sizeText);
  const withoutBacking = args.flag('unsafe-backing');
  const given = values.get('size');
  const size = newImageSize(path, {
    format,
    size: given === undefined ? undefined : parseSize(given, 'the size'),
    ...backingOf(values),
    withoutBacking,
  });
  if (given === undefined) values.set('size', String(size));
  if (!args.flag('quiet')) {
    io.stdout(`Formatting '${path}', fmt=${format} ${describeCreation(format, values)}\n`);
  }
  const steps = createSteps(path, { ...toCreateOptions(format, values), withoutBacking });
  try {
    const reporter = new ProgressReporter(io, { show: false, stepPercent: 1 });
    await driveSteps(steps, { reporter, interruptible: true });
  } catch (error) {
    if (!(error instanceof InterruptedError)) throw error;
    return reportInterrupt(error, `the new image ${path} was given up`, io);
  } finally {
    // What was not finished is removed.
    steps.return();
  }
  return 0;
}

/** Adds what `-b`, `-F` and the second operand say to the values of `-o`. */
function addArguments(
  values: Map<string, string>,
  args: ParsedArguments,
  sizeText: string | undefined,
): void {
  const backingFile = args.value('backing');
  const backingFormat = args.value('backing-format');
  if (backingFile !== undefined) values.set('backing_file', backingFile);
  if (backingFormat !== undefined) values.set('backing_fmt', backingFormat);
  if (sizeText === undefined) return;
  if (values.has('size')) throw usageError('the size is given twice: as an option, and by itself');
  parseSize(sizeText, 'the size');
  values.set('size', sizeText);
}

/** A colon before the first slash makes a protocol, as everywhere in QEMU. */
function refuseProtocol(path: string): void {
  const protocol = /^([^/:]*):/.exec(path)?.[1];
  if (protocol === undefined) return;
  throw new Qcow2Error('UNSUPPORTED', `the protocol '${protocol}' is not supported`, {
    file: path,
    hint: `for a file of that name write ./${path}`,
  });
}
