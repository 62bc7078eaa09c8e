/**
 * The `qcow2` program: finds the command, parses its arguments, runs it, and reports its errors.
 */

import { parseCommandLine, nearestName, usageError } from './command.ts';
import type { CommandIo } from './command.ts';
import { COMMAND_NAMES, loadCommand } from './commands.ts';
import { reportError } from './report.ts';

/** Set by the bundler to the version of package.json. */
declare const __QCOW2_VERSION__: string;

/**
 * Runs the program with `argv`, the arguments after the program's name.
 *
 * @returns the exit code; errors are reported on `io` and never thrown
 */
export async function runProgram(argv: readonly string[], io: CommandIo): Promise<number> {
  const state = { errorExitCode: 1 };
  try {
    return await dispatch(argv, io, state);
  } catch (error) {
    reportError(error, io);
    return state.errorExitCode;
  }
}

async function dispatch(
  argv: readonly string[],
  io: CommandIo,
  state: { errorExitCode: number },
): Promise<number> {
  const [name, ...rest] = argv;
  switch (name) {
    case undefined:
      io.stderr((await import('./help.ts')).programUsage());
      return 1;
    case 'qemu-img':
      return (await import('./qemu-img.ts')).runQemuImg(rest, io);
    case '--version':
    case '-V':
      io.stdout(`qcow2 ${__QCOW2_VERSION__}\n`);
      return 0;
    case '--help':
    case '-h':
    case 'help':
      return showHelp(name === 'help' ? rest[0] : undefined, io);
    default:
  }
  if (asksForHelp(rest)) return showHelp(name, io);
  const command = await findCommand(name);
  state.errorExitCode = command.errorExitCode ?? 1;
  return command.run(parseCommandLine(command, rest), io);
}

function asksForHelp(argv: readonly string[]): boolean {
  const end = argv.indexOf('--');
  const options = end === -1 ? argv : argv.slice(0, end);
  return options.includes('--help') || options.includes('-h');
}

async function showHelp(name: string | undefined, io: CommandIo): Promise<number> {
  const { commandHelp, programHelp } = await import('./help.ts');
  const style = { bold: io.isTerminal && !process.env.NO_COLOR };
  if (name === undefined || name.startsWith('-')) {
    const commands = await Promise.all(COMMAND_NAMES.map(findCommand));
    io.stdout(programHelp(commands, style));
  } else {
    io.stdout(commandHelp(await findCommand(name), style));
  }
  return 0;
}

async function findCommand(name: string) {
  const command = await loadCommand(name);
  if (command !== undefined) return command;
  if (name.startsWith('-')) {
    throw usageError(`unknown option ${name}; see: qcow2 --help`);
  }
  const nearest = nearestName(name, COMMAND_NAMES);
  const suggestion = nearest === undefined ? 'see: qcow2 --help' : `did you mean ${nearest}?`;
  throw usageError(`unknown command '${name}'; ${suggestion}`);
}
