/** Finding what of a buffer need not be written to a target that already reads as zeroes. */

import { isAllZero } from '../util/bytes.ts';

/** A run of a buffer. */
export interface Run {
  start: number;
  /** One past the last byte. */
  end: number;
}

/** How {@link nonZeroRuns} looks for zeroes. */
export interface ZeroRunOptions {
  /** Zeroes are looked for in blocks of this many bytes, a power of two. */
  blockBytes: number;
  /** Where in a block the buffer starts: its offset in the target. */
  offset: number;
  /** Runs of zero blocks behind data that are shorter than this are part of that data. */
  minimumZeroBytes: number;
}

/** A whole buffer of this size is looked at first: free space is often that large. */
const COARSE_BYTES = 64 * 1024;

/**
 * The runs of `buffer` that are not zero, in order.
 *
 * Zeroes at the start of the buffer are left out however few they are: they are not between two
 * pieces of data that could be one.
 */
export function* nonZeroRuns(
  buffer: Uint8Array,
  { blockBytes, offset, minimumZeroBytes }: ZeroRunOptions,
): Generator<Run> {
  const { length } = buffer;
  let dataStart = -1;
  let zeroStart = -1;
  for (let at = 0; at < length;) {
    const coarseEnd = Math.min(at + COARSE_BYTES, length);
    const isCoarse =
      blockBytes < COARSE_BYTES &&
      (offset + at) % COARSE_BYTES === 0 &&
      buffer[at] === 0 &&
      isAllZero(buffer.subarray(at, coarseEnd));
    const blockEnd = at + blockBytes - ((offset + at) % blockBytes);
    const end = isCoarse ? coarseEnd : Math.min(blockEnd, length);
    // Most data shows itself in its first byte, without a call.
    if (isCoarse || (buffer[at] === 0 && isAllZero(buffer.subarray(at, end)))) {
      if (zeroStart < 0) zeroStart = at;
    } else {
      if (zeroStart >= 0 && at - zeroStart >= minimumZeroBytes) {
        if (dataStart >= 0) yield { start: dataStart, end: zeroStart };
        dataStart = at;
      } else if (dataStart < 0) {
        dataStart = at;
      }
      zeroStart = -1;
    }
    at = end;
  }
  const tailIsHole = zeroStart >= 0 && length - zeroStart >= minimumZeroBytes;
  if (dataStart >= 0) yield { start: dataStart, end: tailIsHole ? zeroStart : length };
}
