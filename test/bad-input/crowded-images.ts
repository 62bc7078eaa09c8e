/** Images with as many snapshots or bitmaps as are asked for, forged without their data. */

import type { SparseFile } from '../support/image-patch.ts';

const CLUSTER_BITS = 16;
const CLUSTER = 2 ** CLUSTER_BITS;

/** Where things are: one cluster each, the long table last. */
const Place = {
  L1: 1,
  REFCOUNT_TABLE: 2,
  REFCOUNT_BLOCK: 3,
  BITMAP_TABLE: 4,
  LONG_TABLE: 5,
} as const;

const at = (place: number): number => place * CLUSTER;
const padded = (length: number): number => Math.ceil(length / 8) * 8;

/** The first cluster of an image of 1 MiB to which nothing was written. */
function firstCluster(): Buffer {
  const header = Buffer.alloc(CLUSTER);
  header.writeUInt32BE(0x5146_49fb, 0);
  header.writeUInt32BE(3, 4);
  header.writeUInt32BE(CLUSTER_BITS, 20);
  header.writeBigUInt64BE(1n << 20n, 24);
  header.writeUInt32BE(1, 36);
  header.writeBigUInt64BE(BigInt(at(Place.L1)), 40);
  header.writeBigUInt64BE(BigInt(at(Place.REFCOUNT_TABLE)), 48);
  header.writeUInt32BE(1, 56);
  header.writeUInt32BE(4, 96);
  header.writeUInt32BE(104, 100);
  return header;
}

function imageOf(header: Buffer, longTable: Buffer): SparseFile {
  const refcountTable = Buffer.alloc(8);
  refcountTable.writeBigUInt64BE(BigInt(at(Place.REFCOUNT_BLOCK)));
  return {
    pieces: [
      [0, header],
      [at(Place.REFCOUNT_TABLE), refcountTable],
      [at(Place.LONG_TABLE), longTable],
    ],
    size: at(Place.LONG_TABLE) + Math.ceil(longTable.length / CLUSTER) * CLUSTER,
  };
}

/** How many snapshots, and how long each. */
export interface SnapshotCrowd {
  count: number;
  /** Bytes of extra data of each; default 24. */
  extraBytes?: number;
  /** Bytes of each name; default 2. */
  nameBytes?: number;
}

/** An image with `count` snapshots that share the L1 table of the disk. */
export function snapshotTableImage({
  count,
  extraBytes = 24,
  nameBytes = 2,
}: SnapshotCrowd): SparseFile {
  const header = firstCluster();
  header.writeUInt32BE(count, 60);
  header.writeBigUInt64BE(BigInt(at(Place.LONG_TABLE)), 64);
  const idBytes = 6;
  const rowBytes = padded(40 + extraBytes + idBytes + nameBytes);
  const table = Buffer.alloc(count * rowBytes);
  for (let index = 0; index < count; index++) {
    const row = table.subarray(index * rowBytes, (index + 1) * rowBytes);
    row.writeBigUInt64BE(BigInt(at(Place.L1)), 0);
    row.writeUInt32BE(1, 8);
    row.writeUInt16BE(idBytes, 12);
    row.writeUInt16BE(nameBytes, 14);
    row.writeUInt32BE(extraBytes, 36);
    row.writeBigUInt64BE(1n << 20n, 48);
    row.write(String(100_000 + index), 40 + extraBytes, 'latin1');
    row.fill('n', 40 + extraBytes + idBytes, 40 + extraBytes + idBytes + nameBytes);
  }
  return imageOf(header, table);
}

/** How many bitmaps, and how long their names. */
export interface BitmapCrowd {
  count: number;
  /** Bytes of each name, at least 6; default 8. */
  nameBytes?: number;
}

/** An image with `count` bitmaps that share one table. */
export function bitmapDirectoryImage({ count, nameBytes = 8 }: BitmapCrowd): SparseFile {
  const entryBytes = padded(24 + nameBytes);
  const directory = Buffer.alloc(count * entryBytes);
  for (let index = 0; index < count; index++) {
    const entry = directory.subarray(index * entryBytes, (index + 1) * entryBytes);
    entry.writeBigUInt64BE(BigInt(at(Place.BITMAP_TABLE)), 0);
    entry.writeUInt32BE(1, 8);
    entry.set([1, 16], 16);
    entry.writeUInt16BE(nameBytes, 18);
    entry.fill('b', 24, 24 + nameBytes);
    entry.write(String(100_000 + index), 24, 'latin1');
  }
  const header = firstCluster();
  header.writeBigUInt64BE(1n, 88);
  header.writeUInt32BE(0x2385_2875, 104);
  header.writeUInt32BE(24, 108);
  header.writeUInt32BE(count, 112);
  header.writeBigUInt64BE(BigInt(directory.length), 120);
  header.writeBigUInt64BE(BigInt(at(Place.LONG_TABLE)), 128);
  return imageOf(header, directory);
}
