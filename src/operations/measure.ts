/** How much room a new image would need, by QEMU's reckoning (`qemu-img measure`). */

import type { ImageFormat } from '../chain/open.ts';
import type { BlockDevice } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import type { BitmapInfo } from '../qcow2/bitmaps.ts';
import { alignUp } from '../util/bytes.ts';
import { checkL1Size, geometryOf } from './create-options.ts';
import type { Geometry, GeometryOptions, Preallocation } from './create-options.ts';
import { refcountClusters } from './refcount-size.ts';
import { padToSector, SECTOR_BYTES } from './sector-padded.ts';

/** What the new image would be, and what it would hold. */
export interface MeasureOptions extends GeometryOptions {
  /** Format of the new image (default qcow2). */
  format?: ImageFormat | undefined;
  /** Whether its space would be there from the start (default off). */
  preallocation?: Preallocation | undefined;
  /** Name of its backing file; how much it would share with the source is not known. */
  backingFile?: string | undefined;
  /** Bitmaps that would be copied too, where the source can have any. */
  bitmaps?: MeasuredBitmaps | undefined;
}

/** Bitmaps of a disk. */
export interface MeasuredBitmaps {
  /** Bytes of the disk that they speak of. */
  diskSize: number;
  /** Those that are inconsistent are not counted. */
  list: readonly Pick<BitmapInfo, 'name' | 'granularity' | 'isInconsistent'>[];
}

/** Sizes of a file, in bytes. */
export interface Measurement {
  /** With what the source has, written once. Rather too much than too little. */
  required: number;
  /** With every byte of the disk written. */
  fullyAllocated: number;
  /** What the bitmaps would need besides, in a format that has them. */
  bitmaps: number | undefined;
}

/**
 * How much room a new image would need.
 *
 * @param source what it would hold: a disk, or the size in bytes of an empty one
 * @throws {Qcow2Error} `INVALID_OPTION` for options that cannot be; `TOO_LARGE`; what looking at the
 * source's extents throws
 */
export function measureImage(
  source: BlockDevice | number,
  options: MeasureOptions = {},
): Measurement {
  const disk = typeof source === 'number' ? undefined : padToSector(source);
  const size = typeof source === 'number' ? source : (disk?.size ?? 0);
  if (!Number.isSafeInteger(size) || size < 0) {
    throw new Qcow2Error('INVALID_OPTION', `a disk cannot have ${size} bytes`);
  }
  if (options.format === 'raw') {
    const length = alignUp(size, SECTOR_BYTES);
    return { required: length, fullyAllocated: length, bitmaps: undefined };
  }
  const geometry = geometryOf(options);
  const { clusterSize } = geometry;
  const allSize = alignUp(size, clusterSize);
  const fullyAllocated = allSize + metadataSize(allSize, geometry);
  const { preallocation = 'off', backingFile } = options;
  const isReserved = preallocation === 'falloc' || preallocation === 'full';
  let stored = 0;
  if (isReserved) stored = allSize;
  else if (disk !== undefined) {
    stored = backingFile === undefined ? storedSize(disk, clusterSize) : allSize;
  }
  const measured = {
    required: fullyAllocated - allSize + stored,
    fullyAllocated,
    bitmaps: geometry.version === 3 ? bitmapsSize(options.bitmaps, clusterSize) : undefined,
  };
  if (Number.isSafeInteger(fullyAllocated)) return measured;
  throw new Qcow2Error('TOO_LARGE', `an image of a disk of ${size} bytes would be too large`);
}

/** Bytes of all that an image has beside its data, if all of it is written. */
function metadataSize(allSize: number, geometry: Geometry): number {
  const { clusterSize, l2EntrySize } = geometry;
  const clusters = allSize / clusterSize;
  const l2Tables = Math.ceil(clusters / (clusterSize / l2EntrySize));
  checkL1Size(allSize, l2Tables);
  const l1Clusters = Math.ceil((l2Tables * 8) / clusterSize);
  const counted = 1 + l2Tables + l1Clusters;
  const { blocks, table } = refcountClusters(counted + clusters, geometry, { spare: false });
  return (counted + blocks + table) * clusterSize;
}

/** Bytes of the clusters in which a disk has data; known zeroes need none. */
function storedSize(disk: BlockDevice, clusterSize: number): number {
  let stored = 0;
  let end = 0;
  for (const { offset, length, kind, zero } of disk.extents(0, disk.size)) {
    const isStored = (kind === 'data' || kind === 'compressed') && !zero;
    if (!isStored || offset + length <= end) continue;
    const start = Math.max(end, offset - (offset % clusterSize));
    end = alignUp(offset + length, clusterSize);
    stored += end - start;
  }
  return stored;
}

/** Bytes of bitmaps with every bit stored, their tables and the directory of them. */
function bitmapsSize(bitmaps: MeasuredBitmaps | undefined, clusterSize: number) {
  if (bitmaps === undefined) return undefined;
  let size = 0;
  let directorySize = 0;
  for (const { name, granularity, isInconsistent } of bitmaps.list) {
    if (isInconsistent) continue;
    const bytes = Math.ceil(Math.ceil(bitmaps.diskSize / granularity) / 8);
    const clusters = Math.ceil(bytes / clusterSize);
    size += clusters * clusterSize + alignUp(clusters * 8, clusterSize);
    directorySize += alignUp(DIRECTORY_ENTRY_BYTES + Buffer.byteLength(name), 8);
  }
  return size + alignUp(directorySize, clusterSize);
}

/** Bytes of a bitmap directory entry without name and extra data. */
const DIRECTORY_ENTRY_BYTES = 24;
