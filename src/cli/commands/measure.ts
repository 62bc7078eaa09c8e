/** `qcow2 measure`: how much room a new image would need. */

import { openImage } from '../../chain/open.ts';
import type { Image, ImageFormat } from '../../chain/open.ts';
import { Qcow2Error } from '../../errors.ts';
import { measureImage } from '../../operations/measure.ts';
import type { MeasuredBitmaps, Measurement, MeasureOptions } from '../../operations/measure.ts';
import { usageError } from '../command.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import { parseCreationOptions, toCreateOptions } from '../creation-options.ts';
import {
  DESCRIBE_OPTIONS,
  FORCE_SHARE_OPTION,
  formatOption,
  givenImage,
  IMAGE_OPTS_OPTIONS,
  refuseObjects,
  IMAGE_FORMATS,
  REFERENCE_OPTIONS,
  referenceOptions,
} from '../image-options.ts';
import { parseSize } from '../size.ts';
import { openSnapshot } from '../snapshot-option.ts';

export const command: CommandDefinition = {
  name: 'measure',
  summary: 'tell how much room a new image would need',
  operands: '[IMAGE]',
  operandCount: [0, 1],
  details:
    'The image would hold what IMAGE holds, or an empty disk of the given size. The required size ' +
    'is what it needs for that, rather too much than too little. The fully allocated size is what it ' +
    'needs once all of the disk has been written.',
  examples: [
    'qcow2 measure -O qcow2 --size 20G',
    'qcow2 measure -O qcow2 -o cluster_size=1M disk.raw',
    'qcow2 measure --output=json -O raw -l before-upgrade disk.qcow2',
  ],
  options: {
    size: { kind: 'value', placeholder: 'SIZE', description: 'size of an empty disk' },
    'output-format': {
      kind: 'value',
      short: 'O',
      placeholder: 'FORMAT',
      description: 'format of the new image (default raw)',
      choices: IMAGE_FORMATS,
    },
    option: {
      kind: 'list',
      short: 'o',
      placeholder: 'NAME=VALUE,…',
      description: 'what the image would be; see: qcow2 create -o help',
    },
    ...DESCRIBE_OPTIONS,
    snapshot: {
      kind: 'value',
      short: 'l',
      placeholder: 'SNAPSHOT',
      description: 'measure this snapshot: ID, name, or snapshot.id=ID,snapshot.name=NAME',
    },
    ...REFERENCE_OPTIONS,
    ...FORCE_SHARE_OPTION,
    ...IMAGE_OPTS_OPTIONS,
  },
  run,
};

function run(args: ParsedArguments, io: CommandIo): number {
  const [path] = args.operands;
  const sizeText = args.value('size');
  checkArguments(args, path, sizeText);
  const format = args.choice('output-format', IMAGE_FORMATS, 'raw');
  const options = measureOptions(format, args.list('option'));
  const measured =
    path === undefined
      ? measureImage(parseSize(sizeText ?? '', 'the size'), options)
      : measureFile(path, args, options);
  io.stdout(args.value('output') === 'json' ? toJson(measured) : toText(measured));
  return 0;
}

function checkArguments(
  args: ParsedArguments,
  path: string | undefined,
  sizeText: string | undefined,
): void {
  refuseObjects(args);
  if (path !== undefined && sizeText !== undefined) {
    throw usageError('give --size or an image, not both');
  }
  if (path !== undefined) return;
  if (sizeText === undefined) throw usageError('give an image, or --size');
  if ((args.value('format') ?? args.value('snapshot')) !== undefined) {
    throw usageError('-f and -l are for an image; there is only --size');
  }
}

function measureOptions(format: ImageFormat, lists: readonly string[]): MeasureOptions {
  const { compat, clusterSize, refcountBits, extendedL2, preallocation, backingFile } =
    toCreateOptions(format, parseCreationOptions(format, lists));
  return {
    format,
    compat,
    clusterSize,
    refcountBits,
    extendedL2,
    preallocation,
    backingFile,
  };
}

function measureFile(path: string, args: ParsedArguments, options: MeasureOptions): Measurement {
  using image = openImage(givenImage(args, path), {
    ...formatOption(args.value('format')),
    ...referenceOptions(args),
  });
  const snapshot = args.value('snapshot');
  const device = snapshot === undefined ? image : openSnapshot(image, snapshot);
  try {
    return measureImage(device, { ...options, bitmaps: bitmapsOf(image) });
  } catch (error) {
    const isOfImage = error instanceof Qcow2Error && error.code !== 'INVALID_OPTION';
    throw isOfImage ? error.inFile(path) : error;
  }
}

/** Only images of version 3 can have any. */
function bitmapsOf(image: Image): MeasuredBitmaps | undefined {
  if (image.format === 'raw' || image.header.version < 3) return undefined;
  return { diskSize: image.size, list: image.bitmaps };
}

function toText({ required, fullyAllocated, bitmaps }: Measurement): string {
  const lines = [`required size: ${required}`, `fully allocated size: ${fullyAllocated}`];
  if (bitmaps !== undefined) lines.push(`bitmaps size: ${bitmaps}`);
  return `${lines.join('\n')}\n`;
}

function toJson({ required, fullyAllocated, bitmaps }: Measurement): string {
  const document = {
    ...(bitmaps === undefined ? {} : { bitmaps }),
    required,
    'fully-allocated': fullyAllocated,
  };
  return `${JSON.stringify(document, null, 4)}\n`;
}
