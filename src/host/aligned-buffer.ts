/** Memory that the kernel copies to as fast as it can. */

import { loadLibc } from './libc.ts';

/** A line of the processor's cache. */
const LINE_BYTES = 64n;

/**
 * Memory of `length` bytes, not zeroed, that begins at a line of the processor's cache.
 *
 * Memory of its own that Node hands out begins 16 bytes behind one. Some processors (AMD's, from
 * Zen 3 on) copy to there a quarter to a third slower. Without koffi it begins anywhere.
 */
export function alignedBuffer(length: number): Buffer {
  const room = Buffer.allocUnsafeSlow(length + Number(LINE_BYTES));
  const address = loadLibc()?.address(room) ?? 0n;
  const start = Number(-address & (LINE_BYTES - 1n));
  return room.subarray(start, start + length);
}
