/** What `qcow2 serve --stats` counts, in all its threads. */

import type { Image } from '../chain/open.ts';
import { cacheStats, countAllReads, formatStats, statsReport } from '../operations/stats.ts';
import type { CountedFile } from '../operations/stats.ts';
import { allocateStats, RequestStats } from '../util/request-stats.ts';
import { MAX_DECOMPRESSION_THREADS } from '../worker/decompression.ts';
import type { StatsRow } from '../worker/decompression.ts';
import type { CommandIo } from './command.ts';

/** What is counted, and how it is told. */
export interface ServeStatsOptions {
  /** Threads that serve at most, with this one. */
  threads: number;
  /** As text to standard error, or as a line of JSON to standard output. */
  asJson: boolean;
  io: CommandIo;
}

/** See the head of this file. */
export class ServeStats {
  /** To be given to other threads; the first row is this one's. */
  readonly memory: SharedArrayBuffer;
  /** Where this thread counts. */
  readonly requests: RequestStats;
  readonly #images: readonly Image[];
  readonly #files: readonly CountedFile[];
  /** Rows for decompression threads. */
  readonly decompressionRows: StatsRow;
  readonly #output: ServeStatsOptions;

  constructor(images: readonly Image[], options: ServeStatsOptions) {
    const { threads } = options;
    this.memory = allocateStats(threads + MAX_DECOMPRESSION_THREADS);
    this.decompressionRows = { memory: this.memory, row: threads };
    this.requests = new RequestStats(this.memory, 0);
    this.#images = images;
    this.#files = countAllReads(images, this.requests);
    this.#output = options;
  }

  /** From here on tells at every SIGUSR1. */
  heedSignal(): void {
    process.on('SIGUSR1', this.#tell);
  }

  /** Tells what was counted, for the last time. The images have to be open. */
  end(): void {
    process.off('SIGUSR1', this.#tell);
    this.#tell();
  }

  readonly #tell = (): void => {
    const { asJson, io } = this.#output;
    const report = statsReport({
      memory: this.memory,
      files: () => this.#files,
      cache: () => cacheStats(this.#images),
    });
    if (asJson) io.stdout(`${JSON.stringify({ stats: report })}\n`);
    else io.stderr(formatStats(report));
  };
}
