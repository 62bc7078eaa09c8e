/** Runs a command in this process, with what it prints caught. */

import { parseCommandLine } from '../../src/cli/command.ts';
import type { CommandDefinition } from '../../src/cli/command.ts';
import { reportError } from '../../src/cli/report.ts';
import type { RunResult } from '../support/qemu.ts';

/** Runs `command ARGS…` as the program would: errors are reported and become the exit code. */
export async function runCommand(
  command: CommandDefinition,
  args: readonly string[],
  { isTerminal = false }: { isTerminal?: boolean } = {},
): Promise<RunResult> {
  let stdout = '';
  let stderr = '';
  const io = {
    stdout: (text: string) => {
      stdout += text;
    },
    stderr: (text: string) => {
      stderr += text;
    },
    isTerminal,
  };
  let exitCode: number;
  try {
    exitCode = await command.run(parseCommandLine(command, [...args]), io);
  } catch (error) {
    reportError(error, io);
    exitCode = command.errorExitCode ?? 1;
  }
  return { exitCode, stdout, stderr };
}
