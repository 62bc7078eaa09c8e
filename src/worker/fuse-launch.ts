/** Starts the process that serves a mount in the background. */

import { spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import type { Readable } from 'node:stream';
import { fileURLToPath } from 'node:url';
import { Qcow2Error } from '../errors.ts';
import { fromWireError } from './wire-error.ts';
import type { LaunchResult, MountRequest, MountSummary } from './fuse-request.ts';
import { stateDirectory } from './fuse-state.ts';

/** The main thread of that process sleeps; a small heap keeps it small for good. */
const NODE_FLAGS = ['--max-old-space-size=256', '--max-semi-space-size=1'];

/**
 * Serves a mount in a process of its own, and returns when it answers.
 *
 * @throws {Qcow2Error} what that process says is wrong
 */
export async function launchMount(request: MountRequest): Promise<MountSummary> {
  const log = join(stateDirectory(), `${request.id}.log`);
  const logFd = openSync(log, 'ax', 0o600);
  const daemon = fileURLToPath(new URL('./fuse-daemon.js', import.meta.url));
  const argument = JSON.stringify({ ...request, log } satisfies MountRequest);
  const child = spawn(process.execPath, [...NODE_FLAGS, daemon, argument], {
    detached: true,
    // Not the current directory, which would stay in use for as long as the mount.
    cwd: '/',
    // Reading certificates would double the time that Node takes to start, for nothing.
    env: { ...process.env, NODE_EXTRA_CA_CERTS: undefined },
    stdio: ['ignore', logFd, logFd, 'pipe'],
  });
  closeSync(logFd);
  const failure = new Promise<never>((_, reject) => child.once('error', reject));
  const stop = (): void => void child.kill('SIGTERM');
  process.once('SIGINT', stop);
  process.once('SIGTERM', stop);
  try {
    const answer = await Promise.race([text(child.stdio[3] as Readable), failure]);
    if (answer === '') throw endedSilently(log);
    const result = JSON.parse(answer) as LaunchResult;
    if (!result.ok) throw fromWireError(result.error);
    return result.summary;
  } catch (error) {
    rmSync(log, { force: true });
    throw error;
  } finally {
    process.off('SIGINT', stop);
    process.off('SIGTERM', stop);
    child.unref();
  }
}

function endedSilently(log: string): Qcow2Error {
  const lines = readFileSync(log, 'utf8').trim().split('\n');
  const reason = lines.find((line) => /error/i.test(line)) ?? lines.at(-1) ?? '';
  const detail = reason.trim() === '' ? '' : `: ${reason.trim()}`;
  return new Qcow2Error('HOST', `the process that was to serve the mount ended${detail}`);
}
