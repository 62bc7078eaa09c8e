/**
 * Measuring a comparison: a warm-up, then rounds in which each contender has its turn.
 */

import {
  quantityOf,
  type Bounds,
  type Comparison,
  type Contender,
  type Rival,
  type Unit,
} from './bench.ts';
import { findProgram } from './process.ts';
import {
  judge,
  speedRatio,
  summarize,
  type Summary,
  type Thresholds,
  type Verdict,
} from './statistics.ts';

/** What one contender was measured at. */
export interface ContenderResult {
  name: string;
  /** One value a round, in the unit of the comparison. */
  values: number[];
  summary: Summary;
  /** Highest of all rounds, in bytes. */
  peakRssBytes?: number;
}

/** How this project compares with one rival. */
export interface RatioResult extends Thresholds {
  rival: string;
  /** One ratio a round; above 1 is faster than the rival. */
  values: number[];
  summary: Summary;
  /** Of the median. */
  verdict: Verdict;
}

/** Outcome of a comparison. */
export interface ComparisonResult {
  name: string;
  unit: Unit;
  /** What the values of this project are held against in place of ratios. */
  bounds?: Bounds;
  /** This project first. */
  contenders: ContenderResult[];
  ratios: RatioResult[];
  /** Rivals that are not installed. */
  missing: string[];
}

/** Told about each round as it ends. */
export type RoundListener = (round: Round) => void;

/** One round of a comparison, round 0 being the warm-up. */
export interface Round {
  comparison: Comparison;
  number: number;
  /** This project first. */
  measured: { name: string; value: number; ratio?: number }[];
}

/**
 * Measures a comparison in `pairs` rounds after a warm-up, or once if it is of that kind.
 *
 * @throws {Error} if no rival is installed, or a measurement fails
 */
export async function measureComparison(
  comparison: Comparison,
  pairs: number,
  onRound: RoundListener,
): Promise<ComparisonResult> {
  const missing = comparison.rivals.filter((rival) => !isInstalled(rival));
  const rivals = comparison.rivals.filter(isInstalled);
  if (rivals.length === 0) {
    throw new Error(`not installed: ${missing.map(({ name }) => name).join(', ')}`);
  }
  const contenders = [comparison.ours, ...rivals].map((contender) => new Tally(contender));
  const quantity = quantityOf(comparison.unit);
  const { bounds, isMeasuredOnce = false } = comparison;
  const [first, last] = isMeasuredOnce ? [1, 1] : [0, pairs];
  for (let number = first; number <= last; number++) {
    for (const contender of contenders) await contender.measure(number === 0);
    const [ours, ...others] = contenders as [Tally, ...Tally[]];
    onRound({
      comparison,
      number,
      measured: [
        { name: ours.name, value: ours.latest },
        ...others.map(({ name, latest }) => {
          return { name, value: latest, ratio: speedRatio(quantity, ours.latest, latest) };
        }),
      ],
    });
  }
  const [ours, ...others] = contenders as [Tally, ...Tally[]];
  const ratios = rivals.map(({ name, atLeast, aim }, index): RatioResult => {
    const theirs = others[index]!.values;
    const values = ours.values.map((value, i) => speedRatio(quantity, value, theirs[i]!));
    const summary = summarize(values);
    const thresholds = bounds === undefined ? { atLeast, aim } : asRatios(bounds, theirs);
    const verdict = judge(summary.median, thresholds);
    return { rival: name, ...thresholds, values, summary, verdict };
  });
  return {
    name: comparison.name,
    unit: comparison.unit,
    ...(bounds === undefined ? {} : { bounds }),
    contenders: contenders.map((contender) => contender.result()),
    ratios,
    missing: missing.map(({ name }) => name),
  };
}

/** The ratios to the rival's median at which the bounds are just kept. */
function asRatios({ atMost, aim }: Bounds, theirs: readonly number[]): Thresholds {
  const { median } = summarize(theirs);
  return { atLeast: median / atMost, aim: median / aim };
}

function isInstalled({ program }: Rival): boolean {
  return program === undefined || findProgram(program) !== undefined;
}

/** The values of one contender as they come in. */
class Tally {
  readonly #contender: Contender;
  readonly values: number[] = [];
  /** Of the last round, the warm-up included. */
  latest = Number.NaN;
  #peakRssBytes = 0;

  constructor(contender: Contender) {
    this.#contender = contender;
  }

  get name(): string {
    return this.#contender.name;
  }

  async measure(isWarmUp: boolean): Promise<void> {
    const { value, peakRssBytes } = await this.#contender.measure();
    this.latest = value;
    if (!isWarmUp) this.values.push(value);
    const apart = isWarmUp ? await this.#contender.measurePeakRss?.() : undefined;
    this.#peakRssBytes = Math.max(this.#peakRssBytes, peakRssBytes ?? 0, apart ?? 0);
  }

  result(): ContenderResult {
    return {
      name: this.name,
      values: this.values,
      summary: summarize(this.values),
      ...(this.#peakRssBytes > 0 ? { peakRssBytes: this.#peakRssBytes } : {}),
    };
  }
}
