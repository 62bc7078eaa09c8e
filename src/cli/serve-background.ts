/** `qcow2 serve --fork`: the server as a process of its own, which has said that it listens. */

import { spawn } from 'node:child_process';
import { closeSync, writeSync } from 'node:fs';
import { text } from 'node:stream/consumers';
import type { Readable } from 'node:stream';
import type { CommandIo } from './command.ts';

/** Tells a process that it is such a server. */
const MARK = 'QCOW2_SERVE_BACKGROUND';
/** Descriptor on which it says what the command is to print, before it closes it. */
const REPORT_FD = 3;

/** Whether this process is the server that another one waits for. */
export function isBackgroundServer(): boolean {
  return process.env[MARK] === String(process.ppid);
}

/**
 * Starts the same command in the background and waits until clients can connect.
 * @param argv arguments of the whole command, `--fork` among them
 * @returns the exit code
 */
export async function startInBackground(argv: readonly string[], io: CommandIo): Promise<number> {
  const program = process.argv[1]!;
  const child = spawn(process.execPath, [...process.execArgv, program, ...argv], {
    detached: true,
    stdio: ['ignore', 'ignore', 'pipe', 'pipe'],
    // Reading certificates would double the time that Node takes to start; --tls has its own.
    env: { ...process.env, NODE_EXTRA_CA_CERTS: undefined, [MARK]: String(process.pid) },
  });
  const stop = (): void => void child.kill('SIGTERM');
  for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, stop);
  const errors = text(child.stderr!);
  const ended = new Promise<number>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (code) => resolve(code ?? 1));
  });
  const report = await Promise.race([
    text(child.stdio[REPORT_FD] as Readable),
    ended.then(() => ''),
  ]);
  if (report === '') {
    const code = await ended;
    io.stderr(await errors);
    return code === 0 ? 1 : code;
  }
  const { output, warnings } = JSON.parse(report) as Report;
  io.stderr(warnings);
  io.stdout(output);
  child.unref();
  return 0;
}

/** What the server has said by the time it is ready. */
interface Report {
  output: string;
  warnings: string;
}

/** Where the background server writes: what it says first goes to whoever started it. */
export class BackgroundIo implements CommandIo {
  readonly isTerminal = false;
  readonly #io: CommandIo;
  readonly #report: Report = { output: '', warnings: '' };
  #isReady = false;

  /** @param io where errors go too until it is ready: it may never be */
  constructor(io: CommandIo) {
    this.#io = io;
  }

  stdout(message: string): void {
    if (!this.#isReady) this.#report.output += message;
  }

  stderr(message: string): void {
    // Nobody is there to read it later.
    if (this.#isReady) return;
    this.#report.warnings += message;
    this.#io.stderr(message);
  }

  /** Lets the command return. */
  ready(): void {
    writeSync(REPORT_FD, JSON.stringify(this.#report));
    closeSync(REPORT_FD);
    this.#isReady = true;
  }
}
