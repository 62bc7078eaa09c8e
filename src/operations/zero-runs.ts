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
  /** Zeroes are looked for in blocks of this many bytes. */
  blockBytes: number;
  /** Runs of zero blocks shorter than this are part of the data around them. */
  minimumZeroBytes: number;
}

/** A whole buffer of this size is looked at first: free space is often that large. */
const COARSE_BYTES = 64 * 1024;

/**
 * The runs of `buffer` that are not zero, in order.
 *
 * Zeroes at the start or end of the buffer count like any others, so the caller aligns its buffers
 * to blocks of the target.
 */
export function* nonZeroRuns(
  buffer: Uint8Array,
  { blockBytes, minimumZeroBytes }: ZeroRunOptions,
): Generator<Run> {
  const { length } = buffer;
  let dataStart = -1;
  let zeroStart = -1;
  for (let at = 0; at < length;) {
    const coarseEnd = Math.min(at + COARSE_BYTES, length);
    const isCoarse = at % COARSE_BYTES === 0 && isAllZero(buffer.subarray(at, coarseEnd));
    const end = isCoarse ? coarseEnd : Math.min(at + blockBytes, length);
    if (isCoarse || isAllZero(buffer.subarray(at, end))) {
      if (zeroStart < 0) zeroStart = at;
    } else {
      if (zeroStart >= 0 && at - zeroStart >= minimumZeroBytes) {
        if (dataStart >= 0) yield { start: dataStart, end: zeroStart };
        dataStart = at;
      } else if (dataStart < 0) {
        dataStart = zeroStart >= 0 ? zeroStart : at;
      }
      zeroStart = -1;
    }
    at = end;
  }
  const tailIsHole = zeroStart >= 0 && length - zeroStart >= minimumZeroBytes;
  if (dataStart >= 0) yield { start: dataStart, end: tailIsHole ? zeroStart : length };
  else if (zeroStart >= 0 && !tailIsHole) yield { start: zeroStart, end: length };
}
