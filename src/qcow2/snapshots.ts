/** Internal snapshots (specification: "Snapshots"): listing them and opening them as devices. */

import type { BlockDevice } from '../device/block-device.ts';
import { SliceDevice } from '../device/slice.ts';
import { Qcow2Error } from '../errors.ts';
import type { ErrorCode } from '../errors.ts';
import { FieldReader } from '../format/qcow2/field-reader.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import {
  decodeSnapshotRow,
  SNAPSHOT_ROW_BYTES,
  snapshotRowLength,
} from '../format/qcow2/snapshot-table.ts';
import type { SnapshotRow } from '../format/qcow2/snapshot-table.ts';
import { MAX_L1_BYTES, MAX_SNAPSHOT_TABLE_BYTES } from '../limits.ts';
import { alignUp } from '../util/bytes.ts';
import { GuestDisk } from './guest-disk.ts';
import type { ImageContext } from './guest-disk.ts';

/** Where a row of the snapshot table is. */
interface RowLocation {
  offset: number;
  /** Bytes, without the padding after it. */
  length: number;
}

/**
 * Reads the snapshot table.
 * @throws {Qcow2Error} `CORRUPT`, `TOO_LARGE` or `TRUNCATED`, naming the row
 */
export function readSnapshotTable(header: Qcow2Header, file: BlockDevice): SnapshotRow[] {
  // Measured before anything of it is kept: a table that is too large costs no memory.
  const locations = locateRows(header, file);
  let buffer = new Uint8Array(SNAPSHOT_ROW_BYTES);
  return locations.map(({ offset, length }, index) => {
    if (buffer.length < length) buffer = new Uint8Array(length);
    const row = readRow(file, offset, buffer.subarray(0, length), index);
    return decodeSnapshotRow(row, header.size);
  });
}

/**
 * Bytes of the snapshot table, without the padding after its last row.
 * @throws {Qcow2Error} as {@link readSnapshotTable}
 */
export function measureSnapshotTable(header: Qcow2Header, file: BlockDevice): number {
  const last = locateRows(header, file).at(-1);
  return last === undefined ? 0 : last.offset + last.length - header.snapshotsOffset;
}

function locateRows(header: Qcow2Header, file: BlockDevice): RowLocation[] {
  const locations: RowLocation[] = [];
  const { snapshotsOffset, snapshotCount } = header;
  const fixed = new Uint8Array(SNAPSHOT_ROW_BYTES);
  let offset = snapshotsOffset;
  for (let index = 0; index < snapshotCount; index++) {
    const row = readRow(file, offset, fixed, index);
    const length = snapshotRowLength(row);
    if (offset + length - snapshotsOffset > MAX_SNAPSHOT_TABLE_BYTES) {
      throw row.error('TOO_LARGE', 0, 'the table is larger than 64 MiB');
    }
    locations.push({ offset, length });
    // The file may end before the last row's padding does.
    offset += alignUp(length, 8);
  }
  return locations;
}

function readRow(file: BlockDevice, at: number, target: Uint8Array, index: number): FieldReader {
  const structure = `snapshot table row ${index}`;
  if (at + target.length > file.size) {
    throw new Qcow2Error('TRUNCATED', 'the file ends before it does', { structure, offset: at });
  }
  file.read(target, at);
  return new FieldReader(target, structure, at);
}

/** Finds a snapshot by its id or else by its name, as qemu-img does. */
export function findSnapshot(
  snapshots: readonly SnapshotRow[],
  idOrName: string,
): SnapshotRow | undefined {
  return (
    snapshots.find((snapshot) => snapshot.id === idOrName) ??
    snapshots.find((snapshot) => snapshot.name === idOrName)
  );
}

/** The disk as it was when a snapshot was taken. Closing it leaves the image open. */
export class Qcow2Snapshot extends GuestDisk {
  /** Its row of the snapshot table. */
  readonly info: SnapshotRow;

  /** @throws {Qcow2Error} `CORRUPT` or `TOO_LARGE` if the snapshot's L1 table cannot be right */
  constructor(context: ImageContext, info: SnapshotRow) {
    checkSnapshotL1(context.header, info);
    const { diskSize } = info;
    const l1 = { offset: info.l1TableOffset, size: info.l1Size };
    super(context, { l1, size: diskSize - (diskSize % 512) });
    this.info = info;
  }

  /**
   * The saved state of the virtual machine: a device of `info.vmStateSize` bytes.
   * @throws {Qcow2Error} `CORRUPT` if the snapshot's L1 table does not reach it
   */
  openVmState(): BlockDevice {
    const { l1Size, l1TableOffset, vmStateSize } = this.info;
    const { clusterSize, l2Entries } = this.context.header;
    // VM state begins at the first L1 entry that the disk does not need.
    const bytesPerL1Entry = clusterSize * l2Entries;
    const start = Math.ceil(this.size / bytesPerL1Entry) * bytesPerL1Entry;
    if (start + vmStateSize > l1Size * bytesPerL1Entry) {
      throw new Qcow2Error(
        'CORRUPT',
        `its L1 table does not reach ${vmStateSize} bytes of VM state`,
        {
          file: this.context.path,
          structure: `snapshot ${this.info.id}`,
          offset: this.info.offset,
        },
      );
    }
    // VM state is no part of the disk, so the backing file has nothing to say about it.
    const space = new GuestDisk(
      { ...this.context, backing: undefined },
      { l1: { offset: l1TableOffset, size: l1Size }, size: start + vmStateSize },
    );
    return new SliceDevice(space, { offset: start, length: vmStateSize });
  }
}

/**
 * Checks what a row of the snapshot table says of its L1 table.
 * @throws {Qcow2Error} `CORRUPT` or `TOO_LARGE`
 */
export function checkSnapshotL1({ clusterSize, l2Entries }: Qcow2Header, info: SnapshotRow): void {
  const { id, offset, l1Size, l1TableOffset, diskSize } = info;
  const fail = (code: ErrorCode, problem: string): Qcow2Error =>
    new Qcow2Error(code, problem, { structure: `snapshot ${id}`, offset });
  if (l1Size > MAX_L1_BYTES / 8) {
    throw fail('TOO_LARGE', `its L1 table of ${l1Size} entries is too large`);
  }
  if (l1TableOffset % clusterSize !== 0) {
    throw fail(
      'CORRUPT',
      `its L1 table's offset ${l1TableOffset} is not a multiple of the cluster size`,
    );
  }
  if (l1Size < Math.ceil(diskSize / (clusterSize * l2Entries))) {
    throw fail('CORRUPT', `its L1 table of ${l1Size} entries is too small for ${diskSize} bytes`);
  }
}
