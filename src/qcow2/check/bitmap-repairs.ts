/**
 * Repairs of bitmaps that have lost bits, because their table or clusters of theirs are past the end
 * of the file (specification: "Bitmaps"). Nobody can tell what the bits were: the bitmap is marked
 * as inconsistent, and what is past the end is dropped.
 */

import type { HostFile } from '../../device/block-device.ts';
import { BitmapFlag } from '../../format/qcow2/bitmap-directory.ts';
import type { BitmapEntry } from '../../format/qcow2/bitmap-directory.ts';
import { writeU32, writeU64 } from '../../util/bytes.ts';
import type { CheckReport } from './check-report.ts';

/** Where the flags are in an entry of the bitmap directory; the table's offset is its start. */
const FLAGS_FIELD = 12;

/** What is to be done about the bitmaps of an image. */
export class BitmapRepairs {
  /** Bitmaps whose table is lost. They get an empty one of as many entries. */
  readonly lostTables: BitmapEntry[] = [];
  readonly #marked = new Map<number, BitmapEntry>();
  /** Host offsets of table entries that become empty. */
  readonly #emptied: number[] = [];
  readonly #report: CheckReport;

  constructor(report: CheckReport) {
    this.#report = report;
  }

  /** Drops the table of a bitmap. */
  dropTable(bitmap: BitmapEntry): void {
    this.lostTables.push(bitmap);
    this.#mark(bitmap, 'its table is past the end of the file');
  }

  /** Drops a cluster of bits of the bitmaps that share a table. */
  dropCluster(bitmaps: readonly BitmapEntry[], entryOffset: number): void {
    this.#emptied.push(entryOffset);
    for (const bitmap of bitmaps) this.#mark(bitmap, 'bits of it are past the end of the file');
  }

  /** Marks the bitmaps, empties entries, and returns once that is durable. */
  write(file: HostFile): void {
    if (this.#marked.size === 0) return;
    for (const { offset, flags } of this.#marked.values()) {
      const bytes = new Uint8Array(4);
      writeU32(bytes, 0, (flags | BitmapFlag.IN_USE) >>> 0);
      file.write(bytes, offset + FLAGS_FIELD);
    }
    file.flush();
    for (const offset of this.#emptied) file.write(new Uint8Array(8), offset);
    if (this.#emptied.length > 0) file.flush();
  }

  /** Switches the bitmaps whose table is lost to new ones, which are on disk. */
  switchTables(file: HostFile, tableOffsets: readonly number[]): void {
    if (this.lostTables.length === 0) return;
    for (const [index, { offset }] of this.lostTables.entries()) {
      const bytes = new Uint8Array(8);
      writeU64(bytes, 0, tableOffsets[index]!);
      file.write(bytes, offset);
    }
    file.flush();
  }

  #mark(bitmap: BitmapEntry, why: string): void {
    this.#marked.set(bitmap.offset, bitmap);
    this.#report.repaired(
      'corruption',
      () => `Repairing bitmap '${bitmap.name}': ${why}; it is marked as inconsistent`,
    );
  }
}
