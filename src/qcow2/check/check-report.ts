/** What a check has found so far: counters, and a message for each problem as it is met. */

/** A problem that a check has met. */
export interface CheckProblem {
  /**
   * `corruption`: data or metadata is wrong, or will be overwritten; `leak`: space is wasted;
   * `error`: something could not be checked.
   */
  kind: 'corruption' | 'leak' | 'error';
  /** One or more lines, worded as qemu-img words them, without the last line end. */
  message: string;
  /** Whether it is being repaired. */
  isRepaired?: true;
}

/** Problems by their kind. */
export interface ProblemCounts {
  corruptions: number;
  leaks: number;
  checkErrors: number;
}

/** Is told of each problem. */
export type ProblemListener = (problem: CheckProblem) => void;

/** Collects the problems of one check. */
export class CheckReport {
  corruptions = 0;
  leaks = 0;
  checkErrors = 0;
  /** Problems that are repaired, which the counters above do not count. */
  corruptionsFixed = 0;
  leaksFixed = 0;
  /** Clusters of the disk that have host space, how many of them do not follow their neighbour. */
  allocatedClusters = 0;
  fragmentedClusters = 0;
  compressedClusters = 0;
  readonly #onProblem: ProblemListener | undefined;

  constructor(onProblem: ProblemListener | undefined) {
    this.#onProblem = onProblem;
  }

  /** Counts `times` corruptions. The message is put together only if somebody listens. */
  corruption(message: () => string, times = 1): void {
    this.corruptions += times;
    this.#tell('corruption', message, times);
  }

  /** Counts a leaked cluster. */
  leak(message: () => string): void {
    this.leaks++;
    this.#tell('leak', message, 1);
  }

  /** Counts something that could not be checked. */
  checkError(message: () => string): void {
    this.checkErrors++;
    this.#tell('error', message, 1);
  }

  /** Counts a problem that is repaired. */
  repaired(kind: 'corruption' | 'leak', message: () => string): void {
    if (kind === 'leak') this.leaksFixed++;
    else this.corruptionsFixed++;
    this.#tell(kind, message, 1, { isRepaired: true });
  }

  /** How many problems are left. */
  get counts(): ProblemCounts {
    const { corruptions, leaks, checkErrors } = this;
    return { corruptions, leaks, checkErrors };
  }

  /** Takes back what was counted since. */
  resetTo(counts: ProblemCounts): void {
    Object.assign(this, counts);
  }

  /** Tells something that is not counted by itself. */
  remark(message: () => string): void {
    this.#tell('error', message, 1);
  }

  #tell(
    kind: CheckProblem['kind'],
    message: () => string,
    times: number,
    more: Pick<CheckProblem, 'isRepaired'> = {},
  ): void {
    if (this.#onProblem === undefined) return;
    const problem = { kind, message: message(), ...more };
    for (let time = 0; time < times; time++) this.#onProblem(problem);
  }
}

/** A 64-bit value of two 32-bit halves in hexadecimal, without a prefix. */
export function hex64(high: number, low: number): string {
  return ((BigInt(high >>> 0) << 32n) | BigInt(low >>> 0)).toString(16);
}
