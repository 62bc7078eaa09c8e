/**
 * What macOS tells of mounts and processes, and how it unmounts: through programs of its own, where
 * Linux has proc(5) and system calls. Prepared, and tested with stand-ins for those programs only.
 *
 * Each program gets a time limit, since some ask the mounted filesystems, and one may have died.
 */

import { execFile, spawnSync } from 'node:child_process';
import { findProgram } from './find-program.ts';
import { firstLine, missingProgram, unmountRefused } from './mount-errors.ts';

/** Longest that a program is waited for that only tells something. */
const TELL_MS = 5000;
/** Longest that an unmount is waited for: it may have much to write. */
const UNMOUNT_MS = 120_000;

/** A program and its arguments. */
export type Command = readonly [program: string, ...args: string[]];

/**
 * The ways to unmount, in the order in which they are tried: umount(8), and diskutil(8), which may
 * where the other may not.
 */
export function macUnmountCommands(directory: string, force: boolean): Command[] {
  return [
    ['umount', ...(force ? ['-f'] : []), directory],
    ['diskutil', 'unmount', ...(force ? ['force'] : []), directory],
  ];
}

/**
 * Unmounts, and returns when that is done. Not for the process that serves the mount, which may be
 * asked something meanwhile: that has {@link unmountOnMacSoon}.
 *
 * @throws {Qcow2Error} `LOCKED` if it is in use, `HOST` if it is refused for another reason
 */
export function unmountOnMac(directory: string, { force }: { force: boolean }): void {
  let reason = '';
  for (const [program, ...args] of macUnmountCommands(directory, force)) {
    const options = { encoding: 'utf8', timeout: UNMOUNT_MS } as const;
    const { status, stderr, error } = spawnSync(pathOf(program), args, options);
    if (error !== undefined) throw missingProgram(program, error);
    if (status === 0) return;
    reason ||= firstLine(stderr);
    if (isBusy(reason)) break;
  }
  throw unmountRefused(directory, reason);
}

/** {@link unmountOnMac}, while this process goes on serving. */
export async function unmountOnMacSoon(
  directory: string,
  { force }: { force: boolean },
): Promise<void> {
  let reason = '';
  for (const [program, ...args] of macUnmountCommands(directory, force)) {
    const failure = await new Promise<string | undefined>((resolve) => {
      execFile(pathOf(program), args, { timeout: UNMOUNT_MS }, (error, _, stderr) => {
        resolve(error === null ? undefined : firstLine(stderr || error.message));
      });
    });
    if (failure === undefined) return;
    reason ||= failure;
    if (isBusy(reason)) break;
  }
  throw unmountRefused(directory, reason);
}

function isBusy(reason: string): boolean {
  return /busy/i.test(reason);
}

function pathOf(program: string): string {
  return findProgram(program) ?? program;
}

/** What a program prints; undefined if it fails, or takes too long. */
function outputOf(program: string, args: readonly string[]): string | undefined {
  const { status, stdout } = spawnSync(pathOf(program), args, {
    encoding: 'utf8',
    timeout: TELL_MS,
    stdio: ['ignore', 'pipe', 'ignore'],
    // The same words, and the same hour of the day, whoever asks.
    env: { ...process.env, LC_ALL: 'C', TZ: 'UTC' },
  });
  // lsof(8) fails where it has nothing to tell, and where it could not tell all.
  return status === 0 || (program === 'lsof' && stdout !== '') ? stdout : undefined;
}

/** mount(8)'s list, which does not ask the mounted filesystems; empty if there is none. */
export function macMountTable(): string {
  return outputOf('mount', []) ?? '';
}

/**
 * When a process started, as ps(1) writes it; undefined if it does not tell, empty if the process has
 * ended and nobody has waited for it yet.
 */
export function macProcessStart(pid: number): string | undefined {
  return parseProcessStart(outputOf('ps', ['-o', 'stat=', '-o', 'lstart=', '-p', String(pid)]));
}

/** State of a process as ps(1) has it, as in `Ss`; undefined if there is none. */
export function macProcessState(pid: number): string | undefined {
  return outputOf('ps', ['-o', 'stat=', '-p', String(pid)])?.trim();
}

/** Parses `STAT Day Mon DD HH:MM:SS YYYY`. */
export function parseProcessStart(text: string | undefined): string | undefined {
  const [, state, start] = /^(\S+)\s+(\S.*)$/.exec(text?.trim() ?? '') ?? [];
  return state?.startsWith('Z') === true ? '' : start?.replace(/\s+/g, ' ');
}

/** Those who have a file of the filesystem mounted on `directory` open, or stand in it. */
export function macUsersOfMount(directory: string): { pid: number; name: string }[] {
  // `-b`: without calls that wait for a filesystem.
  return parseOpenFiles(outputOf('lsof', ['-b', '-w', '-n', '-P', '-F', 'pc', '--', directory]));
}

/** Parses the output of `lsof -F pc`: a line `pPID`, then a line `cNAME`. */
export function parseOpenFiles(text: string | undefined): { pid: number; name: string }[] {
  const users: { pid: number; name: string }[] = [];
  for (const line of (text ?? '').split('\n')) {
    if (/^p\d+$/.test(line)) users.push({ pid: Number(line.slice(1)), name: '' });
    else if (line.startsWith('c') && users.length > 0) users.at(-1)!.name = line.slice(1);
  }
  return users;
}
