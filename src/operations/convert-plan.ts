/** What has to be done to make one disk what another reads as, found out without reading data. */

import type { BlockDevice, Extent } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import { alignDown, alignUp } from '../util/bytes.ts';

/** What becomes of a part of the output. */
export type PlannedKind =
  /** It is read from the source. */
  | 'data'
  /** It becomes zeroes. */
  | 'zero'
  /** It stays as it is: what is behind the output shows. */
  | 'backing';

/** A part of the output. */
export interface PlannedRun {
  kind: PlannedKind;
  /** First byte. */
  start: number;
  /** One past the last byte. */
  end: number;
}

/** What {@link planConversion} has to know. */
export interface PlanOptions {
  /**
   * Bytes of what is behind the output. What the source's top layer takes from its own backing file
   * is left to it then. Undefined: nothing is behind the output that could show.
   */
  backingSize?: number | undefined;
  /** Bytes of what is behind the source's top layer (default: as much as the source). */
  sourceBackingSize?: number | undefined;
  /** Runs begin and end at multiples of it, or where the source ends (default 1). */
  alignment?: number | undefined;
  /** Zeroes are read and written like other data (default false). */
  zeroIsData?: boolean | undefined;
  /** Go on where the source's tables are damaged: what they map is to be read (default false). */
  salvage?: boolean | undefined;
}

/** Zeroes that are written without a pause. A multiple of all cluster sizes. */
const ZERO_STEP_BYTES = 256 * 1024 * 1024;
/** How far to go on behind damaged tables before asking again. */
const SALVAGE_BYTES = 2 * 1024 * 1024;

/**
 * The runs of the source, in order and without gaps, neighbours of one kind merged.
 * @throws {Qcow2Error} if the source's tables are damaged
 */
export function* planConversion(
  source: BlockDevice,
  options: PlanOptions = {},
): Generator<PlannedRun> {
  const { alignment = 1 } = options;
  const runs = mergeRuns(classify(source, options));
  yield* alignment === 1 ? runs : mergeRuns(alignRuns(runs, alignment, source.size));
}

function* classify(source: BlockDevice, options: PlanOptions): Generator<PlannedRun> {
  const { backingSize, sourceBackingSize = Infinity, zeroIsData = false } = options;
  const extents = options.salvage === true ? salvagedExtents : wholeExtents;
  for (const { offset, length, depth, zero } of extents(source)) {
    const end = offset + length;
    // Where nothing is behind the source, what it does not hold are zeroes.
    const isBehind = backingSize !== undefined && depth > 0;
    const start = isBehind ? Math.min(Math.max(sourceBackingSize, offset), end) : offset;
    if (start > offset) yield { kind: 'backing', start: offset, end: start };
    const kind = zero && !zeroIsData ? 'zero' : 'data';
    // Past its end, what is behind the output reads as zeroes anyway.
    const canBeLeft = kind === 'zero' || (isBehind && zero);
    const split = canBeLeft ? Math.min(Math.max(backingSize ?? end, start), end) : end;
    if (split > start) yield { kind, start, end: split };
    if (end > split) yield { kind: 'backing', start: split, end };
  }
}

function wholeExtents(source: BlockDevice): Iterable<Extent> {
  return source.extents(0, source.size);
}

/** The extents of a device; what damaged tables map is said to be data. */
function* salvagedExtents(source: BlockDevice): Generator<Extent> {
  for (let at = 0; at < source.size;) {
    try {
      for (const extent of source.extents(at, source.size - at)) {
        yield extent;
        at = extent.offset + extent.length;
      }
    } catch (error) {
      if (!(error instanceof Qcow2Error)) throw error;
      const end = Math.min(alignDown(at, SALVAGE_BYTES) + SALVAGE_BYTES, source.size);
      const range = { offset: at, length: end - at };
      yield { ...range, kind: 'data', zero: false, present: true, depth: 0 };
      at = end;
    }
  }
}

/** What is not all of one kind between two multiples of `alignment` becomes data. */
function* alignRuns(
  runs: Iterable<PlannedRun>,
  alignment: number,
  total: number,
): Generator<PlannedRun> {
  let at = 0;
  for (const { kind, start, end } of runs) {
    const first = start <= at ? at : alignUp(start, alignment);
    const last = end === total ? total : alignDown(end, alignment);
    if (last <= first) continue;
    if (first > at) yield { kind: 'data', start: at, end: first };
    yield { kind, start: first, end: last };
    at = last;
  }
  if (at < total) yield { kind: 'data', start: at, end: total };
}

function* mergeRuns(runs: Iterable<PlannedRun>): Generator<PlannedRun> {
  let current: PlannedRun | undefined;
  for (const run of runs) {
    if (current?.kind === run.kind) {
      current.end = run.end;
    } else {
      if (current !== undefined) yield current;
      current = { ...run };
    }
  }
  if (current !== undefined) yield current;
}

/**
 * Cuts data at the multiples of `chunkBytes`, so that each piece fits a buffer of that size, and
 * zeroes where writing them could take long.
 */
export function* cutRuns(runs: Iterable<PlannedRun>, chunkBytes: number): Generator<PlannedRun> {
  for (const run of runs) {
    const { kind } = run;
    const step = { data: chunkBytes, zero: ZERO_STEP_BYTES, backing: Infinity }[kind];
    for (let { start } = run; start < run.end;) {
      const end = Math.min(start - (start % step) + step, run.end);
      yield { kind, start, end };
      start = end;
    }
  }
}
