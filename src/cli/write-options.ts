/** What the image commands that write to an image in place have in common. */

import type { Image, ImageFormat } from '../chain/open.ts';
import { Qcow2Error } from '../errors.ts';
import { usageError } from './command.ts';
import type { CommandIo, OptionDefinition, ParsedArguments } from './command.ts';
import { CACHE_MODES, formatOption, IMAGE_FORMATS } from './image-options.ts';
import type { InterruptedError } from './progress.ts';
import { reportError } from './report.ts';

/** The options of every command that changes one image. */
export const CHANGE_OPTIONS = {
  format: {
    kind: 'value',
    short: 'f',
    placeholder: 'FORMAT',
    description: 'format of the image (default: probed)',
    choices: IMAGE_FORMATS,
  },
  quiet: { kind: 'flag', short: 'q', description: 'print nothing but errors' },
  'image-opts': { kind: 'flag', description: 'refused: images are given by file name' },
  object: {
    kind: 'value',
    placeholder: 'OBJECT',
    description: 'refused: it is for secrets of encrypted images',
  },
} as const satisfies Record<string, OptionDefinition>;

/** qemu-img's `-t` for an image that is written. */
export const CACHE_OPTION = {
  cache: {
    kind: 'value',
    short: 't',
    placeholder: 'MODE',
    description: 'cache mode of the image; accepted: it is flushed whatever the mode',
    choices: CACHE_MODES,
  },
} as const satisfies Record<string, OptionDefinition>;

/**
 * The format that was asked for, once the options are known to be ones that can apply.
 * @throws {Qcow2Error} `INVALID_OPTION`
 */
export function formatToChange(args: ParsedArguments): { format?: ImageFormat } {
  if (args.flag('image-opts')) {
    throw usageError('--image-opts is not supported here; give the image as a file name, with -f');
  }
  if (args.value('object') !== undefined) {
    throw usageError('--object is not supported here: encrypted images are not written');
  }
  return formatOption(args.value('format'));
}

/** Warns of a raw image that is about to be changed though nobody said that it is one. */
export function warnIfGuessedRaw(image: Image, args: ParsedArguments, io: CommandIo): void {
  if (image.format !== 'raw' || args.value('format') !== undefined) return;
  io.stderr(
    `qcow2: warning: ${image.path}: no format was given, and it was taken for raw; ` +
      'say -f raw if it is\n',
  );
}

/**
 * Tells that a signal stopped the command, and what that left behind.
 * @returns the exit code
 */
export function reportInterrupt(error: InterruptedError, outcome: string, io: CommandIo): number {
  reportError(new Qcow2Error('HOST', 'interrupted', { hint: outcome }), io);
  return error.exitCode;
}
