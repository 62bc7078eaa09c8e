/**
 * Reads the snapshot table as far as a check needs it (specification: "Snapshots"). Rows are not
 * held against the specification here: whatever they say is looked at, and reported.
 *
 * For a repair, rows that lack extra data get it, and data that is too much for them is dropped.
 */

import { Qcow2Error } from '../../errors.ts';
import type { Qcow2Header } from '../../format/qcow2/header.ts';
import { SNAPSHOT_ROW_BYTES } from '../../format/qcow2/snapshot-table.ts';
import { MAX_L1_BYTES, MAX_SNAPSHOT_EXTRA_BYTES, MAX_SNAPSHOT_TABLE_BYTES } from '../../limits.ts';
import { alignUp, readU16, readU32, TWO_32, writeU32, writeU64 } from '../../util/bytes.ts';
import type { L1Table } from './mapping-tables.ts';
import { tableBuffer } from './metadata-file.ts';
import type { MetadataFile } from './metadata-file.ts';
import { hex64 } from './check-report.ts';
import type { CheckReport } from './check-report.ts';

/** Bytes of extra data that every row of a version 3 image has. */
const MIN_EXTRA_BYTES_V3 = 16;
/** Bytes of the fields of extra data that are known: VM state size, disk size, instruction count. */
const KNOWN_EXTRA_BYTES = 24;
const VM_STATE_SIZE_FIELD = 32;
const EXTRA_SIZE_FIELD = 36;
const WINDOW_BYTES = 64 * 1024;
const STRUCTURE = 'snapshot table';

/** A row of the table. */
interface Row {
  /** The halves of the L1 table's offset, which can be anything. */
  l1High: number;
  l1Low: number;
  l1Size: number;
  extraSize: number;
  /** Host offset of the row. */
  offset: number;
  /** Where its id is, which its name follows. */
  textOffset: number;
  idSize: number;
  nameSize: number;
}

/** The snapshot table of an image. */
export class SnapshotTable {
  /** Bytes of the table. */
  readonly length: number;
  readonly #rows: readonly Row[];
  readonly #header: Qcow2Header;
  readonly #file: MetadataFile;
  #isChanged = false;

  /**
   * @param repairs is told of what a repair changes; without it, nothing is to be repaired
   * @throws {Qcow2Error} `TOO_LARGE` if a row or the table passes a bound that no repair removes
   */
  constructor(header: Qcow2Header, file: MetadataFile, repairs?: CheckReport) {
    this.#header = header;
    this.#file = file;
    const { snapshotsOffset, snapshotCount } = header;
    const rows: Row[] = [];
    const window = new Window(file);
    let at = snapshotsOffset;
    for (let index = 0; index < snapshotCount; index++) {
      const start = alignUp(at, 8);
      const row = decodeRow(window.at(start, SNAPSHOT_ROW_BYTES), start);
      if (row.extraSize > MAX_SNAPSHOT_EXTRA_BYTES) this.#dropExtra(row, index, repairs);
      const end = row.textOffset + row.idSize + row.nameSize;
      if (end - snapshotsOffset > MAX_SNAPSHOT_TABLE_BYTES) {
        this.#dropRows(snapshotCount - index, repairs);
        break;
      }
      rows.push(row);
      at = end;
    }
    this.#rows = rows;
    this.length = rows.length === 0 ? 0 : at - snapshotsOffset;
  }

  /** Rows that are there, and are kept. */
  get rowCount(): number {
    return this.#rows.length;
  }

  /** Whether a repair has to write the table anew. */
  get isToBeRewritten(): boolean {
    return this.#isChanged;
  }

  #dropExtra({ extraSize }: Row, index: number, repairs: CheckReport | undefined): void {
    if (repairs === undefined) {
      throw new Qcow2Error(
        'TOO_LARGE',
        `${extraSize} bytes of extra data are more than ${MAX_SNAPSHOT_EXTRA_BYTES}`,
        {
          structure: `${STRUCTURE} row ${index}`,
          offset: this.#header.snapshotsOffset,
          hint: 'qcow2 check -r all drops them',
        },
      );
    }
    this.#isChanged = true;
    repairs.repaired(
      'corruption',
      () =>
        `Discarding too much extra metadata in snapshot table entry ${index} ` +
        `(${extraSize} > ${MAX_SNAPSHOT_EXTRA_BYTES})`,
    );
  }

  #dropRows(count: number, repairs: CheckReport | undefined): void {
    if (repairs === undefined) {
      throw new Qcow2Error('TOO_LARGE', 'the table is larger than 64 MiB', {
        structure: STRUCTURE,
        offset: this.#header.snapshotsOffset,
        hint: `qcow2 check -r all drops the last ${count} snapshots`,
      });
    }
    this.#isChanged = true;
    repairs.remark(() => `Discarding ${count} overhanging snapshots (snapshot table is too big)`);
    repairs.corruptionsFixed += count;
  }

  /** Reports rows that lack extra data which their version wants. */
  checkRows(report: CheckReport, { isRepair = false } = {}): void {
    if (this.#header.version < 3) return;
    for (const [index, { extraSize }] of this.#rows.entries()) {
      if (extraSize >= MIN_EXTRA_BYTES_V3) continue;
      const what = isRepair ? 'Repairing' : 'ERROR';
      const message = (): string => `${what} snapshot table entry ${index} is incomplete`;
      if (isRepair) report.repaired('corruption', message);
      else report.corruption(message);
      this.#isChanged ||= isRepair;
    }
  }

  /** The table as a repair writes it. */
  repaired(): Buffer {
    const parts: Buffer[] = [];
    for (const row of this.#rows) {
      const { offset, extraSize, idSize, nameSize, textOffset } = row;
      const fixed = tableBuffer(SNAPSHOT_ROW_BYTES);
      this.#file.read(fixed, offset, STRUCTURE);
      const isKept = extraSize <= MAX_SNAPSHOT_EXTRA_BYTES;
      const extra = tableBuffer(isKept ? extraSize : KNOWN_EXTRA_BYTES);
      this.#file.read(extra, offset + SNAPSHOT_ROW_BYTES, STRUCTURE);
      const text = tableBuffer(idSize + nameSize);
      this.#file.read(text, textOffset, STRUCTURE);
      const isComplete = extra.length >= MIN_EXTRA_BYTES_V3 || this.#header.version < 3;
      const wanted = isComplete ? extra : completeExtra(extra, fixed, this.#header.size);
      writeU32(fixed, EXTRA_SIZE_FIELD, wanted.length);
      const length = fixed.length + wanted.length + text.length;
      parts.push(fixed, wanted, text, Buffer.alloc(alignUp(length, 8) - length));
    }
    return Buffer.concat(parts);
  }

  /** The L1 tables of the snapshots, each once; reports rows whose table cannot be one. */
  l1Tables(report: CheckReport): L1Table[] {
    const tables: L1Table[] = [];
    const byOffset = new Map<number, L1Table[]>();
    const { clusterSize } = this.#header;
    for (const row of this.#rows) {
      const { l1High, l1Low, l1Size: size } = row;
      if (l1Low % clusterSize !== 0) {
        report.corruption(
          () =>
            `ERROR ${this.#describe(row)} l1_offset=0x${hex64(l1High, l1Low)}: L1 table is not ` +
            'cluster aligned; snapshot table entry corrupted',
        );
        continue;
      }
      if (size > MAX_L1_BYTES / 8) {
        report.corruption(
          () =>
            `ERROR ${this.#describe(row)} l1_size=0x${size.toString(16)}: L1 table is too ` +
            'large; snapshot table entry corrupted',
        );
        continue;
      }
      const offset = l1High * TWO_32 + l1Low;
      const there = byOffset.get(offset) ?? [];
      const known = there.find((table) => table.size === size);
      if (known === undefined) {
        const hexOffset = (): string => hex64(l1High, l1Low);
        const table = { offset, size, isActive: false, weight: 1, hexOffset };
        tables.push(table);
        // Other sizes at the same offset are damage: only a few of them are worth finding.
        if (there.length < 4) byOffset.set(offset, [...there, table]);
      } else {
        known.weight++;
      }
    }
    return tables;
  }

  #describe({ textOffset, idSize, nameSize }: Row): string {
    const text = Buffer.alloc(idSize + nameSize);
    this.#file.read(text, textOffset, STRUCTURE);
    const id = untilNul(text.toString('utf8', 0, idSize));
    return `snapshot ${id} (${untilNul(text.toString('utf8', idSize))})`;
  }
}

/** Extra data with all fields that are known, those that were missing as QEMU fills them in. */
function completeExtra(extra: Buffer, row: Uint8Array, diskSize: number): Buffer {
  const complete = tableBuffer(KNOWN_EXTRA_BYTES);
  writeU32(complete, 4, readU32(row, VM_STATE_SIZE_FIELD));
  writeU64(complete, 8, diskSize);
  complete.fill(0xff, 16);
  complete.set(extra.subarray(0, extra.length - (extra.length % 8)));
  return complete;
}

function untilNul(text: string): string {
  return text.split('\0', 1)[0]!;
}

function decodeRow(bytes: Uint8Array, offset: number): Row {
  const extraSize = readU32(bytes, 36);
  return {
    l1High: readU32(bytes, 0),
    l1Low: readU32(bytes, 4),
    l1Size: readU32(bytes, 8),
    idSize: readU16(bytes, 12),
    nameSize: readU16(bytes, 14),
    extraSize,
    offset,
    textOffset: offset + SNAPSHOT_ROW_BYTES + extraSize,
  };
}

/** Reads on in large pieces. */
class Window {
  readonly #file: MetadataFile;
  readonly #bytes = Buffer.alloc(WINDOW_BYTES);
  #start = -WINDOW_BYTES;

  constructor(file: MetadataFile) {
    this.#file = file;
  }

  at(offset: number, length: number): Uint8Array {
    if (offset < this.#start || offset + length > this.#start + WINDOW_BYTES) {
      this.#file.read(this.#bytes, offset, STRUCTURE);
      this.#start = offset;
    }
    return this.#bytes.subarray(offset - this.#start, offset - this.#start + length);
  }
}
