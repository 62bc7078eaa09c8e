/** `qcow2 info`: what an image says about itself. */

import { openImage } from '../../chain/open.ts';
import { formatInfo } from '../../operations/format-info.ts';
import { chainInfo, imageInfo } from '../../operations/info.ts';
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
import { formatSize } from '../size.ts';

export const command: CommandDefinition = {
  name: 'info',
  summary: 'show what an image says about itself',
  operands: 'IMAGE',
  operandCount: [1, 1],
  details:
    'Backing files are only opened for --backing-chain, and may be missing otherwise. The disk ' +
    'size is what the file takes on the host, without an external data file.',
  examples: ['qcow2 info disk.qcow2', 'qcow2 info --output=json --backing-chain overlay.qcow2'],
  options: {
    ...DESCRIBE_OPTIONS,
    'backing-chain': { kind: 'flag', description: 'describe the backing files too' },
    ...REFERENCE_OPTIONS,
    ...FORCE_SHARE_OPTION,
    ...IMAGE_OPTS_OPTIONS,
  },
  run,
};

function run(args: ParsedArguments, io: CommandIo): number {
  const [path = ''] = args.operands;
  const isChain = args.flag('backing-chain');
  using image = openImage(givenImage(args, path), {
    ...formatOption(args.value('format')),
    ...referenceOptions(args),
    withoutBacking: !isChain,
  });
  const documents = isChain ? chainInfo(image) : [imageInfo(image)];
  if (args.value('output') === 'json') {
    io.stdout(`${JSON.stringify(isChain ? documents : documents[0], null, 4)}\n`);
  } else {
    io.stdout(documents.map((document) => formatInfo(document, formatSize)).join('\n'));
  }
  return 0;
}
