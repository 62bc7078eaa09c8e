/**
 * `qcow2 qemu-img ARGS…`: the image commands for programs that call qemu-img and read what it says.
 * Also what a link named `qemu-img` to the command does.
 *
 * What differs from the commands themselves: errors are told in qemu-img's words
 * (`qemu-img-errors.ts`), and so are the version and the help.
 */

import { guessArguments, parseCommandLine } from './command.ts';
import type { CommandDefinition, CommandIo } from './command.ts';
import { loadCommand } from './commands.ts';
import { QEMU_IMG_COMMANDS } from './qemu-img-commands.ts';
import { describeAsQemu } from './qemu-img-errors.ts';
import type { QemuCall } from './qemu-img-errors.ts';
import { qemuImgHelp, qemuImgVersion } from './qemu-img-help.ts';
import { oneLine, reportError } from './report.ts';

const TRY_HELP = "Try 'qemu-img --help' for more information";

/**
 * Runs qemu-img's commands with `argv`, the arguments after its name.
 * @returns the exit code; errors are told on `io` and never thrown
 */
export async function runQemuImg(argv: readonly string[], io: CommandIo): Promise<number> {
  const rest = [...argv];
  for (;;) {
    const [argument] = rest;
    if (argument === undefined) return fail('Not enough arguments', io);
    if (!argument.startsWith('-')) break;
    rest.shift();
    if (argument === '-h' || argument === '--help') return help(io);
    if (argument === '-V' || argument === '--version') {
      io.stdout(qemuImgVersion());
      return 0;
    }
    if (!isTrace(argument)) return fail(`unrecognized option '${argument}'`, io);
    if (argument === '-T' || argument === '--trace') {
      if (rest.length === 0) return fail(`missing argument for option '${argument}'`, io);
      rest.shift();
    }
    // There is nothing to trace, and nobody relies on what is traced.
  }
  const [name = '', ...args] = rest;
  const command = QEMU_IMG_COMMANDS.includes(name) ? await loadCommand(name) : undefined;
  if (command === undefined) return fail(`Command not found: ${name}`, io);
  return runCommand(command, args, io);
}

function isTrace(argument: string): boolean {
  return argument.startsWith('-T') || argument === '--trace' || argument.startsWith('--trace=');
}

async function runCommand(
  command: CommandDefinition,
  args: string[],
  io: CommandIo,
): Promise<number> {
  const end = args.indexOf('--');
  const options = end === -1 ? args : args.slice(0, end);
  if (options.includes('--help') || options.includes('-h')) return help(io);
  const call: QemuCall = { command: command.name, ...guessArguments(command, args) };
  const own = new QemuImgIo(io, call);
  let parsed;
  try {
    parsed = parseCommandLine(command, args);
  } catch (error) {
    own.reportError(error);
    return own.exitCode ?? 1;
  }
  try {
    return await command.run(parsed, own);
  } catch (error) {
    reportError(error, own);
    return own.exitCode ?? command.errorExitCode ?? 1;
  }
}

/** What is told by name becomes qemu-img's; other output is passed on. */
class QemuImgIo implements CommandIo {
  readonly #io: CommandIo;
  readonly #call: QemuCall;
  /** What qemu-img exits with after the error that was told, where that is known. */
  exitCode: number | undefined;

  constructor(io: CommandIo, call: QemuCall) {
    this.#io = io;
    this.#call = call;
  }

  get isTerminal(): boolean {
    return this.#io.isTerminal;
  }

  stdout(text: string): void {
    this.#io.stdout(text);
  }

  stderr(text: string): void {
    const guessed = /^qcow2: warning: (.*): no format was given, and it was taken for raw/.exec(
      text,
    );
    if (guessed !== null) {
      this.#io.stderr(guessedRawWarning(guessed[1] ?? ''));
      return;
    }
    this.#io.stderr(text.replace(/^qcow2: /gm, 'qemu-img: '));
  }

  readonly reportError = (error: unknown): void => {
    const { lines, exitCode, triesHelp = false } = describeAsQemu(error, this.#call);
    this.exitCode = exitCode;
    const text = lines.map((line) => oneLine(line)).join('\n');
    this.#io.stderr(`qemu-img: ${text}\n${triesHelp ? `${TRY_HELP}\n` : ''}`);
  };
}

function guessedRawWarning(path: string): string {
  return (
    `WARNING: Image format was not specified for '${path}' and probing guessed raw.\n` +
    '         Automatically detecting the format is dangerous for raw images, write operations ' +
    'on block 0 will be restricted.\n' +
    "         Specify the 'raw' format explicitly to remove the restrictions.\n"
  );
}

function fail(problem: string, io: CommandIo): number {
  io.stderr(`qemu-img: ${oneLine(problem)}\n${TRY_HELP}\n`);
  return 1;
}

async function help(io: CommandIo): Promise<number> {
  const commands = await Promise.all(QEMU_IMG_COMMANDS.map(loadCommand));
  io.stdout(qemuImgHelp(commands.filter((command) => command !== undefined)));
  return 0;
}
