/**
 * The built command, `dist/cli.cjs`, run as a program. `npm run build` makes it.
 */

import { join } from 'node:path';
import { tryRun } from './qemu.ts';
import type { RunOptions, RunResult } from './qemu.ts';

/** Path of the built command. */
export const CLI_PATH = join(import.meta.dirname, '../../dist/cli.cjs');

/** Runs `qcow2 ARGS…`, whatever its exit code. */
export function qcow2(args: readonly string[], options: RunOptions = {}): RunResult {
  return tryRun(process.execPath, [CLI_PATH, ...args], options);
}
