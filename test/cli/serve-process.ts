/** `qcow2 serve` as a process of its own, for tests that talk to it with other programs. */

import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterEach } from 'vitest';

/** The built command. */
export const CLI = join(fileURLToPath(new URL('../../', import.meta.url)), 'dist/cli.cjs');

/** A server that clients can connect to. */
export interface ServeProcess {
  child: ChildProcess;
  /** Of the default export. */
  uri: string;
  /** As it announces it. */
  pid: number;
  exports: { name: string; description: string; size: number; uri: string }[];
  stderr: () => string;
  /** Its exit code, or the signal that ended it. */
  ended: Promise<number | string>;
  /** Ends it in good order. */
  stop: () => Promise<number | string>;
}

/** Starts servers in a directory; those that are left when a test ends are killed. */
export function servers(directory: () => string): (...args: string[]) => Promise<ServeProcess> {
  const running: ChildProcess[] = [];
  afterEach(async () => {
    for (const child of running.splice(0)) {
      if (child.exitCode !== null || child.signalCode !== null) continue;
      child.kill('SIGKILL');
      await new Promise((resolve) => child.on('close', resolve));
    }
  });
  return async (...args) => {
    const command = [CLI, 'serve', '--output=json', ...args];
    const child = spawn(process.execPath, command, { cwd: directory() });
    running.push(child);
    let stdout = '';
    let stderr = '';
    child.stdout.on('data', (chunk: Buffer) => (stdout += chunk.toString()));
    child.stderr.on('data', (chunk: Buffer) => (stderr += chunk.toString()));
    const ended = new Promise<number | string>((resolve) => {
      child.on('close', (code, signal) => resolve(code ?? signal ?? ''));
    });
    for (let tries = 0; !stdout.includes('\n'); tries++) {
      if (child.exitCode !== null || tries > 2000) throw new Error(`it did not start: ${stderr}`);
      await sleep(10);
    }
    const said = JSON.parse(stdout) as Pick<ServeProcess, 'uri' | 'pid' | 'exports'>;
    const stop = (): Promise<number | string> => {
      child.kill('SIGTERM');
      return ended;
    };
    const { uri, pid, exports } = said;
    return { child, uri, pid, exports, stderr: () => stderr, ended, stop };
  };
}
