/**
 * What a mount tells about itself, in the files `stats` and `stats.json` of its root, and to whoever
 * started it with `--stats`.
 */

import { readFileSync, writeSync } from 'node:fs';
import type { Image } from '../chain/open.ts';
import type { LiveText } from '../export/fuse/image-tree.ts';
import { SharedTexts } from '../export/fuse/shared-texts.ts';
import { findMount } from '../host/mountinfo.ts';
import {
  cacheStats,
  countReads,
  formatStats,
  formatStatsJson,
  longestStats,
  statsReport,
} from '../operations/stats.ts';
import type { CountedFile, StatsReport } from '../operations/stats.ts';
import { allocateStats, RequestStats } from '../util/request-stats.ts';

/** Memory of all threads of a mount. Can be posted. */
export interface MountStatsMemory {
  counters: SharedArrayBuffer;
  texts: SharedArrayBuffer;
}

/** Memory for so many threads that serve, and count. */
export function allocateMountStats(threads: number): MountStatsMemory {
  return { counters: allocateStats(threads), texts: SharedTexts.allocate() };
}

/** What one thread of a mount counts, and all of them tell. */
export class MountStats {
  readonly requests: RequestStats;
  readonly texts: SharedTexts;
  readonly #counters: SharedArrayBuffer;
  readonly #directory: string;
  #image: Image | undefined;
  #files: readonly CountedFile[] = [];

  /**
   * @param directory where it is mounted
   * @param memory of all threads (default: of this one alone)
   * @param row the number of this thread, from 0
   */
  constructor(directory: string, memory = allocateMountStats(1), row = 0) {
    this.requests = new RequestStats(memory.counters, row);
    this.texts = new SharedTexts(memory.texts);
    this.#counters = memory.counters;
    this.#directory = directory;
  }

  /** Has what this thread reads of the files of the mounted image counted. */
  watch(image: Image): void {
    this.#image = image;
    this.#files = countReads(image, this.requests);
  }

  /** What all threads have counted so far. */
  report(): StatsReport {
    return statsReport({
      memory: this.#counters,
      files: () => this.#files,
      cache: () => this.#image && cacheStats([this.#image]),
      queued: () => waitingRequests(this.#directory),
    });
  }

  /**
   * Writes what was counted to standard error as text, or to standard output as a line of JSON: past
   * Node's streams, which a thread that has been blocked would not get to flush.
   */
  print(format: 'human' | 'json'): void {
    const report = this.report();
    const isJson = format === 'json';
    const text = isJson ? `${JSON.stringify({ stats: report })}\n` : formatStats(report);
    try {
      writeSync(isJson ? 1 : 2, text);
    } catch {
      // Nobody listens any more.
    }
  }

  /** The files of the root that tell it. */
  get liveTexts(): Record<'stats' | 'stats.json', LiveText> {
    const text = (format: (report: StatsReport) => string): LiveText => ({
      content: () => format(this.report()),
      longest: () => longestStats(this.report(), format),
    });
    return { stats: text(formatStats), 'stats.json': text(formatStatsJson) };
  }
}

/**
 * Requests that the kernel has for a mount, or is waiting for; undefined where it does not tell, for
 * want of the fusectl filesystem, or of the right to look.
 */
function waitingRequests(directory: string): number | undefined {
  try {
    // As in `0:45`; it asks nothing of the mount itself, which may be served by this very thread.
    const minor = findMount(directory)?.device.split(':')[1];
    return Number(readFileSync(`/sys/fs/fuse/connections/${minor}/waiting`, 'utf8'));
  } catch {
    return undefined;
  }
}
