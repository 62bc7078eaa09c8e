/** The exports of a disk image: the disk, its partitions, its snapshots and the layers below it. */

import { fingerprintOf } from '../../chain/fingerprint.ts';
import { selectPartition, selectSnapshot } from '../../chain/open-device.ts';
import { openImage } from '../../chain/open.ts';
import type { Image, OpenImageOptions } from '../../chain/open.ts';
import { prepareToRead } from '../../chain/prepare.ts';
import type { BlockDevice } from '../../device/block-device.ts';
import { SliceDevice } from '../../device/slice.ts';
import { Qcow2Error } from '../../errors.ts';
import { readPartitionTable } from '../../format/partition/index.ts';
import type { Partition } from '../../format/partition/index.ts';
import { writeBackEarly } from '../../operations/early-writeback.ts';
import { openKeptOverlay, openTemporaryOverlay } from '../../operations/overlay.ts';
import type { ExportBitmap, NbdExport } from './exports.ts';
import { resizerOf } from './resizing.ts';

/** Where writes of clients go. */
export type WriteTarget =
  /** There are none. */
  | 'nowhere'
  /** To the image. */
  | 'image'
  /** To a temporary file, which is forgotten in the end. */
  | 'temporary'
  /** To an overlay of the image, which is made if it is missing. */
  | { overlay: string };

/** Which parts of an image are served, and how they are called. */
export interface ImageExportOptions {
  /**
   * Name of the disk's export; partitions are `NAME/1`, snapshots `NAME@SNAPSHOT`, layers below the
   * image `NAME~0` (the base), `NAME~1`, …
   */
  name: string;
  /** Description of the disk's export. */
  description?: string | undefined;
  /** Serve this snapshot (ID or name) in place of the current state. */
  snapshot?: string | undefined;
  /** Serve this partition alone. */
  partition?: number | undefined;
  /** Where writes go (default `nowhere`); not for snapshots. */
  writes?: WriteTarget | undefined;
  /** Whether clients may change the size of the disk, where they may write to it (default false). */
  resizable?: boolean | undefined;
  /**
   * Names of persistent bitmaps that clients can ask for; not where writes go to an overlay, of which
   * those of the image know nothing.
   */
  bitmaps?: readonly string[] | undefined;
  /** How the image is opened. */
  open?: OpenImageOptions | undefined;
}

/** An export whose size is known before it is opened. */
export interface ImageExport extends NbdExport {
  /** Bytes. */
  size: number;
}

/** The exports of one image, the disk first, and what is to be closed when they end. */
export interface ImageExports {
  exports: ImageExport[];
  /** What is open, to share a cluster cache with. */
  images: readonly Image[];
  /** What tells whether another thread has opened the same files; see {@link fingerprintOf}. */
  fingerprint: string;
  /**
   * Brings everything written to the disk, and closes the image in any case.
   * @throws {Qcow2Error} `HOST` if the host refuses it; what was written since the last flush may be
   * lost then
   */
  close(): void;
}

/**
 * Opens an image and lists what there is to serve in it. Snapshots are opened when a client asks
 * for them.
 * @throws {Qcow2Error} what opening the image throws; `NOT_FOUND` for the snapshot, partition or
 * bitmap; `INVALID_OPTION` for what does not go together
 */
export async function imageExports(
  path: string,
  options: ImageExportOptions,
): Promise<ImageExports> {
  const { name, description, snapshot, partition, writes = 'nowhere' } = options;
  if (options.resizable === true && (writes === 'nowhere' || partition !== undefined)) {
    throw invalid(path, 'only whole disks that clients write to can be resized by them');
  }
  if (snapshot !== undefined) {
    if (writes !== 'nowhere') throw invalid(path, 'snapshots can only be read');
    if (options.bitmaps?.length) throw invalid(path, 'snapshots have no bitmaps');
    return snapshotExports(path, options);
  }
  const image = await openFor(path, options);
  try {
    const writable = writes !== 'nowhere';
    const fingerprint = fingerprintOf(image);
    const bitmaps = exportBitmaps(image, options.bitmaps ?? []);
    const parts = partitionExports(name, image, writable);
    const close = (): void => closeImage(image);
    const isOverlaid = writable && writes !== 'image';
    if (partition !== undefined) {
      if (bitmaps.length > 0) throw invalid(path, 'bitmaps are those of the whole disk');
      const device = partitionOf(path, image, partition);
      const text = description ?? `partition ${partition} of ${path}`;
      return {
        exports: [{ name, description: text, device, size: device.size, writable }],
        images: [image],
        fingerprint,
        close,
      };
    }
    const disk = { name, description: description ?? path, size: image.size };
    const minimum = Math.max(0, ...usablePartitions(image).map(endOf));
    const resize = options.resizable === true ? resizerOf(image, minimum) : undefined;
    const exports: ImageExport[] = [
      { ...disk, device: image, writable, bitmaps, resize },
      ...parts,
      ...internalSnapshots(name, isOverlaid ? image.backing : image),
      ...layerExports(name, image),
    ];
    return { exports, images: [image], fingerprint, close };
  } catch (error) {
    closeImage(image);
    throw error;
  }
}

async function snapshotExports(path: string, options: ImageExportOptions): Promise<ImageExports> {
  const { name, description, snapshot, partition, open = {} } = options;
  const image = openImage(path, open);
  try {
    await prepareToRead(image);
    const fingerprint = fingerprintOf(image);
    let disk = selectSnapshot(image, image, snapshot!);
    if (partition !== undefined) disk = selectPartition(disk, image, partition);
    const part = partition === undefined ? '' : `partition ${partition} of `;
    const text = description ?? `${part}snapshot ${snapshot} of ${path}`;
    const exports: ImageExport[] = [{ name, description: text, device: disk, size: disk.size }];
    if (partition === undefined) exports.push(...partitionExports(name, disk, false));
    return { exports, images: [image], fingerprint, close: () => image.close() };
  } catch (error) {
    image.close();
    throw error;
  }
}

/** Opens the image once to see what decoders it needs, then as its writes are to go. */
async function openFor(
  path: string,
  { writes = 'nowhere', bitmaps = [], open = {} }: ImageExportOptions,
): Promise<Image> {
  if (writes !== 'nowhere' && writes !== 'image' && bitmaps.length > 0) {
    throw invalid(path, 'bitmaps of an image do not know what is written to an overlay of it');
  }
  if (writes !== 'nowhere' && open.forceShare === true) {
    throw invalid(path, 'an image is written by one alone: not with force-share');
  }
  const image = openTop(path, writes, open);
  try {
    await prepareToRead(image);
  } catch (error) {
    closeImage(image);
    throw error;
  }
  return image;
}

function openTop(path: string, writes: WriteTarget, open: OpenImageOptions): Image {
  if (writes === 'nowhere') return openImage(path, open);
  if (writes === 'temporary') return openTemporaryOverlay(path, open);
  if (writes === 'image') return writeBackEarly(openImage(path, { ...open, writable: true }));
  return writeBackEarly(openKeptOverlay(path, writes.overlay, open));
}

/** Closes an image for good: one that cannot be closed in good order is left as after a crash. */
function closeImage(image: Image): void {
  try {
    image.close();
  } catch (error) {
    if (image.format === 'qcow2') image.abandon();
    throw error;
  }
}

function exportBitmaps(image: Image, names: readonly string[]): ExportBitmap[] {
  return [...new Set(names)].map((name) => {
    if (image.format !== 'qcow2') {
      throw new Qcow2Error('NOT_FOUND', `there is no bitmap '${name}'`, {
        file: image.path,
        hint: 'raw images have no bitmaps',
      });
    }
    // Whether it is there, and can be trusted, is told now and not to the first client.
    image.dirtyRanges(name).next();
    return { name, dirtyRanges: (from: number) => image.dirtyRanges(name, from) };
  });
}

function internalSnapshots(name: string, image: Image | undefined): ImageExport[] {
  if (image?.format !== 'qcow2') return [];
  const exports: ImageExport[] = [];
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
  return exports;
}

function isUsable(name: string): boolean {
  return name !== '' && name.length <= 256 && !name.includes('\0');
}

/** The layers below the image; their numbers count from the base, as those of `mount` do. */
function layerExports(name: string, image: Image): ImageExport[] {
  const layers: Image[] = [];
  for (let layer = image.backing; layer !== undefined; layer = layer.backing) layers.unshift(layer);
  return layers.map((layer, index) => ({
    name: `${name}~${index}`,
    description: `layer ${index} of ${name}: ${layer.path}`,
    device: layer,
    size: layer.size,
  }));
}

/** Of the partitions that hold something themselves: not of extended MBR partitions. */
function partitionExports(name: string, disk: BlockDevice, writable: boolean): ImageExport[] {
  return usablePartitions(disk).map((partition) => ({
    name: `${name}/${partition.number}`,
    description: describePartition(name, partition),
    device: new SliceDevice(disk, { offset: partition.offset, length: partition.length }),
    size: partition.length,
    writable,
  }));
}

function endOf({ offset, length }: Partition): number {
  return offset + length;
}

function usablePartitions(disk: BlockDevice): Partition[] {
  return readPartitionTable(disk)
    .partitions.filter(({ isContainer }) => !isContainer)
    .filter(({ offset, length }) => length > 0 && offset + length <= disk.size);
}

function partitionOf(path: string, disk: BlockDevice, number: number): SliceDevice {
  const partitions = usablePartitions(disk);
  const found = partitions.find((partition) => partition.number === number);
  if (found === undefined) {
    const numbers = partitions.map((partition) => partition.number).join(', ');
    throw new Qcow2Error('NOT_FOUND', `there is no partition ${number}`, {
      file: path,
      hint: numbers === '' ? 'the disk has no partition table' : `it has ${numbers}`,
    });
  }
  return new SliceDevice(disk, { offset: found.offset, length: found.length });
}

function describePartition(diskName: string, { number, name, typeName }: Partition): string {
  const details = [name, typeName].filter((text) => text !== '');
  const suffix = details.length === 0 ? '' : `: ${details.join(', ')}`;
  return `partition ${number} of ${diskName}${suffix.replaceAll('\0', '')}`;
}

function invalid(path: string, problem: string): Qcow2Error {
  return new Qcow2Error('INVALID_OPTION', problem, { file: path });
}
