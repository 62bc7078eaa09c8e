/**
 * Finding the end of a Zstandard frame (RFC 8878, section 3.1.1) without decompressing it.
 *
 * A compressed cluster's length is only known in sectors, and decoders reject what follows the
 * last frame, so the frames are measured first.
 */

import { readU32 } from '../util/bytes.ts';

/** Magic numbers as they read big-endian; the format stores them little-endian. */
const FRAME_MAGIC = 0x28b52ffd;
const SKIPPABLE_MAGIC = 0x2a4d18;

/** What zstd's own decoder accepts unless told otherwise: 128 MiB. */
const MAX_WINDOW_LOG = 27;

const RLE_BLOCK = 1;
const RESERVED_BLOCK = 3;

/** Bytes of the dictionary id field, by its flag. */
const DICTIONARY_ID_BYTES = [0, 1, 2, 4] as const;
/** Bytes of the content size field, by its flag (0 means 1 with a single segment). */
const CONTENT_SIZE_BYTES = [0, 2, 4, 8] as const;

/**
 * The length in bytes of the frame that starts at `start`, or undefined if it is not a frame or
 * is cut short.
 */
export function zstdFrameLength(input: Uint8Array, start: number): number | undefined {
  if (input.length - start < 6) return undefined;
  if (isSkippable(input, start)) {
    if (input.length - start < 8) return undefined;
    const length = 8 + readU32LittleEndian(input, start + 4);
    return start + length <= input.length ? length : undefined;
  }
  if (readU32(input, start) !== FRAME_MAGIC) return undefined;
  const descriptor = input[start + 4]!;
  const isSingleSegment = (descriptor & 0x20) !== 0;
  const hasChecksum = (descriptor & 0x04) !== 0;
  const contentSizeFlag = descriptor >>> 6;
  let at = start + 5;
  if (!isSingleSegment) {
    if (windowLog(input[at]!) > MAX_WINDOW_LOG) return undefined;
    at += 1;
  }
  at += DICTIONARY_ID_BYTES[(descriptor & 3) as 0 | 1 | 2 | 3];
  at +=
    contentSizeFlag === 0 && isSingleSegment
      ? 1
      : CONTENT_SIZE_BYTES[contentSizeFlag as 0 | 1 | 2 | 3];
  for (;;) {
    if (at + 3 > input.length) return undefined;
    const block = input[at]! | (input[at + 1]! << 8) | (input[at + 2]! << 16);
    const type = (block >>> 1) & 3;
    if (type === RESERVED_BLOCK) return undefined;
    at += 3 + (type === RLE_BLOCK ? 1 : block >>> 3);
    if ((block & 1) !== 0) break;
  }
  if (hasChecksum) at += 4;
  return at <= input.length ? at - start : undefined;
}

/** Power of two of the window that a window descriptor asks for, rounded up. */
function windowLog(descriptor: number): number {
  return 10 + (descriptor >>> 3) + ((descriptor & 7) === 0 ? 0 : 1);
}

function isSkippable(input: Uint8Array, start: number): boolean {
  // 0x184D2A50 to 0x184D2A5F, little-endian.
  const tail = (input[start + 1]! << 16) | (input[start + 2]! << 8) | input[start + 3]!;
  return (input[start]! & 0xf0) === 0x50 && tail === SKIPPABLE_MAGIC;
}

function readU32LittleEndian(bytes: Uint8Array, offset: number): number {
  return (
    (bytes[offset]! |
      (bytes[offset + 1]! << 8) |
      (bytes[offset + 2]! << 16) |
      (bytes[offset + 3]! << 24)) >>>
    0
  );
}
