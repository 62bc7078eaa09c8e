/** What the image commands that write to an image in place have in common. */

import type { Image } from '../chain/open.ts';
import { Qcow2Error } from '../errors.ts';
import type { CommandIo, OptionDefinition, ParsedArguments } from './command.ts';
import { CACHE_MODES, IMAGE_FORMATS, IMAGE_OPTS_OPTIONS } from './image-options.ts';
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
  ...IMAGE_OPTS_OPTIONS,
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

/** Warns of a raw image that is about to be changed though nobody said that it is one. */
export function warnIfGuessedRaw(image: Image, args: ParsedArguments, io: CommandIo): void {
  if (image.format !== 'raw' || args.value('format') !== undefined) return;
  if (args.flag('image-opts')) return;
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
