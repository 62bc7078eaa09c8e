/**
 * Counts what the persistent bitmaps refer to (specification: "Bitmaps"). As with QEMU, an image
 * whose bitmaps break the specification is refused altogether.
 */

import { Qcow2Error } from '../../errors.ts';
import type { ErrorCode } from '../../errors.ts';
import { BitmapFlag } from '../../format/qcow2/bitmap-directory.ts';
import type { BitmapEntry } from '../../format/qcow2/bitmap-directory.ts';
import type { Qcow2Header } from '../../format/qcow2/header.ts';
import { entryOffset } from '../../format/qcow2/l2-entry.ts';
import { MAX_BITMAP_DATA_BYTES } from '../../limits.ts';
import { tableBuffer } from './metadata-file.ts';
import type { MetadataFile } from './metadata-file.ts';
import type { References } from './references.ts';

/** Whose bitmaps are checked. */
export interface BitmapCheck {
  header: Qcow2Header;
  bitmaps: readonly BitmapEntry[];
  file: MetadataFile;
  references: References;
}

/**
 * Counts the bitmap directory, the bitmap tables and the clusters of the bitmaps.
 * @throws {Qcow2Error} `CORRUPT`, `TOO_LARGE` or `UNSUPPORTED`, naming the bitmap
 */
export function checkBitmaps({ header, bitmaps, file, references }: BitmapCheck): void {
  const extension = header.extensions.bitmaps;
  if (extension === undefined) return;
  references.add({ offset: extension.directoryOffset, length: extension.directorySize });
  for (const { bitmap, weight } of distinctTables(header, bitmaps)) {
    const { tableOffset, tableSize } = bitmap;
    references.add({ offset: tableOffset, length: tableSize * 8 }, weight);
    const structure = `table of bitmap '${bitmap.name}'`;
    const present = Math.max(0, Math.min(tableSize * 8, file.size - tableOffset));
    const words = file.readWords(tableBuffer(present - (present % 8)), tableOffset, structure);
    for (let at = 0; at < words.length; at += 2) {
      const high = words[at]!;
      const low = words[at + 1]!;
      const offset = entryOffset(high, low);
      const hasReserved = (high & 0xff00_0000) !== 0 || (low & 0x1fe) !== 0;
      const isWrong = offset !== 0 && ((low & 1) !== 0 || offset % header.clusterSize !== 0);
      if (hasReserved || isWrong) {
        throw new Qcow2Error('CORRUPT', `entry ${at / 2} cannot be one of a bitmap table`, {
          structure,
          offset: tableOffset + at * 4,
        });
      }
      if (offset !== 0) references.add({ offset, length: header.clusterSize }, weight);
    }
  }
}

/** The bitmaps, one for each table, with how many share it. */
function distinctTables(header: Qcow2Header, bitmaps: readonly BitmapEntry[]) {
  const tables = new Map<string, { bitmap: BitmapEntry; weight: number }>();
  for (const bitmap of bitmaps) {
    checkShape(header, bitmap);
    const key = `${bitmap.tableOffset}:${bitmap.tableSize}`;
    const table = tables.get(key);
    if (table === undefined) tables.set(key, { bitmap, weight: 1 });
    else table.weight++;
  }
  return tables.values();
}

function checkShape({ clusterSize, size }: Qcow2Header, bitmap: BitmapEntry): void {
  const { name, flags, granularity, tableSize, extraData, offset } = bitmap;
  const fail = (code: ErrorCode, problem: string): never => {
    throw new Qcow2Error(code, problem, { structure: `bitmap '${name}'`, offset });
  };
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
