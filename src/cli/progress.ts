/**
 * Showing how far a long command is, and stopping it: a bar on a terminal, qemu-img's percentage
 * lines elsewhere, one line on standard error whenever SIGUSR1 arrives.
 */

import { constants } from 'node:os';
import { setImmediate } from 'node:timers/promises';
import { percentOf } from '../operations/progress.ts';
import type { AsyncSteps, Progress, Steps } from '../operations/progress.ts';
import type { CommandIo } from './command.ts';

/** How {@link ProgressReporter} shows progress. */
export interface ProgressOptions {
  /** Whether progress was asked for with `-p`. */
  show: boolean;
  /** Percent between two lines where there is no terminal. */
  stepPercent: number;
}

const BAR_COLUMNS = 40;

/** Writes progress to standard output, if it was asked for. */
export class ProgressReporter {
  readonly #io: CommandIo;
  readonly #show: boolean;
  readonly #stepPercent: number;
  #percent = 0;
  #printed = '';
  #printedPercent = 0;

  constructor(io: CommandIo, { show, stepPercent }: ProgressOptions) {
    this.#io = io;
    this.#show = show;
    this.#stepPercent = stepPercent;
    this.#print();
  }

  /** Takes note of how far the command is, and shows it if that has changed enough. */
  update(progress: Progress): void {
    this.#percent = percentOf(progress);
    const isFarEnough = this.#percent > this.#printedPercent + this.#stepPercent;
    if (isFarEnough || this.#percent === 100) this.#print();
  }

  /** Ends the line on which progress is shown. */
  end(): void {
    if (this.#show) this.#io.stdout('\n');
  }

  /** Says where the command is, whether or not progress was asked for. */
  tellState(): void {
    this.#io.stderr(`    (${this.#percent.toFixed(2)}/100%)\n`);
  }

  #print(): void {
    if (!this.#show) return;
    this.#printedPercent = this.#percent;
    const line = this.#io.isTerminal
      ? `${bar(this.#percent)}\r`
      : `    (${this.#percent.toFixed(2)}/100%)\r`;
    if (line === this.#printed) return;
    this.#printed = line;
    this.#io.stdout(line);
  }
}

function bar(percent: number): string {
  const filled = Math.floor((percent / 100) * BAR_COLUMNS);
  return `[${'='.repeat(filled).padEnd(BAR_COLUMNS)}] ${percent.toFixed(1).padStart(5)}%`;
}

/** A command was stopped by a signal. */
export class InterruptedError extends Error {
  override readonly name = 'InterruptedError';
  /** As a shell tells it: 128 and the signal's number. */
  readonly exitCode: number;

  constructor(signal: NodeJS.Signals) {
    super('interrupted');
    this.exitCode = 128 + constants.signals[signal];
  }
}

const INTERRUPTS: readonly NodeJS.Signals[] = ['SIGINT', 'SIGTERM', 'SIGHUP'];

/**
 * Takes note of signals that would end the process, until it is disposed of. A command that has
 * something to clean up holds one from before there is anything until it is finished.
 */
export class Interrupts implements Disposable {
  #signal: NodeJS.Signals | undefined;
  readonly #note = (signal: NodeJS.Signals): void => {
    this.#signal = signal;
  };

  constructor() {
    for (const signal of INTERRUPTS) process.on(signal, this.#note);
  }

  /**
   * Looks for a signal. They are delivered between turns of the event loop only.
   * @throws {InterruptedError} if one came
   */
  check(): void {
    if (this.#signal !== undefined) throw new InterruptedError(this.#signal);
  }

  /** Leaves signals to others again. */
  [Symbol.dispose](): void {
    for (const signal of INTERRUPTS) process.off(signal, this.#note);
  }
}

/** Options of {@link driveSteps}. */
export interface DriveOptions {
  reporter: ProgressReporter;
  /**
   * Whether SIGINT, SIGTERM and SIGHUP throw {@link InterruptedError} between two steps, so that
   * the caller can clean up (default: they end the process as usual); the signals that are noted,
   * where they are before and after the steps too.
   */
  interruptible?: boolean | Interrupts;
}

/** How often signals are looked for. */
const TURN_MS = 50;

/**
 * Runs an operation to its end, showing its progress and answering signals on the way.
 * @throws {InterruptedError} if a signal stopped it
 */
export async function driveSteps<Result>(
  steps: Steps<Result> | AsyncSteps<Result>,
  { reporter, interruptible = false }: DriveOptions,
): Promise<Result> {
  using own = interruptible === true ? new Interrupts() : undefined;
  const interrupts = typeof interruptible === 'object' ? interruptible : own;
  const onState = (): void => {
    reporter.tellState();
  };
  process.on('SIGUSR1', onState);
  try {
    // What came before the first step is seen after it.
    let turn = -Infinity;
    for (;;) {
      const next = await steps.next();
      if (next.done === true) return next.value;
      reporter.update(next.value);
      if (performance.now() - turn < TURN_MS) continue;
      await setImmediate();
      interrupts?.check();
      turn = performance.now();
    }
  } finally {
    process.off('SIGUSR1', onState);
  }
}
