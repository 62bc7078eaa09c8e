/** The exports of a disk image: the disk, its partitions and its snapshots. */

import { openDevice } from '../../chain/open-device.ts';
import { openImage } from '../../chain/open.ts';
import type { OpenImageOptions } from '../../chain/open.ts';
import { prepareToRead } from '../../chain/prepare.ts';
import type { BlockDevice } from '../../device/block-device.ts';
import { SliceDevice } from '../../device/slice.ts';
import { readPartitionTable } from '../../format/partition/index.ts';
import type { Partition } from '../../format/partition/index.ts';
import type { NbdExport } from './exports.ts';

/** Which parts of an image are served, and how they are called. */
export interface ImageExportOptions {
  /** Name of the disk's export; partitions are `NAME/1`, snapshots `NAME@SNAPSHOT`. */
  name: string;
  /** Description of the disk's export. */
  description?: string | undefined;
  /** Serve this snapshot (ID or name) in place of the current state. */
  snapshot?: string | undefined;
  /** Serve this partition alone. */
  partition?: number | undefined;
  /** How the image is opened. */
  open?: OpenImageOptions;
}

/** An export whose size is known before it is opened. */
export interface ImageExport extends NbdExport {
  /** Bytes. */
  size: number;
}

/** The exports of one image, the disk first, and what is to be closed when they end. */
export interface ImageExports {
  exports: ImageExport[];
  close(): void;
}

/**
 * Opens an image and lists what there is to serve in it. Snapshots are opened when a client asks
 * for them.
 * @throws {Qcow2Error} what opening the image throws; `NOT_FOUND` for the snapshot or partition
 */
export async function imageExports(
  path: string,
  options: ImageExportOptions,
): Promise<ImageExports> {
  const { name, description, snapshot, partition, open = {} } = options;
  if (snapshot !== undefined || partition !== undefined) {
    const part = [
      ...(partition === undefined ? [] : [`partition ${partition}`]),
      ...(snapshot === undefined ? [] : [`snapshot ${snapshot}`]),
    ];
    {
      using image = openImage(path, open);
      await prepareToRead(image);
    }
    const disk = openDevice(path, {
      ...open,
      ...(snapshot === undefined ? {} : { snapshot }),
      ...(partition === undefined ? {} : { partition }),
    });
    const text = description ?? `${part.join(' of ')} of ${path}`;
    const exports = [{ name, description: text, device: disk, size: disk.size }];
    if (partition === undefined) exports.push(...partitionExports(name, disk));
    return { exports, close: () => disk.close() };
  }
  const image = openImage(path, open);
  await prepareToRead(image);
  const exports: ImageExport[] = [
    { name, description: description ?? path, device: image, size: image.size },
    ...partitionExports(name, image),
  ];
  if ('snapshots' in image) {
    const names = new Set<string>();
    for (const { id, name: snapshotName, diskSize } of image.snapshots) {
      // IDs are unique in a valid image; names need not be, and may be empty.
      const tag = isUsable(snapshotName) && !names.has(snapshotName) ? snapshotName : id;
      if (!isUsable(tag) || names.has(tag)) continue;
      names.add(tag);
      exports.push({
        name: `${name}@${tag}`,
        description: `snapshot ${id} of ${name}`,
        device: () => image.openSnapshot(id),
        size: diskSize,
      });
    }
  }
  return { exports, close: () => image.close() };
}

function isUsable(name: string): boolean {
  return name !== '' && name.length <= 256 && !name.includes('\0');
}

/** Of the partitions that hold something themselves: not of extended MBR partitions. */
function partitionExports(name: string, disk: BlockDevice) {
  return readPartitionTable(disk)
    .partitions.filter(({ isContainer }) => !isContainer)
    .filter(({ offset, length }) => length > 0 && offset + length <= disk.size)
    .map((partition) => ({
      name: `${name}/${partition.number}`,
      description: describePartition(name, partition),
      device: new SliceDevice(disk, { offset: partition.offset, length: partition.length }),
      size: partition.length,
    }));
}

function describePartition(diskName: string, { number, name, typeName }: Partition): string {
  const details = [name, typeName].filter((text) => text !== '');
  const suffix = details.length === 0 ? '' : `: ${details.join(', ')}`;
  return `partition ${number} of ${diskName}${suffix.replaceAll('\0', '')}`;
}
