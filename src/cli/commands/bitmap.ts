/** `qcow2 bitmap`: add, remove and change the persistent bitmaps of an image. */

import { openImage } from '../../chain/open.ts';
import type { ChainedQcow2Image, Image } from '../../chain/open.ts';
import { Qcow2Error } from '../../errors.ts';
import { usageError } from '../command.ts';
import type { CommandDefinition, ParsedArguments } from '../command.ts';
import {
  formatOption,
  givenImage,
  IMAGE_FORMATS,
  IMAGE_OPTS_OPTIONS,
  namedImage,
  REFERENCE_OPTIONS,
  referenceOptions,
} from '../image-options.ts';
import { parseSize } from '../size.ts';
import { CHANGE_OPTIONS } from '../write-options.ts';

const ACTIONS = ['add', 'remove', 'clear', 'enable', 'disable', 'merge'] as const;

/** One thing to do to the bitmap. */
interface Action {
  name: (typeof ACTIONS)[number];
  /** The bitmap that is merged into it, by `merge`. */
  source: string;
}

export const command: CommandDefinition = {
  name: 'bitmap',
  summary: 'add, remove and change the bitmaps that record what was written',
  operands: 'IMAGE BITMAP',
  operandCount: [2, 2],
  details:
    'The actions are done in the order in which they are given; each is durable before the next, ' +
    'and what was done before one that fails stays. A bitmap that was not saved properly is ' +
    'inconsistent, and can only be removed. Backing files are not opened.',
  examples: [
    'qcow2 bitmap --add disk.qcow2 since-backup',
    'qcow2 bitmap --add -g 16k --disable disk.qcow2 both',
    'qcow2 bitmap --merge monday --merge tuesday disk.qcow2 both',
    'qcow2 bitmap --merge b0 -b base.qcow2 -F qcow2 disk.qcow2 both',
  ],
  options: {
    add: { kind: 'flag', description: 'add BITMAP; it records writes from now on' },
    remove: { kind: 'flag', description: 'remove it, even if it is inconsistent' },
    clear: { kind: 'flag', description: 'make it mark nothing' },
    enable: { kind: 'flag', description: 'have writes recorded in it from now on' },
    disable: { kind: 'flag', description: 'have writes no longer recorded in it' },
    merge: {
      kind: 'list',
      placeholder: 'SOURCE',
      description: 'mark what the bitmap SOURCE marks, in addition',
    },
    'source-file': {
      kind: 'value',
      short: 'b',
      placeholder: 'FILE',
      description: 'image in which SOURCE is (default: IMAGE)',
    },
    'source-format': {
      kind: 'value',
      short: 'F',
      placeholder: 'FORMAT',
      description: 'format of that image (default: probed)',
      choices: IMAGE_FORMATS,
    },
    granularity: {
      kind: 'value',
      short: 'g',
      placeholder: 'SIZE',
      description: 'with --add: bytes to a bit, 512 to 2G (default: the cluster size, 4k to 64k)',
    },
    format: CHANGE_OPTIONS.format,
    ...IMAGE_OPTS_OPTIONS,
    ...REFERENCE_OPTIONS,
  },
  run,
};

function run(args: ParsedArguments): number {
  const [path = '', bitmap = ''] = args.operands;
  const actions = actionsOf(args);
  const has = (name: Action['name']): boolean => actions.some((action) => action.name === name);
  const sourcePath = args.value('source-file');
  const sourceFormat = args.value('source-format');
  const granularityText = args.value('granularity');
  // As in QEMU, 0 stands for the default.
  const granularity = parseSize(granularityText ?? '0', 'the granularity');
  if (granularity !== 0 && !has('add')) throw usageError('-g is for --add only');
  if (sourceFormat !== undefined && sourcePath === undefined) throw usageError('-F requires -b');
  if (sourcePath !== undefined && !has('merge')) throw usageError('-b is for --merge only');
  // What is behind the image has no say in what its bitmaps mark.
  const open = { ...referenceOptions(args), withoutBacking: true };
  const given = givenImage(args, path);
  using opened = openImage(given, {
    ...open,
    ...formatOption(args.value('format')),
    writable: true,
  });
  using source =
    sourcePath === undefined
      ? undefined
      : openImage(namedImage(sourcePath, sourceFormat), {
          ...open,
          ...formatOption(sourceFormat),
        });
  const image = withBitmaps(opened);
  for (const action of actions) {
    if (action.name === 'add') {
      image.addBitmap(bitmap, granularity === 0 ? {} : { granularity });
    } else if (action.name === 'merge') {
      const from = source === undefined ? image : withBitmaps(source);
      image.mergeBitmap(bitmap, { image: from, name: action.source });
    } else {
      image[`${action.name}Bitmap`](bitmap);
    }
  }
  return 0;
}

/** What is to be done, in its order. */
function actionsOf(args: ParsedArguments): Action[] {
  const actions = args.given.flatMap(({ name, value = '' }): Action[] => {
    const known = ACTIONS.find((action) => action === name);
    return known === undefined ? [] : [{ name: known, source: value }];
  });
  if (actions.length > 0) return actions;
  throw usageError(
    'say what to do: --add, --remove, --clear, --enable, --disable or --merge SOURCE',
  );
}

function withBitmaps(image: Image): ChainedQcow2Image {
  if (image.format === 'qcow2') return image;
  throw new Qcow2Error('UNSUPPORTED', 'a raw image has no bitmaps', { file: image.path });
}
