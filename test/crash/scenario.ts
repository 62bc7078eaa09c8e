/** Tries crashes on scenarios: random writing to an image, and power cuts everywhere in it. */

import { CrashStates } from '../support/crash-states.ts';
import { describeOperation } from '../support/guest-operations.ts';
import { makeVariant } from '../support/image-variants.ts';
import type { ImageVariant, VariantFiles } from '../support/image-variants.ts';
import { Random } from '../support/random.ts';
import { judgeCrashWithQemu } from './judge-qemu.ts';
import { judgeCrash } from './judge.ts';
import { crashedImage, filesByRole, newImage, randomCrash, recordRandom } from './recording.ts';
import type { Recording } from './recording.ts';
import { CRASH_VARIANTS, randomVariant } from './variants.ts';

/** What is tried. */
export interface ScenarioOptions {
  /** Decides on everything. */
  seed: number;
  /** Guest operations (default {@link DEFAULT_OPERATIONS}). */
  operations?: number | undefined;
  /**
   * Random states after each host operation, beside the one where all before it was done (default
   * {@link DEFAULT_TORN}).
   */
  tornPerOperation?: number | undefined;
  /** QEMU judges every nth state (0: none). */
  askQemuEvery: number;
  /** For the images, empty. */
  directory: string;
}

/** Enough for metadata to be written, freed and used again. */
export const DEFAULT_OPERATIONS = 40;
/** See {@link ScenarioOptions.tornPerOperation}. */
export const DEFAULT_TORN = 3;

/** What came of it. */
export interface ScenarioResult {
  /** States that were judged, and those of them that QEMU judged too. */
  points: number;
  qemuPoints: number;
  /** States with clusters that are counted and not used. */
  leaking: number;
  /** What was wrong first, with what led to it. */
  problem: string | undefined;
}

/** So many scenarios in a row try each variant of {@link CRASH_VARIANTS}, and as many random ones. */
export const SEEDS_A_ROUND = 2 * CRASH_VARIANTS.length;

/** QEMU makes each variant once. */
const made = new Map<string, VariantFiles>();

/**
 * Records a scenario and judges crashes everywhere in it, until one is bad. Half of them go on from
 * what one of the crashes left.
 */
export function runScenario(options: ScenarioOptions): ScenarioResult {
  const { seed, operations = DEFAULT_OPERATIONS, directory } = options;
  const random = new Random(seed);
  const variant = variantFor(seed, random);
  const result: ScenarioResult = { points: 0, qemuPoints: 0, leaking: 0, problem: undefined };
  try {
    let start = newImage(variant, filesOf(variant, directory));
    let bitmapStart = start.holdings.disk;
    let count = operations;
    do {
      const recording = recordRandom(start, { random, count });
      // Bitmaps know nothing of what was cut off and came back as zeroes; nor do QEMU's.
      bitmapStart = bitmapStart.subarray(0, recording.history.smallestSize);
      judgeEverywhere({ recording, random, result, bitmapStart }, options);
      start = crashedImage(variant, randomCrash(recording, random));
      count = Math.ceil(count / 2);
    } while (result.problem === undefined && random.oneIn(2));
  } catch (error) {
    const stack = error instanceof Error ? error.stack : String(error);
    result.problem = `seed ${seed}, ${variant.name}: ${stack}\n${JSON.stringify(variant)}`;
  }
  return result;
}

/** The known variants in turn, and a random one after each round. */
function variantFor(seed: number, random: Random): ImageVariant {
  return CRASH_VARIANTS[seed % SEEDS_A_ROUND] ?? randomVariant(random);
}

function filesOf(variant: ImageVariant, directory: string): VariantFiles {
  if (variant.name === 'random') return makeVariant(variant, directory);
  let files = made.get(variant.name);
  if (files === undefined) {
    files = makeVariant(variant, directory);
    made.set(variant.name, files);
  }
  return files;
}

/** One recording that is judged. */
interface Judgement {
  recording: Recording;
  random: Random;
  /** What came of it is added to this. */
  result: ScenarioResult;
  /** What the disk held when its bitmaps were made, as far as it was never cut off. */
  bitmapStart: Buffer;
}

function judgeEverywhere(
  { recording, random, result, bitmapStart }: Judgement,
  { seed, tornPerOperation = DEFAULT_TORN, askQemuEvery, directory }: ScenarioOptions,
): void {
  const { log, initial, history, variant, roles } = recording;
  const states = new CrashStates(log, initial);
  const judge = (bytes: readonly Uint8Array[], state: string): boolean => {
    const files = filesByRole(roles, bytes);
    const worlds = history.worldsAt(states.position);
    const own = judgeCrash({ variant, files, worlds, initial: bitmapStart });
    let { problem } = own;
    result.points++;
    if (own.leaks > 0) result.leaking++;
    if (
      problem === undefined &&
      askQemuEvery > 0 &&
      (result.points + seed * 97) % askQemuEvery === 0
    ) {
      result.qemuPoints++;
      ({ problem } = judgeCrashWithQemu(directory, files, worlds));
    }
    if (problem === undefined) return true;
    result.problem = describeProblem(recording, {
      seed,
      position: states.position,
      state,
      problem,
    });
    return false;
  };
  for (let position = 1; position <= log.length; position++) {
    states.advanceTo(position);
    if (!judge(states.complete(), 'all that was done')) return;
    // Of few operations there are few choices.
    const choices = Math.min(tornPerOperation, 2 * states.unflushedCount);
    for (let choice = 0; choice < choices; choice++) {
      if (!judge(states.torn(random), `random state ${choice}`)) return;
    }
  }
}

function describeProblem(
  { log, history, variant }: Recording,
  at: { seed: number; position: number; state: string; problem: string },
): string {
  const begun = history.begunAt(at.position);
  const operations = history.entries.slice(Math.max(0, begun - 12), begun);
  const host = log.slice(Math.max(0, at.position - 12), at.position);
  return [
    `seed ${at.seed}, ${variant.name}, after host operation ${at.position} (${at.state}):`,
    at.problem,
    `the last guest operations (of ${begun}):`,
    ...operations.map(
      ({ operation, logStart, logEnd }) =>
        `  ${describeOperation(operation)} [host operations ${logStart} to ${logEnd}]`,
    ),
    'the last host operations:',
    ...host.map(({ file, operation }, index) => {
      const { kind } = operation;
      const where = 'offset' in operation ? ` at ${operation.offset}` : '';
      const length = kind === 'write' ? operation.bytes.length : '';
      return `  ${at.position - host.length + index}: file ${file} ${kind} ${length}${where}`;
    }),
    JSON.stringify(variant),
  ].join('\n');
}
