/** The snapshot table (specification: "Snapshots"): rows of varying length, padded to 8 bytes. */

import { MAX_SNAPSHOT_EXTRA_BYTES } from '../../limits.ts';
import { alignUp, TWO_32, writeU16, writeU32, writeU64, writeU64BigInt } from '../../util/bytes.ts';
import type { FieldReader } from './field-reader.ts';

/** Bytes of a row before its extra data. */
export const SNAPSHOT_ROW_BYTES = 40;

/** Offsets of a row's fields. */
const RowField = {
  L1_TABLE_OFFSET: 0,
  L1_SIZE: 8,
  ID_SIZE: 12,
  NAME_SIZE: 14,
  DATE_SECONDS: 16,
  DATE_NANOSECONDS: 20,
  VM_CLOCK: 24,
  VM_STATE_SIZE_32: 32,
  EXTRA_SIZE: 36,
} as const;

/** Offsets in the extra data, whose fields are there as far as its length goes. */
const ExtraField = { VM_STATE_SIZE: 0, DISK_SIZE: 8, ICOUNT: 16 } as const;

const KNOWN_EXTRA_BYTES = 24;
const NO_BYTES = new Uint8Array(0);

/** An internal snapshot. */
export interface SnapshotRow {
  /** Identifies the snapshot within the image; a decimal number as QEMU writes it. */
  id: string;
  /** The user's name for it; not necessarily unique. */
  name: string;
  /** Entries of its L1 table. */
  l1Size: number;
  /** Host offset of its L1 table in bytes. */
  l1TableOffset: number;
  /** When it was taken, in seconds since 1970. */
  dateSeconds: number;
  /** The part of that time below a second, in nanoseconds. */
  dateNanoseconds: number;
  /** How long the guest had run, in nanoseconds. */
  vmClockNanoseconds: bigint;
  /** Bytes of VM state; 0 for a snapshot of the disk only. */
  vmStateSize: number;
  /** Size of the disk then, in bytes. */
  diskSize: number;
  /** Instructions executed by then, where the guest counted them. */
  icount: bigint | undefined;
  /** Extra data after the fields that are known, kept as it is. */
  unknownExtra: Uint8Array;
  /** Id and name as their bytes, where the text does not say them exactly. */
  texts?: { id: Uint8Array; name: Uint8Array };
  /** Host offset of the row. */
  offset: number;
  /** Bytes of the row, without the padding after it. */
  length: number;
}

/** Length of a row in bytes without its padding, from its first {@link SNAPSHOT_ROW_BYTES}. */
export function snapshotRowLength(reader: FieldReader): number {
  const extraSize = reader.u32(RowField.EXTRA_SIZE);
  if (extraSize > MAX_SNAPSHOT_EXTRA_BYTES) {
    throw reader.error(
      'TOO_LARGE',
      RowField.EXTRA_SIZE,
      `${extraSize} bytes of extra data are more than ${MAX_SNAPSHOT_EXTRA_BYTES}`,
    );
  }
  const texts = reader.u16(RowField.ID_SIZE) + reader.u16(RowField.NAME_SIZE);
  return SNAPSHOT_ROW_BYTES + extraSize + texts;
}

/**
 * Decodes one row. Where its tables are is not checked here: a damaged snapshot does not keep the
 * others from being read.
 *
 * @param currentDiskSize size of the disk today, for rows of version 2 that do not say theirs
 * @throws {Qcow2Error} `TOO_LARGE` for a field above 2^53
 */
export function decodeSnapshotRow(reader: FieldReader, currentDiskSize: number): SnapshotRow {
  const extraSize = reader.u32(RowField.EXTRA_SIZE);
  const extra = SNAPSHOT_ROW_BYTES;
  const idStart = extra + extraSize;
  const idSize = reader.u16(RowField.ID_SIZE);
  const nameSize = reader.u16(RowField.NAME_SIZE);
  const id = reader.exactText(idStart, idSize);
  const name = reader.exactText(idStart + idSize, nameSize);
  const has = (field: number): boolean => extraSize >= field + 8;
  return {
    id: id.text,
    name: name.text,
    l1Size: reader.u32(RowField.L1_SIZE),
    l1TableOffset: reader.u64(RowField.L1_TABLE_OFFSET, 'l1_table_offset'),
    dateSeconds: reader.u32(RowField.DATE_SECONDS),
    dateNanoseconds: reader.u32(RowField.DATE_NANOSECONDS),
    vmClockNanoseconds: reader.u64BigInt(RowField.VM_CLOCK),
    vmStateSize: has(ExtraField.VM_STATE_SIZE)
      ? reader.u64(extra + ExtraField.VM_STATE_SIZE, 'VM state size')
      : reader.u32(RowField.VM_STATE_SIZE_32),
    diskSize: has(ExtraField.DISK_SIZE)
      ? reader.u64(extra + ExtraField.DISK_SIZE, 'disk size')
      : currentDiskSize,
    // QEMU writes all ones where the guest did not count.
    icount: has(ExtraField.ICOUNT)
      ? knownIcount(reader.u64BigInt(extra + ExtraField.ICOUNT))
      : undefined,
    unknownExtra:
      extraSize > KNOWN_EXTRA_BYTES
        ? Uint8Array.from(reader.bytes.subarray(extra + KNOWN_EXTRA_BYTES, extra + extraSize))
        : NO_BYTES,
    ...(id.isExact && name.isExact ? {} : { texts: { id: id.bytes, name: name.bytes } }),
    offset: reader.base,
    length: reader.bytes.length,
  };
}

const NO_ICOUNT = 0xffff_ffff_ffff_ffffn;

function knownIcount(icount: bigint): bigint | undefined {
  return icount === NO_ICOUNT ? undefined : icount;
}

/**
 * Encodes the snapshot table, each row padded to 8 bytes, with the extra data that QEMU writes and
 * whatever follows it. Where the rows were before does not matter.
 */
export function encodeSnapshotTable(rows: readonly SnapshotRow[]): Uint8Array {
  return Buffer.concat(rows.map(encodeSnapshotRow));
}

function encodeSnapshotRow(row: SnapshotRow): Uint8Array {
  const id = row.texts?.id ?? Buffer.from(row.id);
  const name = row.texts?.name ?? Buffer.from(row.name);
  const { vmStateSize, unknownExtra } = row;
  const extra = SNAPSHOT_ROW_BYTES;
  const idStart = extra + KNOWN_EXTRA_BYTES + unknownExtra.length;
  const bytes = new Uint8Array(alignUp(idStart + id.length + name.length, 8));
  writeU64(bytes, RowField.L1_TABLE_OFFSET, row.l1TableOffset);
  writeU32(bytes, RowField.L1_SIZE, row.l1Size);
  writeU16(bytes, RowField.ID_SIZE, id.length);
  writeU16(bytes, RowField.NAME_SIZE, name.length);
  writeU32(bytes, RowField.DATE_SECONDS, row.dateSeconds);
  writeU32(bytes, RowField.DATE_NANOSECONDS, row.dateNanoseconds);
  writeU64BigInt(bytes, RowField.VM_CLOCK, row.vmClockNanoseconds);
  // As QEMU does: a size that does not fit is told by the extra data alone.
  writeU32(bytes, RowField.VM_STATE_SIZE_32, vmStateSize < TWO_32 ? vmStateSize : 0);
  writeU32(bytes, RowField.EXTRA_SIZE, KNOWN_EXTRA_BYTES + unknownExtra.length);
  writeU64(bytes, extra + ExtraField.VM_STATE_SIZE, vmStateSize);
  writeU64(bytes, extra + ExtraField.DISK_SIZE, row.diskSize);
  writeU64BigInt(bytes, extra + ExtraField.ICOUNT, row.icount ?? NO_ICOUNT);
  bytes.set(unknownExtra, extra + KNOWN_EXTRA_BYTES);
  bytes.set(id, idStart);
  bytes.set(name, idStart + id.length);
  return bytes;
}
