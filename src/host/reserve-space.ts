/**
 * Reserving space for what is about to be written, where that makes writing faster.
 *
 * ext4 looks after each block of 4 KiB that is written without space of its own. Space that is
 * reserved in one call before takes a quarter to a third less time for writes of 2 MiB, and the
 * file ends up the same.
 */

import { statfsSync } from 'node:fs';
import { Qcow2Error } from '../errors.ts';
import { fallocate } from './fallocate.ts';
import type { FileRange } from './fallocate.ts';

const EXT4_MAGIC = 0xef53;
/** Shorter writes are not worth a call. */
const MIN_BYTES = 256 * 1024;

/** Reserves space for the writes to one file. */
export class SpaceReserver {
  #isWorthwhile: boolean;

  /** @param path of the file, which exists */
  constructor(path: string) {
    this.#isWorthwhile = process.platform === 'linux' && filesystemOf(path) === EXT4_MAGIC;
  }

  /**
   * Reserves space for a range that is about to be written, if that makes it faster. The file may
   * become longer by it. Whatever is wrong, writing meets it too.
   */
  prepare(range: FileRange): void {
    if (!this.#isWorthwhile || range.length < MIN_BYTES) return;
    try {
      this.#isWorthwhile = fallocate('allocate', range);
    } catch (error) {
      if (!(error instanceof Qcow2Error)) throw error;
      this.#isWorthwhile = false;
    }
  }
}

function filesystemOf(path: string): number | undefined {
  try {
    return statfsSync(path).type;
  } catch {
    return undefined;
  }
}
