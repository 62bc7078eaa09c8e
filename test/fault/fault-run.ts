/**
 * Runs one scenario again and again, each time with another host operation that fails: the error
 * reaches the caller, what is on disk is valid, and the same image goes on working.
 */

import { Qcow2Error } from '../../src/errors.ts';
import { GuestHistory } from '../crash/guest-history.ts';
import { contentProblem, judgeCrash, readContent } from '../crash/judge.ts';
import type { CrashedFiles } from '../crash/judge.ts';
import type { StartingPoint } from '../crash/recording.ts';
import { DiskModel } from '../support/disk-model.ts';
import type { Holdings } from '../support/disk-model.ts';
import { DiskSession } from '../support/disk-session.ts';
import { FaultFile, FaultPlan } from '../support/fault-file.ts';
import type { Fault } from '../support/fault-file.ts';
import { describeOperation } from '../support/guest-operations.ts';
import type { GuestOperation } from '../support/guest-operations.ts';
import type { FileRole } from '../support/image-variants.ts';
import { openForWriting } from '../support/open-variant.ts';
import { RecordingFile } from '../support/recording-file.ts';
import type { LoggedOperation } from '../support/recording-file.ts';

/** What is done to which image. */
export interface FaultScenario {
  start: StartingPoint;
  operations: readonly GuestOperation[];
}

/** What came of a run. */
export interface FaultResult {
  /** What failed, or undefined if there were fewer operations than that. */
  failed: string | undefined;
  /** What was wrong, or undefined. */
  problem: string | undefined;
}

/** How long a full disk stays full, in guest operations. */
const FULL_FOR = 4;

/** Runs a scenario with a fault. */
export function runWithFault(scenario: FaultScenario, fault?: Fault): FaultResult {
  const run = new FaultRun(scenario, fault);
  try {
    const problem = run.run();
    return { failed: run.plan.failed, problem };
  } catch (error) {
    const stack = error instanceof Error ? error.stack : String(error);
    return { failed: run.plan.failed, problem: `unexpected: ${stack}` };
  }
}

/** The number of host operations of a scenario that can fail. */
export function countOperations(scenario: FaultScenario): FaultPlan['counts'] {
  const run = new FaultRun(scenario, undefined);
  const problem = run.run();
  if (problem !== undefined) throw new Error(`without any fault: ${problem}`);
  return run.counts;
}

class FaultRun {
  readonly plan: FaultPlan;
  /** Host operations before the end. */
  counts: FaultPlan['counts'] = { change: 0, read: 0 };
  readonly #scenario: FaultScenario;
  readonly #files = new Map<FileRole, RecordingFile>();
  readonly #log: LoggedOperation[] = [];
  readonly #model: DiskModel;
  readonly #session: DiskSession;
  readonly #history: GuestHistory;

  constructor(scenario: FaultScenario, fault: Fault | undefined) {
    const { variant, files, holdings } = scenario.start;
    this.#scenario = scenario;
    this.plan = new FaultPlan(fault);
    const devices: Partial<Record<FileRole, FaultFile>> = {};
    for (const [role, bytes] of Object.entries(files)) {
      const file = new RecordingFile(bytes, this.#log, this.#files.size);
      this.#files.set(role as FileRole, file);
      devices[role as FileRole] = new FaultFile(file, this.plan);
    }
    this.#model = new DiskModel({ ...variant, ...holdings });
    this.#history = new GuestHistory(this.#model.holdings);
    this.#session = new DiskSession(this.#model, () => openForWriting(variant, devices));
  }

  /** Does everything; what was wrong first. */
  run(): string | undefined {
    let fullFor = FULL_FOR;
    for (const operation of [...this.#scenario.operations, { kind: 'reopen' } as const]) {
      if (this.plan.isFull && fullFor-- === 0) this.plan.makeRoom();
      const problem = this.#perform(operation);
      if (problem !== undefined) return `${describeOperation(operation)}: ${problem}`;
    }
    this.plan.makeRoom();
    this.counts = { ...this.plan.counts };
    return this.#end();
  }

  /** Does an operation, and does it again if it fails and there is room. */
  #perform(operation: GuestOperation): string | undefined {
    const logStart = this.#log.length;
    const { failures } = this.plan;
    try {
      if (this.#session.perform(operation)) this.#remember(operation, logStart);
    } catch (error) {
      if (this.plan.failures === failures) throw error;
      const problem = this.#judgeFailure({ operation, error, logStart });
      if (problem !== undefined) return `${problem} (after the failed ${this.plan.failed})`;
      if (this.plan.isFull && canBeLeftOut(operation)) return undefined;
      if (this.#isDone(operation)) return undefined;
      this.plan.makeRoom();
      if (this.#session.retry(operation)) this.#remember(operation, this.#log.length);
      return undefined;
    }
    // A hint that cannot be followed is no failure.
    const isTold =
      this.plan.failures === failures || this.plan.failed?.startsWith('discard') === true;
    return isTold ? undefined : `the failed ${this.plan.failed} was not told`;
  }

  #remember(operation: GuestOperation, logStart: number): void {
    const logEnd = this.#log.length;
    this.#history.add({ operation, logStart, logEnd, after: this.#model.holdings });
  }

  /** After a failure, what is there is what was before or what should be, sector by sector. */
  #judgeFailure({
    operation,
    error,
    logStart,
  }: {
    operation: GuestOperation;
    error: unknown;
    logStart: number;
  }): string | undefined {
    if (!(error instanceof Qcow2Error) || error.code !== 'HOST') {
      return `the error is not the host's: ${error instanceof Error ? error.stack : String(error)}`;
    }
    const entry = { operation, logStart, logEnd: Infinity, after: this.#holdingsAfter(operation) };
    const seen = new GuestHistory(this.#model.holdings);
    seen.add(entry);
    const content = readContent(this.#session.image);
    const problem = contentProblem(content, seen.worldsAt(Infinity));
    if (problem !== undefined) return `what is read then: ${problem}`;
    this.#history.add(entry);
    // A part of it may have been done.
    this.#model.holdings = { ...content, backing: this.#model.backing };
    if (!isAtomic(operation)) this.#history.add({ ...entry, after: this.#model.holdings });
    return this.#judgeFiles('what is on disk then');
  }

  #holdingsAfter(operation: GuestOperation): Holdings {
    const model = new DiskModel({ ...this.#scenario.start.variant, ...this.#model.holdings });
    // The number that the failed operation had.
    model.perform(operation, this.#session.sequence - 1);
    return model.holdings;
  }

  /** Whether an operation that failed, and must not be done twice, was done all the same. */
  #isDone(operation: GuestOperation): boolean {
    const has = (name: string): boolean =>
      this.#model.snapshots.some((snapshot) => snapshot.name === name);
    switch (operation.kind) {
      case 'snapshot':
        return has(operation.name);
      case 'delete':
        return !has(operation.name);
      default:
        return false;
    }
  }

  #judgeFiles(when: string): string | undefined {
    const files: CrashedFiles = {};
    for (const [role, file] of this.#files) files[role] = file.bytes;
    const worlds = this.#history.worldsAt(this.#log.length + 1);
    const initial = this.#history.initialDisk.subarray(0, this.#history.smallestSize);
    const { problem } = judgeCrash({
      variant: this.#scenario.start.variant,
      files,
      worlds,
      initial,
    });
    return problem === undefined ? undefined : `${when}: ${problem}`;
  }

  #end(): string | undefined {
    const { disk, snapshots } = readContent(this.#session.image);
    const exact = new GuestHistory(this.#model.holdings).worldsAt(0);
    const problem = contentProblem({ disk, snapshots }, exact);
    if (problem !== undefined) return `at the end: ${problem}`;
    this.#session.close();
    return this.#judgeFiles('when it is closed');
  }
}

/** Whether it is known to have changed the disk as a whole or not at all. */
function isAtomic({ kind }: GuestOperation): boolean {
  return kind === 'snapshot' || kind === 'apply';
}

/** Whether what follows can be done without it. */
function canBeLeftOut({ kind }: GuestOperation): boolean {
  return kind !== 'snapshot' && kind !== 'apply' && kind !== 'resize';
}
