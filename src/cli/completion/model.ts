/** What there is to complete, taken from the definitions of the commands: the same for each shell. */

import { COMPRESSION_TYPES } from '../../compression/codec.ts';
import { PREALLOCATION_MODES } from '../../operations/resize.ts';
import type { CommandDefinition, OptionDefinition } from '../command.ts';
import { CREATION_OPTIONS } from '../creation-options.ts';

/** What a value can be: a name of a file, one of some words, a list for `-o`, or anything. */
export type Values =
  | { kind: 'file' }
  | { kind: 'any' }
  | { kind: 'words'; words: readonly string[] }
  | { kind: 'creation' };

/** An option of a command. */
export interface CompletedOption {
  /** With their dashes; the long one last. */
  names: readonly string[];
  description: string;
  repeats: boolean;
  /** What stands for the value in the help. */
  placeholder: string;
  /** Undefined for flags. */
  values: Values | undefined;
}

/** A command. */
export interface CompletedCommand {
  name: string;
  summary: string;
  options: readonly CompletedOption[];
  /** Undefined if it has no operands. */
  operands: Values | undefined;
}

/** An option of `-o`. */
export interface CompletedCreationOption {
  name: string;
  description: string;
  /** Those that can be listed. */
  words: readonly string[];
}

/** Placeholders that stand for names of files. */
const FILES = /^(?:FILE|IMAGE|BASE|SOURCE|OUTPUT|PATH|DIR|DIRECTORY|SOCKET)$/;

/** What can be completed after a command's name. */
export function completedCommand(definition: CommandDefinition): CompletedCommand {
  const { name, summary, options, operands, operandCount } = definition;
  const help: OptionDefinition = { kind: 'flag', short: 'h', description: 'show this help' };
  const all = Object.entries({ ...options, help });
  return {
    name,
    summary,
    options: all.map(([option, value]) => completedOption(option, value)),
    operands: operandCount[1] === 0 ? undefined : operandValues(operands),
  };
}

function completedOption(name: string, definition: OptionDefinition): CompletedOption {
  const { kind, short, description, placeholder = 'VALUE' } = definition;
  return {
    names: [...(short === undefined ? [] : [`-${short}`]), `--${name}`],
    description,
    repeats: kind === 'list',
    placeholder,
    values: kind === 'flag' ? undefined : optionValues(definition),
  };
}

function optionValues({ choices, placeholder = '' }: OptionDefinition): Values {
  if (choices !== undefined) return { kind: 'words', words: choices };
  if (/^(?:NAME=VALUE|OPTIONS$)/.test(placeholder)) return { kind: 'creation' };
  return { kind: FILES.test(placeholder) ? 'file' : 'any' };
}

/** `a|b|c` are the words themselves. */
function operandValues(operands: string): Values {
  if (!/^[a-z]+(?:\|[a-z]+)+$/.test(operands)) return { kind: 'file' };
  return { kind: 'words', words: operands.split('|') };
}

/** The options of `-o`, of whichever format. */
export function completedCreationOptions(): CompletedCreationOption[] {
  const options = Object.entries({ ...CREATION_OPTIONS.raw, ...CREATION_OPTIONS.qcow2 });
  return options.map(([name, { type, description }]) => ({
    name,
    description,
    words: WORDS[name] ?? (type === 'bool (on/off)' ? ['on', 'off'] : []),
  }));
}

const WORDS: Readonly<Record<string, readonly string[]>> = {
  compat: ['0.10', '1.1', 'v2', 'v3'],
  compression_type: COMPRESSION_TYPES,
  preallocation: PREALLOCATION_MODES,
  backing_fmt: ['qcow2', 'raw'],
};
