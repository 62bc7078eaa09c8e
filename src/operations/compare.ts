/**
 * Compares what two devices read as, without reading what both know to be zero.
 *
 * A device that is shorter than the other is taken to go on with zeroes. Offsets of differences
 * are those of the sector that they are in, as qemu-img's are.
 */

import type { BlockDevice, Extent } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import type { ErrorLocation } from '../errors.ts';
import { alignedBuffer } from '../host/aligned-buffer.ts';
import { isAllZero } from '../util/bytes.ts';
import { runSteps } from './progress.ts';
import type { Steps } from './progress.ts';
import { padToSector, SECTOR_BYTES } from './sector-padded.ts';

/** Options of {@link compareDevices}. */
export interface CompareOptions {
  /** Sizes and the allocation of every range must be equal too (default false). */
  strict?: boolean;
  /**
   * Sizes of the windows, in bytes, through which each device's extents are looked at when
   * allocation is compared (default: none). QEMU tells those of a qcow2 image by one slice of an
   * L2 table at a time, and takes an extent that reaches the end of the disk for different from
   * one that does not.
   */
  extentWindows?: readonly [first: number | undefined, second: number | undefined];
}

/** Where two devices first differ, or that they do not. */
export type CompareResult =
  | {
      identical: true;
      /** Whether one is longer, with zeroes. */
      sizesDiffer: boolean;
    }
  | {
      identical: false;
      /** `size` and `allocation` are differences in strict comparisons only. */
      kind: 'size' | 'allocation' | 'content';
      /** First byte of the sector, or of the range that is allocated differently. */
      offset: number;
      /** Whether the difference is past the end of the shorter device. */
      isPastShorter: boolean;
    };

/** A comparison that could not be finished. */
export class CompareError extends Qcow2Error {
  /** Whether the bytes could not be read, or how they are stored could not be found out. */
  readonly phase: 'read' | 'extents';
  /** Which of the two devices failed. */
  readonly side: 'first' | 'second';

  constructor(phase: 'read' | 'extents', side: 'first' | 'second', cause: Qcow2Error) {
    super(cause.code, cause.problem, locationOf(cause));
    this.phase = phase;
    this.side = side;
  }
}

function locationOf(cause: Qcow2Error): ErrorLocation {
  const { file, structure, offset, hint } = cause;
  return { file, structure, offset, hint, cause };
}

/** Bytes compared at a time. */
const BUFFER_BYTES = 2 * 1024 * 1024;
/** Steps over extents that need no reading, between two reports of progress. */
const QUIET_STEPS = 256;

/**
 * Compares two devices.
 * @throws {CompareError} if one of them cannot be read
 */
export function compareDevices(
  first: BlockDevice,
  second: BlockDevice,
  options: CompareOptions = {},
): CompareResult {
  return runSteps(compareSteps(first, second, options));
}

/** {@link compareDevices}, a step at a time. */
export function* compareSteps(
  first: BlockDevice,
  second: BlockDevice,
  { strict = false, extentWindows = [undefined, undefined] }: CompareOptions = {},
): Steps<CompareResult> {
  const [a, b] = [new Side('first', first), new Side('second', second)];
  const total = Math.max(a.size, b.size);
  const sizesDiffer = a.size !== b.size;
  const shorter = Math.min(a.size, b.size);
  if (strict && sizesDiffer) {
    return { identical: false, kind: 'size', offset: shorter, isPastShorter: true };
  }
  let quietSteps = 0;
  for (let offset = 0; offset < shorter;) {
    const extentA = a.extentAt(offset, extentWindows[0]);
    const extentB = b.extentAt(offset, extentWindows[1]);
    if (strict && allocationOf(extentA, a.size) !== allocationOf(extentB, b.size)) {
      return { identical: false, kind: 'allocation', offset, isPastShorter: false };
    }
    let length = Math.min(endOf(extentA), endOf(extentB), shorter) - offset;
    if (extentA.zero && extentB.zero) {
      quietSteps++;
    } else {
      length = Math.min(length, BUFFER_BYTES);
      const difference = firstDifference(a, b, { extentA, extentB, offset, length });
      if (difference >= 0) {
        const at = offset + difference;
        return { identical: false, kind: 'content', offset: at, isPastShorter: false };
      }
      quietSteps = QUIET_STEPS;
    }
    offset += length;
    if (quietSteps >= QUIET_STEPS || offset === shorter) {
      quietSteps = 0;
      yield { done: offset, total };
    }
  }
  const longer = a.size > b.size ? a : b;
  for (let offset = shorter; offset < total;) {
    const extent = longer.extentAt(offset, undefined);
    const remaining = endOf(extent) - offset;
    const length = extent.zero ? remaining : Math.min(remaining, BUFFER_BYTES);
    if (!extent.zero) {
      const bytes = longer.read(offset, length);
      if (!isAllZero(bytes)) {
        const at = offset + firstNonZeroSector(bytes);
        return { identical: false, kind: 'content', offset: at, isPastShorter: true };
      }
    }
    offset += length;
    yield { done: offset, total };
  }
  return { identical: true, sizesDiffer };
}

/** One of the two devices, read through a buffer of its own. */
class Side {
  readonly size: number;
  readonly #name: 'first' | 'second';
  readonly #device: BlockDevice;
  readonly #buffer = alignedBuffer(BUFFER_BYTES);
  #extents: Iterator<Extent> | undefined;
  #extent: Extent | undefined;

  constructor(name: 'first' | 'second', device: BlockDevice) {
    this.#name = name;
    this.#device = padToSector(device);
    this.size = this.#device.size;
  }

  /** Bytes of the device, valid until the next call. */
  read(offset: number, length: number): Buffer {
    const bytes = this.#buffer.subarray(0, length);
    this.#attempt('read', () => {
      this.#device.read(bytes, offset);
    });
    return bytes;
  }

  /**
   * The extent that `offset` is in, cut off at the next multiple of `window`. Offsets must not
   * decrease from call to call.
   */
  extentAt(offset: number, window: number | undefined): Extent {
    const extent = this.#attempt('extents', () => {
      this.#extents ??= this.#device.extents(offset, this.size - offset)[Symbol.iterator]();
      while (this.#extent === undefined || endOf(this.#extent) <= offset) {
        const next = this.#extents.next();
        if (next.done === true) {
          throw new Qcow2Error('CORRUPT', 'the extents end before the device', { offset });
        }
        this.#extent = next.value;
      }
      return this.#extent;
    });
    if (window === undefined) return extent;
    const windowEnd = (Math.floor(offset / window) + 1) * window;
    if (windowEnd >= endOf(extent)) return extent;
    return { ...extent, length: windowEnd - extent.offset };
  }

  #attempt<Result>(phase: CompareError['phase'], action: () => Result): Result {
    try {
      return action();
    } catch (error) {
      throw error instanceof Qcow2Error ? new CompareError(phase, this.#name, error) : error;
    }
  }
}

function endOf(extent: Extent): number {
  return extent.offset + extent.length;
}

/** The properties of an extent that strict comparisons hold against each other. */
function allocationOf(extent: Extent, size: number): string {
  const { kind, zero, present, hostOffset } = extent;
  const isStored = kind === 'data' || kind === 'compressed';
  return [
    isStored,
    kind === 'compressed',
    zero,
    present,
    hostOffset !== undefined,
    endOf(extent) === size,
  ].join();
}

/** What of both devices is held against each other. */
interface ComparedRange {
  extentA: Extent;
  extentB: Extent;
  offset: number;
  length: number;
}

/** Offset in the range of the first sector that differs; -1 if there is none. */
function firstDifference(a: Side, b: Side, range: ComparedRange): number {
  const { extentA, extentB, offset, length } = range;
  if (extentA.zero || extentB.zero) {
    const bytes = (extentA.zero ? b : a).read(offset, length);
    return isAllZero(bytes) ? -1 : firstNonZeroSector(bytes);
  }
  const bytesA = a.read(offset, length);
  const bytesB = b.read(offset, length);
  if (bytesA.equals(bytesB)) return -1;
  for (let at = 0; at < length; at += SECTOR_BYTES) {
    const end = Math.min(at + SECTOR_BYTES, length);
    if (bytesA.compare(bytesB, at, end, at, end) !== 0) return at;
  }
  return -1;
}

/** Offset of the first sector that is not all zero, of bytes that are not. */
function firstNonZeroSector(bytes: Uint8Array): number {
  let at = 0;
  while (isAllZero(bytes.subarray(at, at + SECTOR_BYTES))) at += SECTOR_BYTES;
  return at;
}
