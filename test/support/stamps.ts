/**
 * Data of which every 512-byte sector says who wrote it and where it belongs, so that a sector
 * that is read can be told from all others that were ever written.
 */

import { Random } from './random.ts';

/** Bytes of a stamped sector. */
export const SECTOR_BYTES = 512;

/** The bytes of a write. */
export interface Stamp {
  /** Number of the write; different for each. */
  sequence: number;
  /** Where the data goes, in bytes of the disk. */
  offset: number;
  length: number;
  /** Whether the data resists compression (default false). */
  isNoise?: boolean | undefined;
}

/** The data of a write. Writes that begin inside a sector begin inside its stamp. */
export function stampedData({ sequence, offset, length, isNoise = false }: Stamp): Buffer {
  const first = Math.floor(offset / SECTOR_BYTES);
  const last = Math.ceil((offset + length) / SECTOR_BYTES);
  const bytes = Buffer.alloc((last - first) * SECTOR_BYTES);
  for (let sector = first; sector < last; sector++) {
    const at = (sector - first) * SECTOR_BYTES;
    const stamp = bytes.subarray(at, at + SECTOR_BYTES);
    if (isNoise) fillWithNoise(stamp, sequence, sector);
    else fillWithWords(stamp, sequence, sector);
  }
  const skipped = offset - first * SECTOR_BYTES;
  return bytes.subarray(skipped, skipped + length);
}

function fillWithWords(stamp: Buffer, sequence: number, sector: number): void {
  stamp.writeUInt32BE(sequence, 0);
  stamp.writeUInt32BE(sector, 4);
  stamp.copy(stamp, 8, 0, 8);
  stamp.copy(stamp, 16, 0, 16);
  stamp.copy(stamp, 32, 0, 32);
  stamp.fill(stamp.subarray(0, 64), 64);
}

function fillWithNoise(stamp: Buffer, sequence: number, sector: number): void {
  const random = new Random(Math.imul(sequence, 0x9e37_79b1) ^ sector);
  stamp.writeUInt32BE(sequence, 0);
  stamp.writeUInt32BE(sector, 4);
  for (let at = 8; at < SECTOR_BYTES; at += 4) stamp.writeUInt32LE(random.next(), at);
}

/** What a sector holds, for a message. */
export function describeSector(sector: Uint8Array): string {
  const bytes = Buffer.from(sector.buffer, sector.byteOffset, sector.length);
  if (bytes.every((byte) => byte === 0)) return 'zeroes';
  if (bytes.length < 8) return bytes.toString('hex');
  return `write ${bytes.readUInt32BE(0)} of sector ${bytes.readUInt32BE(4)}`;
}

/**
 * Requires that a disk holds what is expected.
 * @throws {Error} which says what the first sector that differs holds, and what it should
 */
export function requireSame(what: string, actual: Buffer, expected: Buffer): void {
  if (actual.equals(expected)) return;
  if (actual.length !== expected.length) {
    throw new Error(`${what} has ${actual.length} bytes, not ${expected.length}`);
  }
  let at = 0;
  while (actual[at] === expected[at]) at++;
  const start = at - (at % SECTOR_BYTES);
  const [found, wanted] = [actual, expected].map((bytes) =>
    describeSector(bytes.subarray(start, start + SECTOR_BYTES)),
  );
  throw new Error(`${what}, byte ${at} (sector ${start / SECTOR_BYTES}): ${found}, not ${wanted}`);
}
