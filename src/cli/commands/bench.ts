/** `qcow2 bench`: time requests to an image. */

import { openImage } from '../../chain/open.ts';
import type { Image } from '../../chain/open.ts';
import { prepareToRead } from '../../chain/prepare.ts';
import { Qcow2Error } from '../../errors.ts';
import { benchSteps } from '../../operations/bench.ts';
import type { BenchDevice, BenchOptions } from '../../operations/bench.ts';
import { diskSizeOf } from '../../operations/resize.ts';
import { usageError } from '../command.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import {
  CACHE_MODES,
  FORCE_SHARE_OPTION,
  formatOption,
  givenImage,
  IMAGE_OPTS_OPTIONS,
  REFERENCE_OPTIONS,
  referenceOptions,
} from '../image-options.ts';
import { driveSteps, InterruptedError, ProgressReporter } from '../progress.ts';
import { parseSize } from '../size.ts';
import { CHANGE_OPTIONS, reportInterrupt, warnIfGuessedRaw } from '../write-options.ts';

const DEFAULT_COUNT = 75_000;
const DEFAULT_DEPTH = 64;
const DEFAULT_BUFFER_BYTES = 4096;
/** QEMU's bound for numbers and buffers: they are C's `int`. */
const MAX_INT = 2 ** 31 - 1;
/** Percent between two lines of progress, which are only shown when they are asked for. */
const STEP_PERCENT = 1;

export const command: CommandDefinition = {
  name: 'bench',
  summary: 'time requests to an image',
  operands: 'IMAGE',
  operandCount: [1, 1],
  details:
    'Requests are made one after the other, whatever the depth, by one thread, and through the page ' +
    'cache of the host. After the end of the disk they go on at its start. With -w what the disk ' +
    'holds is overwritten.',
  examples: [
    'qcow2 bench disk.qcow2',
    'qcow2 bench -c 10000 -s 64k -S 1M disk.qcow2',
    'qcow2 bench -w --pattern=0xaa -d 1 --flush-interval=1 -c 1000 scratch.qcow2',
  ],
  options: {
    count: {
      kind: 'value',
      short: 'c',
      placeholder: 'N',
      description: `number of requests (default ${DEFAULT_COUNT})`,
    },
    depth: {
      kind: 'value',
      short: 'd',
      placeholder: 'N',
      description: `requests in parallel (default ${DEFAULT_DEPTH}); here they wait for each other`,
    },
    format: CHANGE_OPTIONS.format,
    'flush-interval': {
      kind: 'value',
      placeholder: 'N',
      description: 'with -w: flush every so many requests',
    },
    aio: {
      kind: 'value',
      short: 'i',
      placeholder: 'AIO',
      description: 'how requests are made: threads; native and io_uring are refused',
      choices: ['threads', 'native', 'io_uring'],
    },
    native: { kind: 'flag', short: 'n', description: 'refused, as is -i native' },
    'no-drain': { kind: 'flag', description: 'accepted: there is nothing to wait for at a flush' },
    offset: {
      kind: 'value',
      short: 'o',
      placeholder: 'SIZE',
      description: 'where the first request begins (default 0)',
    },
    pattern: {
      kind: 'value',
      placeholder: 'BYTE',
      description: 'with -w: the byte that is written (default 0)',
    },
    quiet: {
      kind: 'flag',
      short: 'q',
      description: 'accepted: the result is printed all the same',
    },
    'buffer-size': {
      kind: 'value',
      short: 's',
      placeholder: 'SIZE',
      description: 'bytes of a request (default 4k)',
    },
    'step-size': {
      kind: 'value',
      short: 'S',
      placeholder: 'SIZE',
      description: 'bytes from one request to the next (default: those of a request)',
    },
    cache: {
      kind: 'value',
      short: 't',
      placeholder: 'MODE',
      description:
        'writeback (default), unsafe, or writethrough; those without a cache are refused',
      choices: CACHE_MODES,
    },
    write: { kind: 'flag', short: 'w', description: 'write, which destroys what the disk holds' },
    ...IMAGE_OPTS_OPTIONS,
    ...REFERENCE_OPTIONS,
    ...FORCE_SHARE_OPTION,
  },
  run,
};

async function run(args: ParsedArguments, io: CommandIo): Promise<number> {
  const [path = ''] = args.operands;
  const plan = parsePlan(args);
  const writable = plan.isWriting;
  const open = { ...formatOption(args.value('format')), ...referenceOptions(args), writable };
  using image = openImage(givenImage(args, path), open);
  if (writable) warnIfGuessedRaw(image, args, io);
  await prepareToRead(image);
  announce(plan, io);
  // The last sector of a raw image is a whole one, as in QEMU.
  if (image.format === 'raw' && writable) image.growable = true;
  try {
    const options = { ...plan, diskSize: diskSizeOf(image) };
    const reporter = new ProgressReporter(io, { show: false, stepPercent: STEP_PERCENT });
    const steps = benchSteps(deviceFor(image, plan), options);
    const milliseconds = await driveSteps(steps, { reporter, interruptible: true });
    io.stdout(`Run completed in ${(milliseconds / 1000).toFixed(3)} seconds.\n`);
    return 0;
  } catch (error) {
    if (error instanceof InterruptedError) {
      return reportInterrupt(error, `not all requests were made to ${path}`, io);
    }
    throw error instanceof Qcow2Error ? error.inFile(path) : error;
  }
}

/** What is to be timed, and how. */
interface BenchPlan extends BenchOptions {
  isWriting: boolean;
  flushInterval: number;
  depth: number;
  cache: (typeof CACHE_MODES)[number];
}

function parsePlan(args: ParsedArguments): BenchPlan {
  refuseUnsupported(args);
  const count = parseNumber(args.value('count'), DEFAULT_COUNT, '-c');
  const depth = parseNumber(args.value('depth'), DEFAULT_DEPTH, '-d');
  const flushInterval = parseNumber(args.value('flush-interval'), 0, '--flush-interval');
  const pattern = parseNumber(args.value('pattern'), 0, '--pattern', 0xff);
  const offset = parseSize(args.value('offset') ?? '0', 'the offset');
  const bound = MAX_INT + 1;
  const bufferText = args.value('buffer-size') ?? `${DEFAULT_BUFFER_BYTES}`;
  const bufferBytes = parseSize(bufferText, 'the buffer size', bound);
  const stepBytes =
    parseSize(args.value('step-size') ?? '0', 'the step size', bound) || bufferBytes;
  const isWriting = args.flag('write');
  if (flushInterval > 0 && !isWriting) throw usageError('--flush-interval is for -w only');
  if (flushInterval > 0 && flushInterval < depth) {
    throw usageError(`--flush-interval cannot be less than the depth, ${depth}; see -d`);
  }
  // QEMU waits for ever then.
  if (depth === 0 && count > 0) throw usageError('-d must be at least 1, or nothing would be sent');
  const cache = args.choice('cache', CACHE_MODES, 'writeback');
  const requests = { count, bufferBytes, offset, stepBytes, pattern };
  return { ...requests, isWriting, flushInterval, depth, cache };
}

/** Refuses what would make a time say something that it does not. */
function refuseUnsupported(args: ParsedArguments): void {
  const cache = args.value('cache');
  if (cache === 'none' || cache === 'directsync') {
    throw usageError(
      `-t ${cache} cannot be: files are read and written through the page cache here`,
    );
  }
  const aio = args.flag('native') ? 'native' : args.value('aio');
  if (aio !== undefined && aio !== 'threads') {
    const option = args.flag('native') ? '-n' : `-i ${aio}`;
    throw usageError(`${option} cannot be: requests are made one after the other here`);
  }
}

function parseNumber(
  text: string | undefined,
  otherwise: number,
  option: string,
  most = MAX_INT,
): number {
  if (text === undefined) return otherwise;
  // As C reads them: decimal, hexadecimal, octal.
  const isNumber = /^\s*\+?(?:0x[0-9a-f]+|0[0-7]*|[1-9][0-9]*)$/i.test(text);
  const digits = text.trim().replace('+', '');
  const value = Number.parseInt(digits, /^0x/i.test(digits) ? 16 : digits.startsWith('0') ? 8 : 10);
  if (isNumber && value <= most) return value;
  throw usageError(`${option} must be a number from 0 to ${most}, not '${text}'`);
}

function announce({ count, bufferBytes, depth, ...plan }: BenchPlan, io: CommandIo): void {
  const { isWriting, offset, stepBytes, flushInterval } = plan;
  io.stdout(
    `Sending ${count} ${isWriting ? 'write' : 'read'} requests, ${bufferBytes} bytes each, ` +
      `${depth} in parallel (starting at offset ${offset}, step size ${stepBytes})\n`,
  );
  if (flushInterval > 0) io.stdout(`Sending flush every ${flushInterval} requests\n`);
}

/** The image as the cache mode has it: each write flushed, or no flush at all. */
function deviceFor(image: Image, { isWriting, cache }: BenchPlan): BenchDevice {
  if (!isWriting || cache === 'writeback') return image;
  const flush = (): void => image.flush();
  return {
    size: image.size,
    read: (target, offset) => image.read(target, offset),
    write: (source, offset) => {
      image.write(source, offset);
      if (cache === 'writethrough') flush();
    },
    flush: cache === 'unsafe' ? () => undefined : flush,
  };
}
