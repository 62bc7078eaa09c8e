/**
 * What a server or mount tells about itself: requests, times, caches, and what it read of which file,
 * as a document and as text.
 */

import type { Image } from '../chain/open.ts';
import { FileDevice } from '../device/file.ts';
import type { SharedClusterCache } from '../qcow2/cluster-cache/shared-cluster-cache.ts';
import { MAX_COUNTED_FILES, REQUEST_KINDS, sumStats } from '../util/request-stats.ts';
import type { KindTotals, RequestKindName, RequestStats } from '../util/request-stats.ts';

/** What the caches of decompressed clusters have counted, all threads together. */
export interface CacheStats {
  /** Reads of a compressed cluster, or a part of one, that were answered from the cache. */
  hits: number;
  /** Those for which the cluster had to be decompressed. */
  misses: number;
  /** Those of `hits` that were the first of a cluster that had been read ahead. */
  readAheadHits: number;
  /** Bytes of clusters that were decompressed before anybody asked for them. */
  readAheadBytes: number;
  /** Those of `readAheadBytes` that were dropped without ever being asked for. */
  wastedBytes: number;
}

/** A file that is counted, in the order of the counters. */
export interface CountedFile {
  /** Position in the backing chain, 0 for the base. */
  layer: number;
  path: string;
}

/** What a report is made from. */
export interface StatsSource {
  /** As made by `allocateStats`. */
  memory: SharedArrayBuffer;
  files: () => readonly CountedFile[];
  /** Undefined where nothing is compressed. */
  cache?: () => CacheStats | undefined;
  /** Requests that wait or are worked on now, where that can be told. */
  queued?: () => number | undefined;
}

/** Requests of one kind. */
export interface KindReport {
  requests: number;
  errors: number;
  bytes: number;
  /** Microseconds from when a request came to when its reply left. */
  latencyUs: { mean: number; p50: number; p99: number; max: number };
}

/** Everything, as it is written to `stats.json`. */
export interface StatsReport {
  /** When counting began, ISO 8601. */
  since: string;
  seconds: number;
  requests: Record<RequestKindName, KindReport>;
  /**
   * How many requests a request found under way, itself among them, where that is counted; and how
   * many there are now, where that can be told.
   */
  queueDepth: { mean: number | null; max: number | null; now: number | null };
  cache: CacheStats | null;
  /** What was read of each file of each layer, by the server itself. */
  layers: { layer: number; file: string; reads: number; bytes: number }[];
}

/**
 * Has a thread count what it reads of the files of an image.
 *
 * @param first how many files of other images are counted before these
 * @returns the files, the base's first: the same in all threads that open the same image
 */
export function countReads(image: Image, stats: RequestStats, first = 0): CountedFile[] {
  const layers: Image[] = [];
  for (let layer: Image | undefined = image; layer !== undefined; layer = layer.backing) {
    layers.unshift(layer);
  }
  const counted: CountedFile[] = [];
  for (const [layer, each] of layers.entries()) {
    const dataFile = each.format === 'qcow2' ? each.dataFile?.device : undefined;
    for (const device of [each.file, dataFile]) {
      if (!(device instanceof FileDevice)) continue;
      device.readCounter = stats.fileCounter(first + counted.length, device.descriptor);
      counted.push({ layer, path: device.path });
    }
  }
  return counted;
}

/** {@link countReads} for several images, each counted after those before it. */
export function countAllReads(images: readonly Image[], stats: RequestStats): CountedFile[] {
  const counted: CountedFile[] = [];
  for (const image of images) counted.push(...countReads(image, stats, counted.length));
  return counted;
}

/** What the caches of images and their backing chains have counted; undefined without any. */
export function cacheStats(images: readonly Image[]): CacheStats | undefined {
  const caches = new Set<SharedClusterCache>();
  for (const image of images) {
    for (let layer: Image | undefined = image; layer !== undefined; layer = layer.backing) {
      const cache = layer.format === 'qcow2' ? layer.clusterCache : undefined;
      if (cache !== undefined) caches.add(cache);
    }
  }
  if (caches.size === 0) return undefined;
  const sum = { hits: 0, misses: 0, readAheadHits: 0, readAheadBytes: 0, wastedBytes: 0 };
  for (const cache of caches) {
    const counters = cache.counters();
    for (const name of Object.keys(sum) as (keyof CacheStats)[]) sum[name] += counters[name];
  }
  return sum;
}

/** Adds up what has been counted so far. */
export function statsReport({ memory, files, cache, queued }: StatsSource): StatsReport {
  const totals = sumStats(memory);
  const isDepthKnown = totals.maxDepth > 0;
  return {
    since: new Date(totals.sinceMs).toISOString(),
    seconds: rounded((Date.now() - totals.sinceMs) / 1000),
    requests: Object.fromEntries(
      REQUEST_KINDS.map((kind) => [kind, kindReport(totals.kinds[kind])]),
    ) as StatsReport['requests'],
    queueDepth: {
      mean: isDepthKnown ? rounded(totals.meanDepth) : null,
      max: isDepthKnown ? totals.maxDepth : null,
      now: queued?.() ?? null,
    },
    cache: cache?.() ?? null,
    layers: files()
      .slice(0, MAX_COUNTED_FILES)
      .map(({ layer, path }, index) => ({ layer, file: path, ...totals.file(index) })),
  };
}

function kindReport({ count, errors, bytes, meanMs, p50Ms, p99Ms, maxMs }: KindTotals): KindReport {
  const [mean, p50, p99, max] = [meanMs, p50Ms, p99Ms, maxMs].map((ms) => rounded(ms * 1000));
  return {
    requests: count,
    errors,
    bytes,
    latencyUs: { mean: mean!, p50: p50!, p99: p99!, max: max! },
  };
}

/** The report as JSON, with a line end. */
export function formatStatsJson(report: StatsReport): string {
  return `${JSON.stringify(report, undefined, 4)}\n`;
}

const HEADINGS = ['', 'requests', 'errors', 'bytes', 'mean', 'p50', 'p99', 'max'];

/** The report for people. */
export function formatStats(report: StatsReport): string {
  const { since, seconds, requests, layers } = report;
  const rows = Object.entries(requests)
    .filter(([kind, { requests: count }]) => count > 0 || kind === 'read')
    .map(([kind, one]) => [kind, ...kindCells(one)]);
  const files = layers.map(({ layer, file, reads, bytes }) => {
    return [String(layer), String(reads), formatBytes(bytes), printable(file)];
  });
  const lines = [
    `${seconds} s, since ${since}`,
    ...alignRight([HEADINGS, ...rows]),
    ...queueLines(report),
    ...cacheLines(report),
    ...(files.length === 0 ? [] : alignRight([['layer', 'reads', 'bytes', 'file'], ...files])),
  ];
  return `${lines.join('\n')}\n`;
}

function kindCells({ requests, errors, bytes, latencyUs }: KindReport): string[] {
  const { mean, p50, p99, max } = latencyUs;
  const times = [mean, p50, p99, max].map(formatTime);
  return [String(requests), String(errors), formatBytes(bytes), ...times];
}

function queueLines({ queueDepth: { mean, max, now } }: StatsReport): string[] {
  const words = [
    ...(mean === null ? [] : [`${mean} on average, ${max ?? mean} at most`]),
    ...(now === null ? [] : [`${now} now`]),
  ];
  return words.length === 0 ? [] : [`queue depth: ${words.join('; ')}`];
}

function cacheLines({ cache }: StatsReport): string[] {
  if (cache === null) return [];
  const { hits, misses, readAheadHits, readAheadBytes, wastedBytes } = cache;
  return [
    `cluster cache: ${hits} hits, ${misses} misses (${percentage(hits, hits + misses)} hits)`,
    `read-ahead: ${readAheadHits} hits, ${formatBytes(readAheadBytes)} read, ` +
      `${formatBytes(wastedBytes)} wasted (${percentage(wastedBytes, readAheadBytes)})`,
  ];
}

/**
 * How long the texts of a report can become, at least: numbers grow, and readers of a file that
 * is made anew for each of them count on a size that stays.
 */
export function longestStats(report: StatsReport, format: (report: StatsReport) => string): number {
  const most = JSON.stringify(report, (_key, value: unknown) =>
    typeof value === 'number' || value === null ? Number.MAX_SAFE_INTEGER : value,
  );
  const cache: CacheStats = {
    hits: Number.MAX_SAFE_INTEGER,
    misses: Number.MAX_SAFE_INTEGER,
    readAheadHits: Number.MAX_SAFE_INTEGER,
    readAheadBytes: Number.MAX_SAFE_INTEGER,
    wastedBytes: Number.MAX_SAFE_INTEGER,
  };
  const longest = { ...(JSON.parse(most) as StatsReport), cache };
  return Math.ceil((Buffer.byteLength(format(longest)) + SLACK_BYTES) / 1024) * 1024;
}

/** Sizes in words are not longest where the number is. */
const SLACK_BYTES = 512;

/** Columns as wide as they have to be; all but the first and the last stand on the right. */
function alignRight(rows: readonly (readonly string[])[]): string[] {
  const last = rows[0]!.length - 1;
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  return rows.map((row) => {
    const cells = row.map((cell, column) => {
      const isName = column === 0 || (column === last && rows[0]![last] === 'file');
      return isName ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!);
    });
    return cells.join('  ').trimEnd();
  });
}

const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];

function formatBytes(bytes: number): string {
  let [value, unit] = [bytes, 0];
  while (value >= 1024 && unit < UNITS.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${unit === 0 ? value : threeDigits(value)} ${UNITS[unit]}`;
}

function formatTime(microseconds: number): string {
  if (microseconds >= 1e6) return `${threeDigits(microseconds / 1e6)} s`;
  if (microseconds >= 1e3) return `${threeDigits(microseconds / 1e3)} ms`;
  return `${threeDigits(microseconds)} µs`;
}

function threeDigits(value: number): string {
  if (value >= 100) return value.toFixed(0);
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}

function percentage(part: number, whole: number): string {
  return `${whole === 0 ? 0 : Math.round((part / whole) * 1000) / 10}%`;
}

/** Three decimals. */
function rounded(value: number): number {
  return Math.round(value * 1000) / 1000;
}

/** Names come from the host and from images: no control characters on the terminal. */
function printable(text: string): string {
  return text.replace(/\p{Cc}|\p{Cf}/gu, '?');
}
