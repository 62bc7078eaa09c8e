/**
 * What a command is: its options, its help and its function; and how its arguments are parsed.
 */

import { parseArgs } from 'node:util';
import { Qcow2Error } from '../errors.ts';

/** One option of a command. */
export interface OptionDefinition {
  /** `flag` takes no value; `value` takes one; `list` may be given several times. */
  kind: 'flag' | 'value' | 'list';
  /** Single-letter form, without the dash. */
  short?: string;
  /** What stands for the value in the help, as in `SIZE`. */
  placeholder?: string;
  /** One line of help. */
  description: string;
  /** The values that are allowed, if they can be listed; others are refused. */
  choices?: readonly string[];
}

/** Where a command reads and writes; a test passes its own. */
export interface CommandIo {
  stdout(text: string): void;
  stderr(text: string): void;
  /** Whether stdout is a terminal. */
  isTerminal: boolean;
  /** Tells an error in the words of the program that this one stands in for. */
  reportError?: (error: unknown) => void;
}

/** Values of options by name: true for a flag, several for a list. */
type ParsedValues = Readonly<Record<string, string | true | readonly string[] | undefined>>;

/** An option that was given, and its value; a flag has none. */
export interface GivenOption {
  name: string;
  value: string | undefined;
}

/** Parsed arguments of one call. */
export class ParsedArguments {
  readonly operands: readonly string[];
  /** All options in the order in which they were given. */
  readonly given: readonly GivenOption[];
  readonly #values: ParsedValues;

  constructor(operands: readonly string[], values: ParsedValues, given: readonly GivenOption[]) {
    this.operands = operands;
    this.given = given;
    this.#values = values;
  }

  /** Whether a flag was given. */
  flag(name: string): boolean {
    return this.#values[name] === true;
  }

  /** The value of an option; the last one if it was given several times. */
  value(name: string): string | undefined {
    const value = this.#values[name];
    return typeof value === 'string' ? value : undefined;
  }

  /** All values of an option of kind `list`. */
  list(name: string): string[] {
    const value = this.#values[name];
    return typeof value === 'object' ? [...value] : [];
  }

  /** The value of an option that must be one of `choices`. */
  choice<T extends string>(name: string, choices: readonly T[], otherwise: T): T {
    const value = this.value(name);
    if (value === undefined) return otherwise;
    const found = choices.find((choice) => choice === value);
    if (found === undefined) {
      throw notAChoice(`--${name}`, choices, value);
    }
    return found;
  }
}

function notAChoice(option: string, choices: readonly string[], value: string): Qcow2Error {
  return usageError(`${option} must be one of ${choices.join(', ')}, not '${value}'`);
}

/** A command of the `qcow2` program. */
export interface CommandDefinition {
  name: string;
  /** One line for the list of commands. */
  summary: string;
  /** Operand synopsis after the options, as in `IMAGE [DIR]`. */
  operands: string;
  /** Fewest and most operands. */
  operandCount: readonly [minimum: number, maximum: number];
  /** The last argument is an operand though it begins with a hyphen, as in `resize IMAGE -1G`. */
  endsWithOperand?: boolean;
  /** Paragraphs of help. */
  details?: string;
  /** At least one example line, as it would be typed. */
  examples: readonly string[];
  options: Readonly<Record<string, OptionDefinition>>;
  /**
   * Exit code when an error is thrown; qemu-img's check and compare have their own.
   * 1 where it is not given.
   */
  errorExitCode?: number;
  /** Runs the command and returns the exit code. Errors are thrown, and reported by the caller. */
  run(args: ParsedArguments, io: CommandIo): number | Promise<number>;
}

/** An error in how a command was called. */
export function usageError(problem: string): Qcow2Error {
  return new Qcow2Error('INVALID_OPTION', problem);
}

/**
 * Parses `argv` by a command's options.
 * @throws {Qcow2Error} `INVALID_OPTION` for unknown options, suggesting the nearest, missing
 * values, values that are not among the choices, and too few or too many operands
 */
export function parseCommandLine(command: CommandDefinition, argv: string[]): ParsedArguments {
  const definitions = command.options;
  const { tokens, last } = tokenize(command, argv);
  const operands: string[] = [];
  const values: Record<string, string | true | readonly string[]> = {};
  const given: GivenOption[] = [];
  for (const token of tokens) {
    if (token.kind === 'positional') operands.push(token.value);
    if (token.kind !== 'option') continue;
    const definition = Object.hasOwn(definitions, token.name) ? definitions[token.name] : undefined;
    if (definition === undefined) throw unknownOption(token.rawName, definitions);
    given.push({ name: token.name, value: token.value });
    if (definition.kind === 'flag') {
      if (token.value !== undefined) throw usageError(`${token.rawName} takes no value`);
      values[token.name] = true;
      continue;
    }
    if (token.value === undefined) {
      throw usageError(`${token.rawName} needs a value (${definition.placeholder ?? 'VALUE'})`);
    }
    if (definition.choices?.includes(token.value) === false) {
      throw notAChoice(token.rawName, definition.choices, token.value);
    }
    if (definition.kind === 'list') {
      const list = values[token.name];
      values[token.name] = typeof list === 'object' ? [...list, token.value] : [token.value];
    } else {
      values[token.name] = token.value;
    }
  }
  operands.push(...last);
  const [minimum, maximum] = command.operandCount;
  if (operands.length < minimum) {
    throw usageError(`expected ${command.operands}; see: qcow2 ${command.name} --help`);
  }
  if (operands.length > maximum) {
    throw usageError(`unexpected argument '${operands[maximum]}'`);
  }
  return new ParsedArguments(operands, values, given);
}

/** The operands and the values of options, as far as they can be told, of a call that is wrong. */
export function guessArguments(
  command: CommandDefinition,
  argv: readonly string[],
): { operands: string[]; values: Map<string, string> } {
  const { tokens, last } = tokenize(command, argv);
  const operands = tokens.flatMap((token) => (token.kind === 'positional' ? [token.value] : []));
  const values = new Map<string, string>();
  for (const token of tokens) {
    if (token.kind === 'option') values.set(token.name, token.value ?? '');
  }
  return { operands: [...operands, ...last], values };
}

function tokenize(command: CommandDefinition, argv: readonly string[]) {
  const isOperandLast = command.endsWithOperand === true && argv.at(-1)?.startsWith('--') !== true;
  const last = isOperandLast ? argv.slice(-1) : [];
  const { tokens } = parseArgs({
    args: argv.slice(0, argv.length - last.length),
    options: toParseArgsOptions(command.options),
    allowPositionals: true,
    strict: false,
    tokens: true,
  });
  return { tokens, last };
}

function toParseArgsOptions(definitions: CommandDefinition['options']) {
  const options: Record<string, { type: 'string' | 'boolean'; short?: string; multiple: true }> =
    {};
  for (const [name, { kind, short }] of Object.entries(definitions)) {
    const type = kind === 'flag' ? 'boolean' : 'string';
    options[name] = { type, multiple: true, ...(short === undefined ? {} : { short }) };
  }
  return options;
}

function unknownOption(rawName: string, definitions: CommandDefinition['options']): Qcow2Error {
  const names = Object.keys(definitions).map((name) => `--${name}`);
  const nearest = nearestName(rawName, names);
  const suggestion = nearest === undefined ? '' : `; did you mean ${nearest}?`;
  return usageError(`unknown option ${rawName}${suggestion}`);
}

/** The name most like `wrong`, if one is like it at all. */
export function nearestName(wrong: string, names: readonly string[]): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(2, Math.floor(wrong.length / 3)) + 1;
  for (const name of names) {
    const distance = editDistance(wrong, name);
    if (distance < bestDistance) {
      best = name;
      bestDistance = distance;
    }
  }
  return best;
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const substitution = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(substitution, row[j]! + 1, next[j - 1]! + 1));
    }
    row = next;
  }
  return row[b.length]!;
}
