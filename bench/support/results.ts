/**
 * Results as files: one JSON document a bench, written by a run, and read again to be reported or to
 * be compared with.
 */

import { mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import type { Environment } from './environment.ts';
import type { ComparisonResult } from './measure.ts';

/** Settings that a result depends on. */
export interface ResultSettings {
  pairs: number;
  sizeBytes: number;
  seconds: number;
  /** Undefined in results that are older than the bench `memory`. */
  memorySeconds?: number;
}

/** What a run leaves of one bench. */
export interface BenchResult {
  bench: string;
  /** ISO 8601. */
  date: string;
  environment: Environment;
  settings: ResultSettings;
  comparisons: ComparisonResult[];
}

/** Writes `NAME.json` into a directory, which is made if need be. */
export function writeResult(directory: string, result: BenchResult): void {
  mkdirSync(directory, { recursive: true });
  const file = path.join(directory, `${result.bench}.json`);
  writeFileSync(file, `${JSON.stringify(result, undefined, 2)}\n`);
}

/**
 * Reads results.
 *
 * @param place a file, or a directory with one a bench
 * @throws {Error} if there is none, or one is not what {@link writeResult} writes
 */
export function readResults(place: string): BenchResult[] {
  const stats = statSync(place, { throwIfNoEntry: false });
  if (stats === undefined) throw new Error(`no results: ${place} is not there`);
  if (!stats.isDirectory()) return [readResult(place)];
  const files = readdirSync(place)
    .filter((name) => name.endsWith('.json'))
    .sort();
  if (files.length === 0) throw new Error(`no results: ${place} holds no JSON files`);
  return files.map((name) => readResult(path.join(place, name)));
}

function readResult(file: string): BenchResult {
  let parsed: unknown;
  try {
    parsed = JSON.parse(readFileSync(file, 'utf8'));
  } catch (error) {
    throw new Error(`${file} is not JSON: ${(error as Error).message}`, { cause: error });
  }
  if (!isResult(parsed)) throw new Error(`${file} is not the result of a bench`);
  return parsed;
}

function isResult(value: unknown): value is BenchResult {
  if (value === null || typeof value !== 'object') return false;
  const { bench, settings, comparisons } = value as Partial<BenchResult>;
  if (typeof bench !== 'string' || typeof settings?.pairs !== 'number') return false;
  return Array.isArray(comparisons) && comparisons.every(isComparison);
}

function isComparison({ name, ratios }: Partial<ComparisonResult>): boolean {
  if (typeof name !== 'string' || !Array.isArray(ratios)) return false;
  return ratios.every(({ rival, summary }: Partial<ComparisonResult['ratios'][number]>) => {
    return typeof rival === 'string' && typeof summary?.median === 'number';
  });
}
