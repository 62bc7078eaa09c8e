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
/** Filesystems allocate blocks of this size: looking for smaller zeroes would gain nothing. */
const BLOCK_BYTES = 4096;

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
          device.read(writer.bufferFor(target, length), at);
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
    this.#blockBytes = sparseBytes > 0 && sparseBytes < BLOCK_BYTES ? SECTOR_BYTES : BLOCK_BYTES;
    this.#windowBytes = alignUp(Math.max(MIN_BUFFER_BYTES, sparseBytes), BLOCK_BYTES);
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

  /** Where the bytes for `target` belong. The buffer keeps the alignment of the output's blocks. */
  bufferFor(target: number, length: number): Buffer {
    const start = target % BLOCK_BYTES;
    return this.#buffer.subarray(start, start + length);
  }

  /** Writes the bytes that were put into {@link bufferFor}. */
  flushBuffer(target: number, length: number): void {
    const lead = target % BLOCK_BYTES;
    const start = target - lead;
    const bytes = this.#buffer.subarray(0, lead + length);
    if (this.#sparseBytes === 0) {
      this.#output.write(bytes.subarray(lead), target);
      return;
    }
    bytes.fill(0, 0, lead);
    const options = { blockBytes: this.#blockBytes, minimumZeroBytes: this.#sparseBytes };
    let done = lead;
    for (const run of nonZeroRuns(bytes, options)) {
      const from = Math.max(run.start, lead);
      if (run.end <= from) continue;
      this.zero(start + done, from - done);
      this.#output.write(bytes.subarray(from, run.end), start + from);
      done = run.end;
    }
    this.zero(start + done, bytes.length - done);
  }

  /** Makes a range of the output zero, if it is not already. */
  zero(target: number, length: number): void {
    if (!this.#isZero && length > 0) this.#output.writeZeroes(target, length);
  }
}
