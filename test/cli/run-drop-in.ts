/** Runs `qcow2 qemu-img` in this process, with what it prints caught. */

import { runProgram } from '../../src/cli/program.ts';
import type { RunResult } from '../support/qemu.ts';

/** `qcow2 qemu-img ARGS…` */
export async function runDropIn(args: readonly string[]): Promise<RunResult> {
  let stdout = '';
  let stderr = '';
  const exitCode = await runProgram(['qemu-img', ...args], {
    stdout: (text) => {
      stdout += text;
    },
    stderr: (text) => {
      stderr += text;
    },
    isTerminal: false,
  });
  return { exitCode, stdout, stderr };
}
