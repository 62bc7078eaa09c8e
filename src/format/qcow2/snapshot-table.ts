/** The snapshot table (specification: "Snapshots"): rows of varying length, padded to 8 bytes. */

import { MAX_SNAPSHOT_EXTRA_BYTES } from '../../limits.ts';
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
  const has = (field: number): boolean => extraSize >= field + 8;
  return {
    id: reader.text(idStart, idSize),
    name: reader.text(idStart + idSize, reader.u16(RowField.NAME_SIZE)),
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
    offset: reader.base,
    length: reader.bytes.length,
  };
}

function knownIcount(icount: bigint): bigint | undefined {
  return icount === 0xffff_ffff_ffff_ffffn ? undefined : icount;
}
