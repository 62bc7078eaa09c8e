/**
 * Writes what devices read as to a raw image, as sparse as it can be.
 *
 * What the sources know to be zero is not read, and zeroes that turn up in the data are not
 * written where the output reads as zeroes anyway. One buffer is all the memory it takes.
 */

import type { BlockDevice } from '../device/block-device.ts';
import { alignUp } from '../util/bytes.ts';
import type { OutputFile } from './output-file.ts';
import { runSteps } from './progress.ts';
import type { Steps } from './progress.ts';
import { padToSector, SECTOR_BYTES } from './sector-padded.ts';
import { nonZeroRuns } from './zero-runs.ts';
import type { Run } from './zero-runs.ts';

/** Options of {@link convertToRaw}. */
export interface ConvertRawOptions {
  /**
   * Zeroes in the data that make a hole of the output, in bytes, a multiple of 512 (default 4096).
   * 0: no holes at all, space is allocated for every byte.
   */
  sparseBytes?: number;
  /** The output is known to read as zeroes already (default: only if it was just made). */
  outputIsZero?: boolean;
}

/** Default of {@link ConvertRawOptions.sparseBytes}. */
export const DEFAULT_SPARSE_BYTES = 4096;
/** Largest {@link ConvertRawOptions.sparseBytes} (QEMU's bound): a whole buffer is looked at. */
export const MAX_SPARSE_BYTES = 16 * 1024 * 1024;

const MIN_BUFFER_BYTES = 2 * 1024 * 1024;

/** Bytes of the output: each source is rounded up to sectors of 512 bytes. */
export function rawSizeOf(sources: readonly BlockDevice[]): number {
  return sources.reduce((sum, source) => sum + padToSector(source).size, 0);
}

/**
 * Copies the sources, one behind the other, to `output`, which has at least {@link rawSizeOf}
 * bytes. The caller finishes or abandons the output.
 *
 * @throws {Qcow2Error} if a source cannot be read or the output not written
 */
export function convertToRaw(
  sources: readonly BlockDevice[],
  output: OutputFile,
  options: ConvertRawOptions = {},
): void {
  runSteps(convertToRawSteps(sources, output, options));
}

/** {@link convertToRaw}, a step at a time. */
export function* convertToRawSteps(
  sources: readonly BlockDevice[],
  output: OutputFile,
  { sparseBytes = DEFAULT_SPARSE_BYTES, outputIsZero = output.isEmpty }: ConvertRawOptions = {},
): Steps<void> {
  const total = rawSizeOf(sources);
  const writer = new SparseWriter(output, { total, sparseBytes, outputIsZero });
  let base = 0;
  for (const source of sources) {
    const device = padToSector(source);
    for (const run of allocationRuns(device)) {
      for (let at = run.start; at < run.end;) {
        const target = base + at;
        if (run.zero) {
          writer.zero(target, run.end - at);
          at = run.end;
        } else {
          const length = Math.min(run.end - at, writer.roomAt(target));
          device.read(writer.bufferOf(length), at);
          writer.flushBuffer(target, length);
          at += length;
        }
        yield { done: base + at, total };
      }
    }
    base += device.size;
  }
}

/** The device's bytes, in runs that are known to be zero or not, as long as can be. */
function* allocationRuns(device: BlockDevice): Generator<Run & { zero: boolean }> {
  let run: (Run & { zero: boolean }) | undefined;
  for (const { offset, length, zero } of device.extents(0, device.size)) {
    if (run?.zero === zero) {
      run.end = offset + length;
    } else {
      if (run !== undefined) yield run;
      run = { start: offset, end: offset + length, zero };
    }
  }
  if (run !== undefined) yield run;
}

interface SparseWriterOptions {
  total: number;
  sparseBytes: number;
  outputIsZero: boolean;
}

/** Writes a buffer at a time to the output, without the zeroes that it need not hold. */
class SparseWriter {
  readonly #output: OutputFile;
  readonly #sparseBytes: number;
  /** Whether whatever is not written reads as zeroes. */
  readonly #isZero: boolean;
  readonly #buffer: Buffer;
  readonly #blockBytes: number;
  /** Bytes of the output that are dealt with at a time, aligned to that size. */
  readonly #windowBytes: number;

  constructor(output: OutputFile, { total, sparseBytes, outputIsZero }: SparseWriterOptions) {
    this.#output = output;
    this.#sparseBytes = sparseBytes;
    // Holes start and end at multiples of the largest power of two in their size, as QEMU's do.
    this.#blockBytes = 2 ** Math.floor(Math.log2(sparseBytes || SECTOR_BYTES));
    this.#windowBytes = alignUp(Math.max(MIN_BUFFER_BYTES, sparseBytes), this.#blockBytes);
    this.#buffer = Buffer.allocUnsafeSlow(this.#windowBytes);
    if (sparseBytes > 0) {
      // What an old output held is freed as a whole, so that only data need be written.
      this.#isZero = outputIsZero || output.tryZero(0, total, 'free');
    } else if (outputIsZero) {
      this.#isZero = output.tryAllocate(0, total);
    } else {
      this.#isZero = output.tryZero(0, total, 'keep');
    }
  }

  /** Bytes that the buffer takes at an offset of the output: up to the next multiple of its size. */
  roomAt(target: number): number {
    return this.#windowBytes - (target % this.#windowBytes);
  }

  /** Where the next bytes belong, before {@link flushBuffer} writes them. */
  bufferOf(length: number): Buffer {
    return this.#buffer.subarray(0, length);
  }

  /** Writes what was put into {@link bufferOf} to `target`. */
  flushBuffer(target: number, length: number): void {
    const bytes = this.#buffer.subarray(0, length);
    if (this.#sparseBytes === 0) {
      this.#output.write(bytes, target);
      return;
    }
    let done = 0;
    for (const { start, end } of nonZeroRuns(bytes, {
      blockBytes: this.#blockBytes,
      offset: target,
      minimumZeroBytes: this.#sparseBytes,
    })) {
      this.zero(target + done, start - done);
      this.#output.write(bytes.subarray(start, end), target + start);
      done = end;
    }
    this.zero(target + done, length - done);
  }

  /** Makes a range of the output zero, if it is not already. */
  zero(target: number, length: number): void {
    if (!this.#isZero && length > 0) this.#output.writeZeroes(target, length);
  }
}
