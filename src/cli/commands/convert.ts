/** `qcow2 convert`: write what images read as to a raw image. */

import { openImage } from '../../chain/open.ts';
import type { Image } from '../../chain/open.ts';
import { prepareToRead } from '../../chain/prepare.ts';
import type { BlockDevice } from '../../device/block-device.ts';
import { Qcow2Error } from '../../errors.ts';
import {
  convertToRawSteps,
  DEFAULT_SPARSE_BYTES,
  MAX_SPARSE_BYTES,
  rawSizeOf,
} from '../../operations/convert-raw.ts';
import { OutputFile } from '../../operations/output-file.ts';
import { usageError } from '../command.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import {
  CACHE_MODES,
  FORCE_SHARE_OPTION,
  formatOption,
  IMAGE_FORMATS,
  REFERENCE_OPTIONS,
  referenceOptions,
} from '../image-options.ts';
import { driveSteps, InterruptedError, ProgressReporter } from '../progress.ts';
import { reportError } from '../report.ts';
import { parseSize } from '../size.ts';
import { openSnapshot } from '../snapshot-option.ts';

/** Percent between two lines of progress. */
const STEP_PERCENT = 1;
const MAX_COROUTINES = 16;

export const command: CommandDefinition = {
  name: 'convert',
  summary: 'write the content of images to a raw image',
  operands: 'IMAGE… OUTPUT',
  operandCount: [2, Infinity],
  details:
    'Several images are written one behind the other. Zeroes become holes of the output. An ' +
    'existing OUTPUT is overwritten; if the conversion is interrupted or fails, an output that ' +
    'did not exist before is removed.',
  examples: [
    'qcow2 convert disk.qcow2 disk.raw',
    'qcow2 convert -p -l before-upgrade disk.qcow2 old.raw',
    'qcow2 convert -n disk.qcow2 /dev/vg/disk',
  ],
  options: {
    format: {
      kind: 'value',
      short: 'f',
      placeholder: 'FORMAT',
      description: 'format of the images (default: probed)',
      choices: IMAGE_FORMATS,
    },
    'output-format': {
      kind: 'value',
      short: 'O',
      placeholder: 'FORMAT',
      description: 'format of the output (default: raw, which is the only one)',
    },
    snapshot: {
      kind: 'value',
      short: 'l',
      placeholder: 'SNAPSHOT',
      description: 'read this snapshot: ID, name, or snapshot.id=ID,snapshot.name=NAME',
    },
    'no-create': {
      kind: 'flag',
      short: 'n',
      description: 'write into an output that exists and is large enough',
    },
    'target-is-zero': {
      kind: 'flag',
      description: 'with -n: the output reads as zeroes already',
    },
    'sparse-size': {
      kind: 'value',
      short: 'S',
      placeholder: 'SIZE',
      description: 'zeroes that make a hole (default: 4k); 0 allocates everything',
    },
    progress: { kind: 'flag', short: 'p', description: 'show progress' },
    quiet: { kind: 'flag', short: 'q', description: 'print nothing but errors' },
    ...REFERENCE_OPTIONS,
    ...FORCE_SHARE_OPTION,
    cache: {
      kind: 'value',
      short: 't',
      placeholder: 'MODE',
      description: 'cache mode of the output; all but unsafe (the default) flush it at the end',
      choices: CACHE_MODES,
    },
    'source-cache': {
      kind: 'value',
      short: 'T',
      placeholder: 'MODE',
      description: 'cache mode of the images; accepted, and all alike here',
      choices: CACHE_MODES,
    },
    coroutines: {
      kind: 'value',
      short: 'm',
      placeholder: 'N',
      description: 'requests at a time, 1 to 16; accepted, and all alike here',
    },
    'out-of-order': {
      kind: 'flag',
      short: 'W',
      description: 'allow writing out of order; accepted',
    },
  },
  run,
};

async function run(args: ParsedArguments, io: CommandIo): Promise<number> {
  const paths = args.operands.slice(0, -1);
  const outputPath = args.operands.at(-1) ?? '';
  const options = parseOptions(args, paths);
  const show = args.flag('progress') && !args.flag('quiet');
  const open = { ...formatOption(args.value('format')), ...referenceOptions(args) };
  const images: Image[] = [];
  let output: OutputFile | undefined;
  try {
    for (const path of paths) images.push(openImage(path, open));
    for (const image of images) await prepareToRead(image);
    const sources = images.map((image) => sourceOf(image, options.snapshot));
    output = new OutputFile(outputPath, {
      size: rawSizeOf(sources),
      mode: options.mode,
      inputs: images.flatMap(filesOf),
    });
    const { sparseBytes, outputIsZero } = options;
    const steps = convertToRawSteps(sources, output, {
      sparseBytes,
      ...(outputIsZero ? { outputIsZero } : {}),
    });
    const reporter = new ProgressReporter(io, { show, stepPercent: STEP_PERCENT });
    try {
      await driveSteps(steps, { reporter, interruptible: true });
    } finally {
      reporter.end();
    }
    output.finish({ flush: options.flush });
    return 0;
  } catch (error) {
    const outcome = output === undefined ? '' : outcomeOf(output);
    if (error instanceof InterruptedError) {
      reportError(new Qcow2Error('HOST', 'interrupted', { hint: outcome }), io);
      return error.exitCode;
    }
    throw error instanceof Qcow2Error && outcome !== '' ? withOutcome(error, outcome) : error;
  } finally {
    for (const image of images) image.close();
  }
}

interface ConvertOptions {
  snapshot: string | undefined;
  mode: 'create' | 'existing';
  sparseBytes: number;
  outputIsZero: boolean;
  flush: boolean;
}

function parseOptions(args: ParsedArguments, paths: readonly string[]): ConvertOptions {
  const outputFormat = args.value('output-format') ?? 'raw';
  if (outputFormat !== 'raw') {
    throw usageError(`cannot write images of format '${outputFormat}'; use -O raw`);
  }
  const snapshot = args.value('snapshot');
  if (snapshot !== undefined && paths.length > 1) {
    throw usageError('-l reads a snapshot of one image; there are several');
  }
  const isExisting = args.flag('no-create');
  const outputIsZero = args.flag('target-is-zero');
  if (outputIsZero && !isExisting) throw usageError('--target-is-zero requires -n');
  const coroutines = args.value('coroutines') ?? '8';
  if (!/^\d+$/.test(coroutines) || !inRange(Number(coroutines), 1, MAX_COROUTINES)) {
    throw usageError(`-m must be 1 to ${MAX_COROUTINES}, not '${coroutines}'`);
  }
  return {
    snapshot,
    mode: isExisting ? 'existing' : 'create',
    sparseBytes: parseSparseSize(args.value('sparse-size')),
    outputIsZero,
    flush: (args.value('cache') ?? 'unsafe') !== 'unsafe',
  };
}

function parseSparseSize(text: string | undefined): number {
  if (text === undefined) return DEFAULT_SPARSE_BYTES;
  const bytes = parseSize(text, 'the sparse size');
  if (bytes % 512 === 0 && bytes <= MAX_SPARSE_BYTES) return bytes;
  throw usageError(`-S must be 0 or a multiple of 512 up to 16M, not '${text}'`);
}

function inRange(value: number, minimum: number, maximum: number): boolean {
  return value >= minimum && value <= maximum;
}

function sourceOf(image: Image, snapshot: string | undefined): BlockDevice {
  return snapshot === undefined ? image : openSnapshot(image, snapshot);
}

/** Every file that reading an image reads. */
function filesOf(image: Image): string[] {
  const files: string[] = [];
  for (let layer: Image | undefined = image; layer !== undefined; layer = layer.backing) {
    files.push(layer.path);
    if (layer.format === 'qcow2' && layer.dataFile !== undefined) files.push(layer.dataFile.path);
  }
  return files;
}

function outcomeOf(output: OutputFile): string {
  return output.abandon() === 'removed'
    ? `the incomplete ${output.path} was removed`
    : `${output.path} is incomplete`;
}

function withOutcome(error: Qcow2Error, outcome: string): Qcow2Error {
  const { file, structure, offset, cause } = error;
  const hint = error.hint === undefined ? outcome : `${error.hint}; ${outcome}`;
  return new Qcow2Error(error.code, error.problem, { file, structure, offset, hint, cause });
}
