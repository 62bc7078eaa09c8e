/**
 * Counts what the persistent bitmaps refer to (specification: "Bitmaps"). As with QEMU, an image
 * whose bitmaps break the specification is refused altogether.
 */

import { Qcow2Error } from '../../errors.ts';
import type { ErrorCode } from '../../errors.ts';
import { BitmapFlag, decodeBitmapDirectory } from '../../format/qcow2/bitmap-directory.ts';
import type { BitmapEntry } from '../../format/qcow2/bitmap-directory.ts';
import type { Qcow2Header } from '../../format/qcow2/header.ts';
import { entryOffset } from '../../format/qcow2/l2-entry.ts';
import { MAX_BITMAP_DATA_BYTES } from '../../limits.ts';
import { alignUp, readU16, readU32 } from '../../util/bytes.ts';
import type { BitmapRepairs } from './bitmap-repairs.ts';
import type { CheckedImage } from './check-metadata.ts';
import { bringNear } from './far-offsets.ts';
import { tableBuffer } from './metadata-file.ts';
import type { MetadataFile } from './metadata-file.ts';
import type { References } from './references.ts';

/** Bytes of a directory entry before its extra data and its name. */
const BITMAP_ENTRY_BYTES = 24;

/** A bitmap as a check takes it. */
export interface CheckedBitmap extends BitmapEntry {
  /** Where its table is, exactly, if that is beyond 2^53. */
  farTableOffset?: bigint;
}

/** Whose bitmaps are checked. */
export interface BitmapCheck {
  header: Qcow2Header;
  bitmaps: readonly CheckedBitmap[];
  file: MetadataFile;
  references: References;
  /** Is told what to repair; without it, nothing is. */
  repairs?: BitmapRepairs | undefined;
}

/**
 * Reads the bitmap directory, whose tables may be anywhere.
 * @throws {Qcow2Error} `CORRUPT`, `TOO_LARGE`, `TRUNCATED` or `UNSUPPORTED`
 */
export function readBitmaps({ header, file }: CheckedImage): CheckedBitmap[] {
  const extension = header.extensions.bitmaps;
  if (extension === undefined) return [];
  const { directoryOffset, directorySize, count } = extension;
  const structure = 'bitmap directory';
  if (directoryOffset + directorySize > file.size) {
    const place = { structure, offset: directoryOffset };
    throw new Qcow2Error('TRUNCATED', 'the file ends before it does', place);
  }
  const bytes = new Uint8Array(directorySize);
  file.read(bytes, directoryOffset);
  const far = new Map<number, bigint>();
  for (let at = 0; at + BITMAP_ENTRY_BYTES <= bytes.length;) {
    const exact = bringNear(bytes, at);
    if (exact !== undefined) far.set(directoryOffset + at, exact);
    at += alignUp(BITMAP_ENTRY_BYTES + readU16(bytes, at + 18) + readU32(bytes, at + 20), 8);
  }
  const { clusterSize } = header;
  const entries: CheckedBitmap[] = decodeBitmapDirectory({
    bytes,
    offset: directoryOffset,
    count,
    clusterSize,
  });
  for (const entry of entries) {
    const farTableOffset = far.get(entry.offset);
    if (farTableOffset !== undefined) entry.farTableOffset = farTableOffset;
  }
  return entries;
}

/**
 * Counts the bitmap directory, the bitmap tables and the clusters of the bitmaps.
 * @throws {Qcow2Error} `CORRUPT`, `TOO_LARGE` or `UNSUPPORTED`, naming the bitmap
 */
export function checkBitmaps(check: BitmapCheck): void {
  const { header, bitmaps, references, repairs } = check;
  const extension = header.extensions.bitmaps;
  if (extension === undefined) return;
  references.add({ offset: extension.directoryOffset, length: extension.directorySize });
  for (const sharing of bitmapsByTable(header, bitmaps)) {
    const { tableOffset, tableSize, farTableOffset } = sharing[0]!;
    const hexOffset = (): string => (farTableOffset ?? tableOffset).toString(16);
    const table = { offset: tableOffset, length: tableSize * 8, hexOffset };
    if (repairs !== undefined && !references.reaches(table)) {
      for (const bitmap of sharing) repairs.dropTable(bitmap);
      continue;
    }
    references.add(table, sharing.length);
    checkTable(sharing, check);
  }
}

/** Counts the clusters of the bitmaps that share a table. */
function checkTable(
  sharing: readonly CheckedBitmap[],
  { header: { clusterSize }, file, references, repairs }: BitmapCheck,
): void {
  const { name, tableOffset, tableSize } = sharing[0]!;
  const structure = `table of bitmap '${name}'`;
  const present = Math.max(0, Math.min(tableSize * 8, file.size - tableOffset));
  const words = file.readWords(tableBuffer(present - (present % 8)), tableOffset, structure);
  for (let at = 0; at < words.length; at += 2) {
    const high = words[at]!;
    const low = words[at + 1]!;
    const offset = entryOffset(high, low);
    const hasReserved = (high & 0xff00_0000) !== 0 || (low & 0x1fe) !== 0;
    const isWrong = offset !== 0 && ((low & 1) !== 0 || offset % clusterSize !== 0);
    if (hasReserved || isWrong) {
      throw new Qcow2Error('CORRUPT', `entry ${at / 2} cannot be one of a bitmap table`, {
        structure,
        offset: tableOffset + at * 4,
      });
    }
    if (offset === 0) continue;
    const cluster = { offset, length: clusterSize };
    if (repairs !== undefined && !references.reaches(cluster)) {
      repairs.dropCluster(sharing, tableOffset + at * 4);
    } else {
      references.add(cluster, sharing.length);
    }
  }
}

/** The bitmaps, those together that share a table. */
function bitmapsByTable(header: Qcow2Header, bitmaps: readonly CheckedBitmap[]) {
  const tables = new Map<string, CheckedBitmap[]>();
  for (const bitmap of bitmaps) {
    checkShape(header, bitmap);
    const { farTableOffset, tableOffset, tableSize } = bitmap;
    const key = `${farTableOffset ?? tableOffset}:${tableSize}`;
    const sharing = tables.get(key);
    if (sharing === undefined) tables.set(key, [bitmap]);
    else sharing.push(bitmap);
  }
  return tables.values();
}

function checkShape({ clusterSize, size }: Qcow2Header, bitmap: BitmapEntry): void {
  const { name, flags, granularity, tableSize, extraData, offset } = bitmap;
  const fail = (code: ErrorCode, problem: string): never => {
    throw new Qcow2Error(code, problem, { structure: `bitmap '${name}'`, offset });
  };
  if ((flags & BitmapFlag.EXTRA_DATA_COMPATIBLE) !== 0) {
    fail('UNSUPPORTED', 'extra data that is to be kept is not understood');
  }
  if (extraData.length > 0) fail('UNSUPPORTED', 'its extra data is not understood');
  if (tableSize * clusterSize > MAX_BITMAP_DATA_BYTES) {
    fail('TOO_LARGE', 'it has more than 512 MiB of bits');
  }
  if ((flags & BitmapFlag.IN_USE) !== 0) return;
  // Bits are stored in words of 64.
  const bytes = Math.ceil(Math.ceil(size / granularity) / 64) * 8;
  if (tableSize !== Math.ceil(bytes / clusterSize)) {
    fail('CORRUPT', `a table of ${tableSize} entries does not fit a disk of ${size} bytes`);
  }
}
