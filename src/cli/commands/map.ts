/** `qcow2 map`: where the disk's bytes are. */

import { openImage } from '../../chain/open.ts';
import { Qcow2Error } from '../../errors.ts';
import { formatMapJson, formatMapTable } from '../../operations/format-map.ts';
import { mapImage } from '../../operations/map.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import {
  DESCRIBE_OPTIONS,
  FORCE_SHARE_OPTION,
  formatOption,
  givenImage,
  IMAGE_OPTS_OPTIONS,
  REFERENCE_OPTIONS,
  referenceOptions,
} from '../image-options.ts';
import { parseSize } from '../size.ts';

export const command: CommandDefinition = {
  name: 'map',
  summary: 'show where the bytes of the disk are stored',
  operands: 'IMAGE',
  operandCount: [1, 1],
  details:
    'The table for people lists the stored bytes only, and cannot tell of compressed clusters; ' +
    'JSON tells everything. Depth 0 is the image itself, 1 its backing file, and so on.',
  examples: ['qcow2 map disk.qcow2', 'qcow2 map --output=json --max-length=1G disk.qcow2'],
  options: {
    ...DESCRIBE_OPTIONS,
    'start-offset': {
      kind: 'value',
      short: 's',
      placeholder: 'SIZE',
      description: 'first byte of the disk to map (default 0)',
    },
    'max-length': {
      kind: 'value',
      short: 'l',
      placeholder: 'SIZE',
      description: 'bytes of the disk to map (default: to its end)',
    },
    ...REFERENCE_OPTIONS,
    ...FORCE_SHARE_OPTION,
    ...IMAGE_OPTS_OPTIONS,
  },
  run,
};

function run(args: ParsedArguments, io: CommandIo): number {
  const [path = ''] = args.operands;
  const startOffset = sizeOption(args, 'start-offset', 'the start offset');
  // More than any disk has, as in QEMU.
  const maxLength = sizeOption(args, 'max-length', 'the length', 2 ** 63);
  using image = openImage(givenImage(args, path), {
    ...formatOption(args.value('format')),
    ...referenceOptions(args),
  });
  const entries = mapImage(image, { startOffset, maxLength });
  const isJson = args.value('output') === 'json';
  try {
    for (const piece of isJson ? formatMapJson(entries) : formatMapTable(entries)) io.stdout(piece);
  } catch (error) {
    throw error instanceof Qcow2Error ? error.inFile(path) : error;
  }
  return 0;
}

function sizeOption(
  args: ParsedArguments,
  name: string,
  what: string,
  bound?: number,
): number | undefined {
  const value = args.value(name);
  return value === undefined ? undefined : parseSize(value, what, bound);
}
