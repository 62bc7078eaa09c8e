/** Runs a program that shows the files of a filesystem through FUSE, for those who may not mount. */

import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { statSync } from 'node:fs';
import { statfs } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { Qcow2Error } from '../errors.ts';
import { unmountFuse } from '../host/mount.ts';
import { findMount } from '../host/mountinfo.ts';
import type { Filesystem } from '../format/filesystem/index.ts';
import { userDriverFor } from './file-drivers.ts';
import type { FoundUserDriver, UserDriverJob } from './file-drivers.ts';

/** How long a program may take until its mount answers: it may replay a journal first. */
const START_TIMEOUT_MS = 120_000;
const POLL_MS = 10;
/** What is kept of a program's messages. */
const MAX_MESSAGE_CHARACTERS = 4096;

/**
 * Starts the driver of a filesystem, and returns when its mount answers. It ends when it is
 * unmounted.
 *
 * @returns the name of the program
 * @throws {Qcow2Error} `MISSING_DEPENDENCY` if none is installed, `UNSUPPORTED` if none is known or
 * it cannot write, `HOST` if it fails
 */
export async function startUserDriver(
  { type }: Filesystem,
  job: UserDriverJob,
): Promise<{ program: string }> {
  const found = userDriverFor(type);
  const { driver, path } = requireDriver(found, type);
  if (!job.readOnly && driver.readsOnly) {
    throw new Qcow2Error('UNSUPPORTED', `${driver.program} only reads ${type}`, {
      hint: 'leave --rw, --temp or --overlay out',
    });
  }
  const before = findMount(job.directory)?.device;
  const child = spawn(path, driver.args(job), { stdio: ['ignore', 'ignore', 'pipe'], cwd: '/' });
  const state = watch(child);
  const deadline = performance.now() + START_TIMEOUT_MS;
  for (;;) {
    const mount = findMount(job.directory);
    if (mount !== undefined && mount.device !== before) break;
    if (state.ended) throw failed(driver.program, state.message, path);
    if (performance.now() > deadline) {
      child.kill('SIGKILL');
      throw failed(driver.program, 'it did not answer in time', path);
    }
    await sleep(POLL_MS);
  }
  await statfs(job.directory).catch((error: unknown) => {
    // Mounted, and gone again.
    child.kill('SIGKILL');
    unmountFuse(job.directory, { lazy: true });
    throw failed(driver.program, state.message || String(error), path);
  });
  child.unref();
  return { program: driver.program };
}

function requireDriver(
  found: FoundUserDriver | undefined,
  type: string,
): { driver: FoundUserDriver['driver']; path: string } {
  if (found === undefined) {
    throw new Qcow2Error('UNSUPPORTED', `no program is known that shows ${type} to users`, {
      hint: 'root can mount it with the driver of the kernel',
    });
  }
  const { driver, path } = found;
  if (path === undefined) {
    throw new Qcow2Error(
      'MISSING_DEPENDENCY',
      `an ordinary user needs the program ${driver.program} to see the files of ${type}`,
      { hint: `install the package ${driver.package}, or mount as root` },
    );
  }
  return { driver, path };
}

/** What becomes of a program, and the last that it said, which goes to the log too. */
function watch(child: ChildProcess): { ended: boolean; message: string } {
  const state = { ended: false, message: '' };
  child.stderr!.setEncoding('utf8').on('data', (text: string) => {
    process.stderr.write(text);
    state.message = (state.message + text).slice(-MAX_MESSAGE_CHARACTERS);
  });
  (child.stderr as unknown as { unref(): void }).unref();
  child.on('error', (error) => {
    state.message = error.message;
    state.ended = true;
  });
  // Not at 'exit': what it said last may come after it.
  child.on('close', () => (state.ended = true));
  return state;
}

/** The line that says why, among the greetings and advice that programs print. */
function failed(program: string, message: string, path: string): Qcow2Error {
  const lines = message.trim().split('\n');
  const telling = lines.find((line) =>
    /error|fail|denied|cannot|could not|unable|need/i.test(line),
  );
  const line = (telling ?? lines.at(-1) ?? '').replace(`${program}: `, '').trim();
  const hint = isSetUserId(path)
    ? 'the kernel keeps set-user-ID programs out of the mounts of users; mount as root'
    : undefined;
  const reason = line || 'it gave no reason';
  return new Qcow2Error('HOST', `${program} cannot mount it: ${reason}`, { hint });
}

function isSetUserId(path: string): boolean {
  const isForOthers = process.geteuid?.() !== 0;
  return isForOthers && ((statSync(path, { throwIfNoEntry: false })?.mode ?? 0) & 0o4000) !== 0;
}
