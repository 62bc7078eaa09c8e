/** Random damage to images, the same for the same seed. */

import { randomNumbers } from '../bad-input/mutations.ts';

/** What a damaged image is, and how it came about. */
export interface Damaged {
  bytes: Buffer;
  /** The changes, for the report. */
  changes: string[];
}

/** Values that tables hold and readers trip over. */
const TELLING_VALUES = [
  ...[0n, 1n, 0x200n, 0x1000n, 0x10000n, 0xffff_ffff_ffff_ffffn, 1n << 63n, 1n << 62n, 3n << 62n],
  ...[0x00ff_ffff_ffff_fe00n, 0x8000_0000_0001_0000n, (1n << 53n) - 512n, 1n << 53n],
];

/** Offsets of 8-byte words that are likely to be metadata: not zero, and not part of a pattern. */
export function tellingOffsets(bytes: Buffer): number[] {
  const offsets: number[] = [];
  let previous = 0n;
  for (let at = 0; at + 8 <= bytes.length; at += 8) {
    const word = bytes.readBigUInt64BE(at);
    if (word !== 0n && word !== previous) offsets.push(at);
    previous = word;
  }
  return offsets;
}

/** Damages a copy of `image` in one to four places. */
export function corrupt(image: Buffer, offsets: readonly number[], seed: number): Damaged {
  const random = randomNumbers(seed);
  // The first numbers of neighbouring seeds resemble each other.
  for (let skip = 0; skip < 8; skip++) random();
  const pick = <T>(from: readonly T[]): T => from[random() % from.length]!;
  let bytes = Buffer.from(image);
  const changes: string[] = [];
  const count = 1 + (random() % 4);
  for (let change = 0; change < count; change++) {
    const at = pick(offsets);
    switch (random() % 8) {
      case 0: {
        const value = pick(TELLING_VALUES);
        bytes.writeBigUInt64BE(value, at);
        changes.push(`0x${value.toString(16)} at ${at}`);
        break;
      }
      case 1: {
        const from = pick(offsets);
        bytes.copyWithin(at, from, from + 8);
        changes.push(`8 bytes from ${from} at ${at}`);
        break;
      }
      case 2:
        bytes[at + (random() % 8)] = random();
        changes.push(`a random byte near ${at}`);
        break;
      default: {
        const bit = random() % 64;
        bytes[at + (bit >> 3)]! ^= 1 << (bit & 7);
        changes.push(`bit ${bit} at ${at}`);
      }
    }
  }
  // Cuts are rare, because they hide the other changes.
  if (random() % 16 === 0) {
    const length = pick(offsets);
    bytes = bytes.subarray(0, length);
    changes.push(`cut at ${length}`);
  }
  return { bytes, changes };
}
