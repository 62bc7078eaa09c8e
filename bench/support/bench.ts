/**
 * What a bench is made of: comparisons, each with a measurement of this project and one of each
 * rival, and the thresholds that the ratios are held against.
 */

import type { Cleanup } from './cleanup.ts';
import type { ImageStore } from './images.ts';
import type { Command, ProgramRunner } from './process.ts';
import type { Quantity, Thresholds } from './statistics.ts';

/** One measurement. */
export interface Sample {
  /** In the unit of the comparison. */
  value: number;
  /** Most memory that the measured program had resident, in bytes, where it was measured. */
  peakRssBytes?: number | undefined;
}

/** What is measured against the others. */
export interface Contender {
  name: string;
  /** Measures once, from nothing to nothing: what it starts, it stops. */
  measure(): Promise<Sample>;
  /** Peak memory where it must be measured apart, so that the measuring costs no time; bytes. */
  measurePeakRss?(): Promise<number | undefined>;
}

/** A contender that the ratios are formed against. */
export interface Rival extends Contender, Thresholds {
  /** Program that must be installed for it. */
  program?: string;
}

/** One row of the table for each rival. */
export interface Comparison {
  name: string;
  unit: Unit;
  ours: Contender;
  rivals: readonly Rival[];
  /** What the values of this project are held against, where that is not a rival's. */
  bounds?: Bounds;
  /** Measured in one pair without a warm-up: it takes minutes, and watches itself meanwhile. */
  isMeasuredOnce?: boolean;
}

/** Values that must not be exceeded, in the unit of the comparison. */
export interface Bounds {
  atMost: number;
  aim: number;
}

/** Unit of the values of a comparison. */
export type Unit = 'bytes/s' | 'reads/s' | 'writes/s' | 'seconds' | 'bytes';

/** What a comparison's values measure. */
export function quantityOf(unit: Unit): Quantity {
  if (unit === 'bytes') return 'size';
  return unit === 'seconds' ? 'time' : 'rate';
}

/** A bench as it is asked for by name. */
export interface Bench {
  name: string;
  /** One line for `--list`. */
  summary: string;
  /** Programs that do the measuring; without them the bench is left out. */
  tools: readonly string[];
  /** Makes what the comparisons need and returns them. */
  prepare(context: BenchContext): Promise<readonly Comparison[]>;
}

/** What a run gives its benches. */
export interface BenchContext {
  /** Temporary directory, removed at the end. */
  directory: string;
  cleanup: Cleanup;
  programs: ProgramRunner;
  images: ImageStore;
  /** The built command, to be followed by its arguments. */
  qcow2: Command;
  /** Path of the built library. */
  library: string;
  /** Directory of the programs that use it (bench/clients). */
  clients: string;
  /** Length of a time-based measurement, in seconds. */
  seconds: number;
  /** Length of the reading in the bench `memory`, in seconds. */
  memorySeconds: number;
}

/** Name of this project in tables. */
export const OURS = 'qcow2';
