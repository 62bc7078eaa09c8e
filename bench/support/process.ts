/**
 * Starting programs: those that run to their end and are timed, and daemons that are measured.
 * Each runs in a process group of its own, so that Ctrl-C reaches only the bench, which then ends
 * them in order.
 */

import { spawn, type ChildProcess } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { Cleanup } from './cleanup.ts';

/** A program and its arguments. */
export type Command = readonly [program: string, ...args: string[]];

/** A program that ran to its end. */
export interface Finished {
  stdout: string;
  stderr: string;
  exitCode: number;
  /** From just before the start to the exit. */
  seconds: number;
}

const READY_TIMEOUT_MS = 30_000;
const STOP_TIMEOUT_MS = 5_000;
const POLL_INTERVAL_MS = 1;

/** Where on `PATH` `program` is, if it is installed. */
export function findProgram(program: string): string | undefined {
  return (process.env.PATH ?? '')
    .split(path.delimiter)
    .map((directory) => path.join(directory, program))
    .find((candidate) => existsSync(candidate));
}

/**
 * Most memory that a running process has had resident, in bytes.
 *
 * Undefined where the system does not tell (anything but Linux) or the process is gone.
 */
export function peakRssBytes(pid: number): number | undefined {
  return statusBytes(pid, 'VmHWM');
}

/** Memory that a running process has resident now, in bytes; undefined as {@link peakRssBytes}. */
export function currentRssBytes(pid: number): number | undefined {
  return statusBytes(pid, 'VmRSS');
}

function statusBytes(pid: number, field: 'VmHWM' | 'VmRSS'): number | undefined {
  try {
    const status = readFileSync(`/proc/${pid}/status`, 'latin1');
    const kibibytes = new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(status)?.[1];
    return kibibytes === undefined ? undefined : Number(kibibytes) * 1024;
  } catch {
    return undefined;
  }
}

/**
 * Waits until `ready` says so, asking every millisecond.
 *
 * @param what names it in the error
 * @param failure a reason to give up at once, asked after every refusal
 * @throws {Error} after 30 seconds, or for the reason that `failure` gives
 */
export async function waitUntil(
  what: string,
  ready: () => boolean,
  failure: () => Error | undefined = () => undefined,
): Promise<void> {
  const deadline = Date.now() + READY_TIMEOUT_MS;
  while (!ready()) {
    const error = failure();
    if (error !== undefined) throw error;
    if (Date.now() > deadline) throw new Error(`gave up waiting for ${what}`);
    await delay(POLL_INTERVAL_MS);
  }
}

/** Runs programs, and sees to it that none outlives the bench. */
export class ProgramRunner {
  readonly #cleanup: Cleanup;

  constructor(cleanup: Cleanup) {
    this.#cleanup = cleanup;
  }

  /**
   * Runs a program to its end.
   *
   * @throws {Error} with its last line of stderr if it cannot be started or fails
   */
  async run(command: Command): Promise<Finished> {
    const start = process.hrtime.bigint();
    const program = new RunningProgram(command);
    const forget = this.#cleanup.add(command[0], () => {
      program.signalGroup('SIGKILL');
    });
    const exitCode = await program.ended;
    const seconds = Number(process.hrtime.bigint() - start) / 1e9;
    await forget();
    if (exitCode !== 0) throw program.failure();
    return { stdout: program.stdout, stderr: program.stderr, exitCode, seconds };
  }

  /**
   * Runs a program to its end.
   *
   * @param last what it prints when it is done, if that is not when it exits
   * @returns seconds from the first that it printed to then
   * @throws {Error} as {@link run}, and if it printed nothing
   */
  async timeFromOutput(command: Command, last?: string): Promise<number> {
    const program = new RunningProgram(command);
    const forget = this.#cleanup.add(command[0], () => {
      program.signalGroup('SIGKILL');
    });
    let start: bigint | undefined;
    let end: bigint | undefined;
    program.child.stdout?.on('data', (text: string) => {
      const now = process.hrtime.bigint();
      start ??= now;
      if (last !== undefined && text.endsWith(last)) end = now;
    });
    program.child.once('exit', () => {
      if (last === undefined) end = process.hrtime.bigint();
    });
    const exitCode = await program.ended;
    await forget();
    if (exitCode !== 0 || start === undefined || end === undefined) throw program.failure();
    return Number(end - start) / 1e9;
  }

  /**
   * Most memory that a program had resident while it ran to its end, in bytes; undefined where
   * GNU time is not installed.
   */
  async measurePeakRss(command: Command): Promise<number | undefined> {
    const time = findProgram('time');
    if (time === undefined) return undefined;
    const { stderr } = await this.run([time, '-f', 'peak-rss %M', ...command]);
    const kibibytes = /^peak-rss (\d+)$/m.exec(stderr)?.[1];
    return kibibytes === undefined ? undefined : Number(kibibytes) * 1024;
  }

  /**
   * Starts a program that serves until it is stopped.
   *
   * @throws {Error} if the run was interrupted, so that nothing new is left behind
   */
  start(command: Command): Daemon {
    if (this.#cleanup.interrupted) throw new Error('interrupted');
    const program = new RunningProgram(command);
    const daemon = new Daemon(program, () => forget());
    const forget = this.#cleanup.add(command[0], () => daemon.stop());
    return daemon;
  }
}

/** A program that serves until it is stopped. */
export class Daemon {
  readonly #program: RunningProgram;
  readonly #forget: () => Promise<void>;

  constructor(program: RunningProgram, forget: () => Promise<void>) {
    this.#program = program;
    this.#forget = forget;
  }

  /** Undefined if it could not be started. */
  get pid(): number | undefined {
    return this.#program.child.pid;
  }

  /**
   * Waits until `ready` says so.
   *
   * @throws {Error} if the daemon ends before, or after 30 seconds
   */
  async waitUntil(what: string, ready: () => boolean): Promise<void> {
    await waitUntil(what, ready, () =>
      this.#program.hasEnded ? this.#program.failure() : undefined,
    );
  }

  /** Most memory that it has had resident so far, in bytes, where that can be told. */
  peakRssBytes(): number | undefined {
    return this.pid === undefined ? undefined : peakRssBytes(this.pid);
  }

  /** Stops it with SIGTERM, or with SIGKILL if it does not end within five seconds. */
  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    if (!this.#program.hasEnded) {
      this.#program.child.kill(signal);
      const late = new AbortController();
      const timeout = delay(STOP_TIMEOUT_MS, undefined, { signal: late.signal }).then(
        () => this.#program.signalGroup('SIGKILL'),
        () => undefined,
      );
      await this.#program.ended;
      late.abort();
      await timeout;
    }
    await this.#forget();
  }
}

/** A child process, what it printed, and its end. */
class RunningProgram {
  readonly child: ChildProcess;
  readonly command: Command;
  /** Exit code; 127 if it could not be started, 128 if a signal ended it. */
  readonly ended: Promise<number>;
  hasEnded = false;
  stdout = '';
  stderr = '';

  constructor(command: Command) {
    const [program, ...args] = command;
    this.command = command;
    this.child = spawn(program, args, {
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      // Where it is set, Node reads those certificates first, which takes longer than to start.
      env: { ...process.env, LC_ALL: 'C', NO_COLOR: '1', NODE_EXTRA_CA_CERTS: undefined },
    });
    this.child.stdout?.setEncoding('utf8').on('data', (text: string) => (this.stdout += text));
    this.child.stderr?.setEncoding('utf8').on('data', (text: string) => (this.stderr += text));
    this.ended = new Promise((resolve) => {
      this.child.on('error', (error) => {
        this.stderr += error.message;
        this.hasEnded = true;
        resolve(127);
      });
      this.child.on('close', (code) => {
        this.hasEnded = true;
        resolve(code ?? 128);
      });
    });
  }

  signalGroup(signal: NodeJS.Signals): void {
    if (this.hasEnded || this.child.pid === undefined) return;
    try {
      process.kill(-this.child.pid, signal);
    } catch {
      // The group is gone already.
    }
  }

  /** What to throw when it failed, or ended although it should serve. */
  failure(): Error {
    const lines = this.stderr.trim().split('\n');
    // After an uncaught error, Node's last line is its version.
    const line = lines.find((text) => /^\w*Error\b/.test(text)) ?? lines.at(-1) ?? '';
    const { exitCode, signalCode } = this.child;
    const end = signalCode ?? `exit code ${exitCode ?? 127}`;
    return new Error(`${this.command.join(' ')}: ${end}${line && `: ${line}`}`);
  }
}
