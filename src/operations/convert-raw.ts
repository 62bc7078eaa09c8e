/** A raw image as the target of a conversion, as sparse as it can be. */

import type { ChunkSpec } from './convert-chunk.ts';
import type { ConvertTarget } from './convert.ts';
import type { OutputFile } from './output-file.ts';
import { SECTOR_BYTES } from './sector-padded.ts';
import { alignUp } from '../util/bytes.ts';

/** Default of {@link RawTargetOptions.sparseBytes}. */
export const DEFAULT_SPARSE_BYTES = 4096;
/** Largest {@link RawTargetOptions.sparseBytes} (QEMU's bound): a whole buffer is looked at. */
export const MAX_SPARSE_BYTES = 16 * 1024 * 1024;

/** How a {@link RawTarget} is written. */
export interface RawTargetOptions {
  /** Bytes that will be written. */
  total: number;
  /**
   * Zeroes in the data that make a hole of the output, in bytes, a multiple of 512. 0: no holes at
   * all, space is allocated for every byte.
   */
  sparseBytes: number;
  /** The output is known to read as zeroes already. */
  outputIsZero: boolean;
}

/** Writes to a file without the zeroes that it need not hold. */
export class RawTarget implements ConvertTarget {
  readonly #output: OutputFile;
  /** Whether whatever is not written reads as zeroes. */
  readonly #isZero: boolean;

  constructor(output: OutputFile, { total, sparseBytes, outputIsZero }: RawTargetOptions) {
    this.#output = output;
    if (sparseBytes > 0) {
      // What an old output held is freed as a whole, so that only data need be written.
      this.#isZero = outputIsZero || output.tryZero(0, total, 'free');
    } else if (outputIsZero) {
      this.#isZero = output.tryAllocate(0, total);
    } else {
      this.#isZero = output.tryZero(0, total, 'keep');
    }
  }

  write(bytes: Uint8Array, offset: number): void {
    this.#output.write(bytes, offset);
  }

  writeCompressed(): never {
    throw new TypeError('a raw image has no compressed clusters');
  }

  zero(offset: number, length: number): void {
    if (!this.#isZero && length > 0) this.#output.writeZeroes(offset, length);
  }
}

/** How zeroes are looked for that leave a hole of `sparseBytes` or more; undefined for 0. */
export function sparseSpec(sparseBytes: number): ChunkSpec['sparse'] {
  if (sparseBytes === 0) return undefined;
  // Holes start and end at multiples of the largest power of two in their size, as QEMU's do.
  const blockBytes = 2 ** Math.floor(Math.log2(sparseBytes || SECTOR_BYTES));
  return { blockBytes, minimumZeroBytes: sparseBytes };
}

/** Bytes of a buffer in which zeroes of that size are found: at least `minimum`. */
export function chunkBytesFor(sparseBytes: number, minimum: number): number {
  const spec = sparseSpec(sparseBytes);
  return alignUp(Math.max(minimum, sparseBytes), spec?.blockBytes ?? SECTOR_BYTES);
}
