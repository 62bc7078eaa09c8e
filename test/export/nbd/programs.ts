/** Programs that talk to a server in this process: it must go on while they run. */

import { spawn } from 'node:child_process';

/** How a program ended. */
export interface ProgramResult {
  exitCode: number;
  stdout: Buffer;
  stderr: string;
}

/** Runs a program to its end, whatever its exit code. */
export function runProgram(program: string, args: readonly string[]): Promise<ProgramResult> {
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 'pipe'], timeout: 60_000 });
  const stdout: Buffer[] = [];
  const stderr: Buffer[] = [];
  child.stdout.on('data', (chunk: Buffer) => stdout.push(chunk));
  child.stderr.on('data', (chunk: Buffer) => stderr.push(chunk));
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => {
      const texts = { stdout: Buffer.concat(stdout), stderr: Buffer.concat(stderr).toString() };
      resolve({ exitCode: code ?? -1, ...texts });
    });
  });
}

/**
 * Runs a program that must succeed.
 * @throws {Error} with what it said, if its exit code is not 0
 */
export async function runToEnd(program: string, args: readonly string[]): Promise<Buffer> {
  const { exitCode, stdout, stderr } = await runProgram(program, args);
  if (exitCode !== 0) throw new Error(`${program} ${args.join(' ')}: ${exitCode}: ${stderr}`);
  return stdout;
}
