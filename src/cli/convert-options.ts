/** The options of `qcow2 convert`: what they are, and which of them go together. */

import type { ImageDescription } from '../chain/description.ts';
import { Qcow2Error } from '../errors.ts';
import { DEFAULT_SPARSE_BYTES, MAX_SPARSE_BYTES } from '../operations/convert-raw.ts';
import type { CreateOptions } from '../operations/create.ts';
import { usageError } from './command.ts';
import type { OptionDefinition, ParsedArguments } from './command.ts';
import { parseCreationOptions, toCreateOptions } from './creation-options.ts';
import { parseImageOptions } from './image-opts.ts';
import {
  CACHE_MODES,
  FORCE_SHARE_OPTION,
  formatOption,
  IMAGE_FORMATS,
  IMAGE_OPTS_OPTIONS,
  namedImage,
  REFERENCE_OPTIONS,
  refuseObjects,
} from './image-options.ts';
import { parseSize } from './size.ts';

const DEFAULT_THREADS = 8;
const MAX_THREADS = 16;

/** Options of the command, in the order of its help. */
export const CONVERT_OPTIONS = {
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
    description: 'format of the output (default raw)',
    choices: IMAGE_FORMATS,
  },
  option: {
    kind: 'list',
    short: 'o',
    placeholder: 'NAME=VALUE,…',
    description: 'what the output is to be; -o help lists it all',
  },
  compress: { kind: 'flag', short: 'c', description: 'compress the output (qcow2)' },
  backing: {
    kind: 'value',
    short: 'B',
    placeholder: 'FILE',
    description: 'backing file of the output: it keeps what the image itself does not hold',
  },
  'output-backing-format': {
    kind: 'value',
    short: 'F',
    placeholder: 'FORMAT',
    description: 'format of the backing file; required with one',
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
  'target-is-zero': { kind: 'flag', description: 'with -n: the output reads as zeroes already' },
  'sparse-size': {
    kind: 'value',
    short: 'S',
    placeholder: 'SIZE',
    description: 'zeroes that are left out (default 4k); 0 allocates everything',
  },
  salvage: { kind: 'flag', description: 'write zeroes for what cannot be read, and go on' },
  bitmaps: { kind: 'flag', description: 'copy the persistent bitmaps too' },
  'skip-broken-bitmaps': {
    kind: 'flag',
    description: 'with --bitmaps: leave out those that are inconsistent',
  },
  coroutines: {
    kind: 'value',
    short: 'm',
    placeholder: 'N',
    description: `threads to use at most, 1 to ${MAX_THREADS} (default ${DEFAULT_THREADS})`,
  },
  'out-of-order': {
    kind: 'flag',
    short: 'W',
    description: 'accepted: all threads are used, and what is written is the same each time',
  },
  offload: {
    kind: 'flag',
    short: 'C',
    description: 'accepted: the copy is the same',
  },
  'rate-limit': {
    kind: 'value',
    short: 'r',
    placeholder: 'SIZE',
    description: 'bytes to write in a second at most',
  },
  progress: { kind: 'flag', short: 'p', description: 'show progress' },
  quiet: { kind: 'flag', short: 'q', description: 'print nothing but errors' },
  ...REFERENCE_OPTIONS,
  ...FORCE_SHARE_OPTION,
  cache: {
    kind: 'value',
    short: 't',
    placeholder: 'MODE',
    description: 'cache mode of the output; all but unsafe (the default) flush it',
    choices: CACHE_MODES,
  },
  'source-cache': {
    kind: 'value',
    short: 'T',
    placeholder: 'MODE',
    description: 'cache mode of the images; accepted, and all alike here',
    choices: CACHE_MODES,
  },
  ...IMAGE_OPTS_OPTIONS,
  'target-image-opts': { kind: 'flag', description: 'with -n: the output is given by options' },
} as const satisfies Record<string, OptionDefinition>;

/** What the options ask for. */
export interface ConvertChoices {
  outputPath: string;
  /** The output by its options, where it is given so. */
  target: ImageDescription | undefined;
  outputFormat: 'qcow2' | 'raw';
  /** Of the output that is made; its size is none of them. */
  creation: CreateOptions;
  isCreated: boolean;
  isCompressed: boolean;
  /** Whether what the image does not hold is left to what is behind the output. */
  hasBacking: boolean;
  snapshot: string | undefined;
  /** The output is known to read as zeroes. */
  outputIsZero: boolean;
  sparseBytes: number;
  salvage: boolean;
  /** Which bitmaps are copied; `sound`: those that are not inconsistent. */
  bitmaps: 'none' | 'all' | 'sound';
  threads: number;
  bytesPerSecond: number;
  durable: boolean;
}

/**
 * Reads the options.
 * @param imageCount number of images that are read
 * @throws {Qcow2Error} `INVALID_OPTION` for values that cannot be, or not together
 */
export function parseConvertOptions(args: ParsedArguments, imageCount: number): ConvertChoices {
  refuseObjects(args);
  const { path: outputPath, target } = parseOutput(args);
  const outputFormat = target?.format ?? formatOption(args.value('output-format')).format ?? 'raw';
  const isCreated = !args.flag('no-create');
  const creation = parseCreation(args, outputFormat);
  const isCompressed = args.flag('compress');
  const snapshot = args.value('snapshot');
  if (snapshot !== undefined && imageCount > 1) {
    throw usageError('-l reads a snapshot of one image; there are several');
  }
  const hasBacking = args.value('backing') !== undefined || creation.backingFile !== undefined;
  if (hasBacking && outputFormat === 'raw') throw usageError('a raw image has no backing file');
  if (hasBacking && imageCount > 1) {
    throw usageError('-B is for one image: several, one behind the other, have no backing file');
  }
  if (isCompressed) checkCompression(outputFormat, creation);
  if (args.flag('offload')) checkOffload(args);
  const outputIsZero = args.flag('target-is-zero');
  if (outputIsZero && isCreated) throw usageError('--target-is-zero requires -n');
  if (outputIsZero && hasBacking) {
    throw usageError('--target-is-zero cannot be with -B: the output reads as its backing file');
  }
  return {
    outputPath,
    target,
    outputFormat,
    creation,
    isCreated,
    isCompressed,
    hasBacking,
    snapshot,
    outputIsZero,
    sparseBytes: parseSparseSize(args.value('sparse-size')),
    salvage: args.flag('salvage'),
    bitmaps: parseBitmaps(args, imageCount, outputFormat),
    threads: parseThreads(args.value('coroutines')),
    bytesPerSecond: parseSize(args.value('rate-limit') ?? '0', 'the rate limit'),
    durable: (args.value('cache') ?? 'unsafe') !== 'unsafe',
  };
}

/** What the last operand names. */
interface GivenOutput {
  path: string;
  /** Where it is given by its options. */
  target: ImageDescription | undefined;
}

function parseOutput(args: ParsedArguments): GivenOutput {
  const operand = args.operands.at(-1) ?? '';
  const exists = args.flag('no-create');
  const format = args.value('output-format');
  const isDescribed = args.flag('target-image-opts');
  if (isDescribed && !exists) throw usageError('--target-image-opts requires use of -n flag');
  if (isDescribed && format !== undefined) {
    throw usageError('--image-opts and --format are mutually exclusive');
  }
  const given = isDescribed ? parseImageOptions(operand) : namedImage(operand, format ?? 'raw');
  if (typeof given === 'string') return { path: given, target: undefined };
  if (!exists) {
    throw usageError('an output that is made is given by its name, not by options; or say -n');
  }
  checkTarget(given, operand);
  return { path: given.path, target: given };
}

function checkTarget({ format, window, readOnly }: ImageDescription, operand: string): void {
  const problem =
    format === undefined
      ? 'say what the output is: driver=qcow2 or driver=raw'
      : readOnly === true
        ? 'Block node is read-only'
        : window === undefined
          ? undefined
          : 'the output cannot be a part of a file';
  if (problem !== undefined) throw new Qcow2Error('INVALID_OPTION', problem, { file: operand });
}

function parseCreation(args: ParsedArguments, format: 'qcow2' | 'raw'): CreateOptions {
  const lists = args.list('option');
  if (args.flag('no-create')) {
    if (lists.length > 0) throw usageError('-o has no effect with -n: the output exists already');
    return {};
  }
  const values = parseCreationOptions(format, lists);
  const backing = args.value('backing');
  const backingFormat = args.value('output-backing-format');
  if (backingFormat !== undefined && format === 'raw') {
    throw usageError('-F is for -O qcow2: a raw image has no backing file');
  }
  if (backing !== undefined && format === 'qcow2') values.set('backing_file', backing);
  if (backingFormat !== undefined && format === 'qcow2') values.set('backing_fmt', backingFormat);
  // As large as the images are, whatever else is said.
  values.delete('size');
  if (format === 'raw' && values.get('preallocation') === 'metadata') {
    throw usageError('-o preallocation of a raw image must be one of off, falloc, full');
  }
  return toCreateOptions(format, values);
}

function checkCompression(format: 'qcow2' | 'raw', creation: CreateOptions): void {
  if (format === 'raw') throw usageError('-c is for -O qcow2: a raw image cannot be compressed');
  if ((creation.preallocation ?? 'off') !== 'off') {
    throw usageError('-c cannot be with preallocation: compressed clusters take no space ahead');
  }
  if (creation.dataFile !== undefined) {
    throw usageError('-c cannot be with data_file: compressed clusters cannot be in one');
  }
}

function checkOffload(args: ParsedArguments): void {
  const clash = [
    ['-S', args.value('sparse-size') !== undefined],
    ['-c', args.flag('compress')],
    ['--salvage', args.flag('salvage')],
  ] as const;
  const found = clash.find(([, isGiven]) => isGiven);
  if (found !== undefined) throw usageError(`-C cannot be with ${found[0]}`);
}

function parseSparseSize(text: string | undefined): number {
  if (text === undefined) return DEFAULT_SPARSE_BYTES;
  const bytes = parseSize(text, 'the sparse size');
  if (bytes % 512 === 0 && bytes <= MAX_SPARSE_BYTES) return bytes;
  throw usageError(`-S must be 0 or a multiple of 512 up to 16M, not '${text}'`);
}

function parseBitmaps(
  args: ParsedArguments,
  imageCount: number,
  format: 'qcow2' | 'raw',
): ConvertChoices['bitmaps'] {
  const skipsBroken = args.flag('skip-broken-bitmaps');
  if (!args.flag('bitmaps')) {
    if (skipsBroken) throw usageError('--skip-broken-bitmaps requires --bitmaps');
    return 'none';
  }
  if (imageCount > 1) throw usageError('--bitmaps is for one image; there are several');
  if (format === 'raw') throw usageError('--bitmaps is for -O qcow2: a raw image has no bitmaps');
  if (args.value('snapshot') !== undefined) {
    throw usageError('--bitmaps cannot be with -l: bitmaps speak of the disk as it is now');
  }
  return skipsBroken ? 'sound' : 'all';
}

function parseThreads(text: string | undefined): number {
  if (text === undefined) return DEFAULT_THREADS;
  const threads = /^\d+$/.test(text) ? Number(text) : 0;
  if (threads >= 1 && threads <= MAX_THREADS) return threads;
  throw usageError(`-m must be 1 to ${MAX_THREADS}, not '${text}'`);
}
