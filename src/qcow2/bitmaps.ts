/** Persistent dirty bitmaps (specification: "Bitmaps"): listing and reading them. */

import type { BlockDevice } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import type { ErrorCode } from '../errors.ts';
import { BitmapFlag, decodeBitmapDirectory } from '../format/qcow2/bitmap-directory.ts';
import type { BitmapEntry } from '../format/qcow2/bitmap-directory.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import { entryOffset } from '../format/qcow2/l2-entry.ts';
import { MAX_BITMAP_DATA_BYTES } from '../limits.ts';
import { readU32 } from '../util/bytes.ts';

/** A bitmap as it is listed. */
export interface BitmapInfo extends BitmapEntry {
  /**
   * Whether its content cannot be trusted: it was not saved properly, or a program that does not
   * know bitmaps has written to the image since.
   */
  isInconsistent: boolean;
  /** Whether writes to the disk are recorded in it (QEMU's `auto`). */
  isEnabled: boolean;
}

/** A run of the disk that a bitmap marks. */
export interface DirtyRange {
  /** First byte. */
  offset: number;
  /** Bytes. */
  length: number;
}

/** What bitmaps are read from. */
export interface BitmapSource {
  header: Qcow2Header;
  file: BlockDevice;
}

/**
 * Lists an image's bitmaps. Of those that a program without bitmaps gave up, as many as can still be
 * read: their clusters may have been freed, and hold something else by now.
 * @throws {Qcow2Error} `CORRUPT`, `TOO_LARGE`, `TRUNCATED` or `UNSUPPORTED`
 */
export function readBitmapDirectory(source: BitmapSource): BitmapInfo[] {
  try {
    return decodeDirectory(source);
  } catch (error) {
    const isGivenUp = !source.header.areBitmapsValid && error instanceof Qcow2Error;
    if (!isGivenUp || error.code === 'HOST') throw error;
    return [];
  }
}

function decodeDirectory({ header, file }: BitmapSource): BitmapInfo[] {
  const extension = header.extensions.bitmaps;
  if (extension === undefined) return [];
  const { directoryOffset, directorySize, count } = extension;
  if (directoryOffset + directorySize > file.size) {
    throw new Qcow2Error('TRUNCATED', 'the file ends before it does', {
      structure: 'bitmap directory',
      offset: directoryOffset,
    });
  }
  const bytes = new Uint8Array(directorySize);
  file.read(bytes, directoryOffset);
  const entries = decodeBitmapDirectory({
    bytes,
    offset: directoryOffset,
    count,
    clusterSize: header.clusterSize,
  });
  return entries.map((entry) => {
    const isInconsistent = !header.areBitmapsValid || (entry.flags & BitmapFlag.IN_USE) !== 0;
    return { ...entry, isInconsistent, isEnabled: (entry.flags & BitmapFlag.AUTO) !== 0 };
  });
}

/** Bits of a bitmap that the file does not have yet, by clusters of them. */
export interface UnsavedBits {
  /**
   * Fills `target` with a cluster of bits, if it is not as in the file.
   * @returns `ones` if all of them are set, `bits` if they are in `target`, undefined if the file has
   * them
   */
  loadUnsaved(index: number, target: Uint8Array): 'ones' | 'bits' | undefined;
}

/** Which part of a bitmap is read, and what of it is not in the file. */
export interface DirtyRangeOptions {
  /** Bytes that the bitmap covers. */
  diskSize: number;
  /** Runs that end before it may be left out, and the one around it cut short (default 0). */
  from?: number | undefined;
  unsaved?: UnsavedBits | undefined;
}

/**
 * The runs of the disk that a bitmap marks as dirty, in order, neighbours merged.
 * @throws {Qcow2Error} `CORRUPT`, `TOO_LARGE` or `TRUNCATED`
 */
export function* dirtyRanges(
  source: BitmapSource,
  bitmap: BitmapEntry,
  { diskSize, from = 0, unsaved }: DirtyRangeOptions,
): Generator<DirtyRange> {
  const bitCount = Math.ceil(diskSize / bitmap.granularity);
  const table = readBitmapTable(source, bitmap, bitCount);
  const { clusterSize } = source.header;
  const bitsPerCluster = clusterSize * 8;
  const cluster = new Uint8Array(clusterSize);
  let runStart = -1;
  const rangeTo = (endBit: number): DirtyRange => {
    const offset = runStart * bitmap.granularity;
    runStart = -1;
    return { offset, length: Math.min(endBit * bitmap.granularity, diskSize) - offset };
  };
  const firstIndex = Math.floor(from / bitmap.granularity / bitsPerCluster);
  for (let index = firstIndex; index * bitsPerCluster < bitCount; index++) {
    const base = index * bitsPerCluster;
    const end = Math.min(base + bitsPerCluster, bitCount);
    const fresh = unsaved?.loadUnsaved(index, cluster);
    const uniform =
      fresh === undefined
        ? loadBitmapCluster(source, table, index, cluster)
        : fresh === 'ones' || undefined;
    if (uniform !== undefined) {
      if (uniform && runStart < 0) runStart = base;
      if (!uniform && runStart >= 0) yield rangeTo(base);
      continue;
    }
    for (let bit = base; bit < end;) {
      const inCluster = bit - base;
      const byte = cluster[inCluster >>> 3]!;
      if ((inCluster & 7) === 0 && (byte === 0 || byte === 0xff) && bit + 8 <= end) {
        if (byte === 0xff && runStart < 0) runStart = bit;
        if (byte === 0 && runStart >= 0) yield rangeTo(bit);
        bit += 8;
        continue;
      }
      const isSet = (byte & (1 << (inCluster & 7))) !== 0;
      if (isSet && runStart < 0) runStart = bit;
      if (!isSet && runStart >= 0) yield rangeTo(bit);
      bit++;
    }
  }
  if (runStart >= 0) yield rangeTo(bitCount);
}

function readBitmapTable(
  { header, file }: BitmapSource,
  bitmap: BitmapEntry,
  bitCount: number,
): FieldTable {
  const structure = `table of bitmap '${bitmap.name}'`;
  const { tableOffset, tableSize } = bitmap;
  if (Math.ceil(bitCount / 8) > MAX_BITMAP_DATA_BYTES) {
    throw new Qcow2Error('TOO_LARGE', 'it has more than 512 MiB of bits', { structure });
  }
  if (tableSize < Math.ceil(bitCount / 8 / header.clusterSize)) {
    throw new Qcow2Error('CORRUPT', `its ${tableSize} entries do not cover the disk`, {
      structure,
      offset: tableOffset,
    });
  }
  if (tableOffset + tableSize * 8 > file.size) {
    throw new Qcow2Error('TRUNCATED', 'the file ends before it does', {
      structure,
      offset: tableOffset,
    });
  }
  const bytes = new Uint8Array(tableSize * 8);
  file.read(bytes, tableOffset);
  return { bytes, offset: tableOffset, structure };
}

interface FieldTable {
  bytes: Uint8Array;
  /** Host offset. */
  offset: number;
  structure: string;
}

/** Where the bits of one cluster of a bitmap are: a host offset, or all alike without one. */
export type BitmapPlace = number | 'zeroes' | 'ones';

/**
 * Decodes an entry of a bitmap table.
 *
 * @param entry its 8 bytes
 * @param location of it, for the error
 * @throws {Qcow2Error} `CORRUPT` or `TRUNCATED`
 */
export function decodeBitmapPlace(
  { header, file }: BitmapSource,
  entry: Uint8Array,
  location: BitmapEntryLocation,
): BitmapPlace {
  const high = readU32(entry, 0);
  const low = readU32(entry, 4);
  const offset = entryOffset(high, low);
  const fail = (code: ErrorCode, problem: string): Qcow2Error =>
    new Qcow2Error(code, `entry ${location.index} ${problem}`, location);
  // Reserved: bits 1 to 8 and 56 to 63; bit 0 means something only without an offset.
  if ((high & 0xff00_0000) !== 0 || (low & 0x1fe) !== 0 || (offset !== 0 && (low & 1) !== 0)) {
    throw fail('CORRUPT', 'has reserved bits set');
  }
  if (offset === 0) return (low & 1) !== 0 ? 'ones' : 'zeroes';
  if (offset % header.clusterSize !== 0) {
    throw fail('CORRUPT', `has an unaligned offset ${offset}`);
  }
  if (offset >= file.size) throw fail('TRUNCATED', 'points past the end of the file');
  return offset;
}

/** Which entry of a bitmap table is decoded. */
export interface BitmapEntryLocation {
  structure: string;
  /** Host offset of the entry. */
  offset: number;
  index: number;
}

/** Reads one cluster of a bitmap; true or false if all its bits are alike without one. */
function loadBitmapCluster(
  source: BitmapSource,
  { bytes, offset, structure }: FieldTable,
  index: number,
  target: Uint8Array,
): boolean | undefined {
  const entry = bytes.subarray(index * 8, index * 8 + 8);
  const place = decodeBitmapPlace(source, entry, { structure, offset: offset + index * 8, index });
  if (typeof place !== 'number') return place === 'ones';
  readBitmapCluster(source, place, target);
  return undefined;
}

/** Fills `target` with a cluster of a bitmap; what the file does not have of it is zero. */
export function readBitmapCluster({ file }: BitmapSource, place: number, target: Uint8Array): void {
  const available = Math.max(0, Math.min(target.length, file.size - place));
  file.read(target.subarray(0, available), place);
  target.fill(0, available);
}
