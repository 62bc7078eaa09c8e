/**
 * QEMU's programs and others as oracles: run to the end, with their output and exit code.
 */

import { spawnSync } from 'node:child_process';
import type { SpawnSyncOptions } from 'node:child_process';

/** How a program ended. */
export interface RunResult {
  /** Exit code; -1 if a signal ended it. */
  exitCode: number;
  stdout: string;
  stderr: string;
}

/** Directory, input and environment of a program. */
export type RunOptions = Pick<SpawnSyncOptions, 'cwd' | 'input' | 'env'> & { timeoutMs?: number };

/** Most output that is kept. */
const MAX_OUTPUT_BYTES = 256 * 1024 * 1024;

/**
 * Runs a program, whatever its exit code.
 * @throws {Error} if it could not be started, or took too long
 */
export function tryRun(
  program: string,
  args: readonly string[],
  options: RunOptions = {},
): RunResult {
  const { timeoutMs = 60_000, ...rest } = options;
  const { status, stdout, stderr, error } = spawnSync(program, args, {
    ...rest,
    encoding: 'utf8',
    timeout: timeoutMs,
    maxBuffer: MAX_OUTPUT_BYTES,
  });
  if (error !== undefined) throw error;
  return { exitCode: status ?? -1, stdout, stderr };
}

/**
 * Runs a program and returns its standard output.
 * @throws {Error} if its exit code is not 0; the message holds what it said
 */
export function run(program: string, args: readonly string[], options: RunOptions = {}): string {
  const { exitCode, stdout, stderr } = tryRun(program, args, options);
  if (exitCode !== 0) {
    throw new Error(`${program} ${args.join(' ')}: exit code ${exitCode}: ${stderr || stdout}`);
  }
  return stdout;
}

/** `qemu-img ARGS…`; its standard output. */
export function qemuImg(...args: string[]): string {
  return run('qemu-img', args);
}

/** `qemu-img ARGS… --output=json`, parsed; the exit code is not looked at. */
export function qemuImgJson(...args: string[]): unknown {
  const { stdout, stderr } = tryRun('qemu-img', [...args, '--output=json']);
  if (stdout === '') throw new Error(`qemu-img ${args.join(' ')}: ${stderr}`);
  return JSON.parse(stdout);
}

/** Runs commands of `qemu-io` on an image, as in `write -P 0x5a 0 64k`, in one process. */
export function qemuIo(image: string, commands: readonly string[], format = 'qcow2'): string {
  const script = [...commands, 'quit', ''].join('\n');
  const output = run('qemu-io', ['-f', format, image], { input: script });
  const failure = /^.*(?:failed|verification|Pattern verification).*$/im.exec(output);
  if (failure !== null) throw new Error(`qemu-io ${image}: ${failure[0]}`);
  return output;
}
