/** Opens an image for a mount, and lays out what the mount shows of it. */

import { statSync } from 'node:fs';
import { basename } from 'node:path';
import { shareClusterCache, useClusterCache } from '../chain/cluster-cache.ts';
import { fingerprintOf } from '../chain/fingerprint.ts';
import { selectPartition, selectSnapshot } from '../chain/open-device.ts';
import type { Image } from '../chain/open.ts';
import { prepareToRead } from '../chain/prepare.ts';
import type { BlockDevice } from '../device/block-device.ts';
import { FileDevice } from '../device/file.ts';
import { SliceDevice } from '../device/slice.ts';
import type { SliceRange } from '../device/slice.ts';
import { FileTree } from '../export/fuse/file-tree.ts';
import { imageTree } from '../export/fuse/image-tree.ts';
import type { ImageParts, ImageTree } from '../export/fuse/image-tree.ts';
import { WritableDisk } from '../export/fuse/writable-disk.ts';
import { recognizeFilesystems } from '../format/filesystem/index.ts';
import type { Filesystem } from '../format/filesystem/index.ts';
import { readPartitionTable } from '../format/partition/index.ts';
import type { PartitionTable } from '../format/partition/index.ts';
import { formatMapJson } from '../operations/format-map.ts';
import { imageInfo } from '../operations/info.ts';
import { mapImage } from '../operations/map.ts';
import { defaultCacheBytes } from '../qcow2/cluster-cache/shared-cluster-cache.ts';
import type { SharedClusterCache } from '../qcow2/cluster-cache/shared-cluster-cache.ts';
import { closeMounted, openMounted } from './fuse-open.ts';
import type { MountedImage } from './fuse-open.ts';
import type { ImageRequest, ImageSummary, MountRequest } from './fuse-request.ts';
import type { MountStats } from './mount-stats.ts';

/** An image that is open, and its tree. */
export interface OpenedImage {
  tree: FileTree;
  summary: ImageSummary;
  /** What tells whether another thread has opened the same files. */
  fingerprint: string;
  /** The cache of decompressed clusters that it uses. */
  clusterCache: SharedClusterCache;
  /**
   * Closes the image, with everything that was written brought to the disk.
   *
   * @param isAccepted somebody was told that the mount stands; an overlay that was made for it and
   * holds nothing stays only then
   * @throws {Qcow2Error} if what was written last may be lost; it is closed all the same
   */
  close: (how: { isAccepted: boolean }) => void;
}

/**
 * Opens the image of a request.
 * @param stats where it is counted what is read of it, and what the tree shows of that
 * @param cache of the process, which the image is to use (default: a new one)
 * @throws {Qcow2Error} what is wrong with it
 */
export async function openForMount(
  request: MountRequest,
  stats?: MountStats,
  cache?: SharedClusterCache,
): Promise<OpenedImage> {
  const { options } = request;
  const mounted = openMounted(request);
  let writable: WritableDisk | undefined;
  const close = ({ isAccepted }: { isAccepted: boolean }): void =>
    closeMounted(mounted, request, {
      isUnused: !isAccepted && !(writable && writable.changes > 0),
    });
  try {
    await prepareToRead(mounted.top);
    if (cache !== undefined) useClusterCache(mounted.top, cache);
    const cacheBytes = request.cacheBytes ?? defaultCacheBytes();
    const clusterCache = cache ?? shareClusterCache([mounted.top], cacheBytes);
    stats?.watch(mounted.top);
    const fingerprint = fingerprintOf(mounted.top);
    const modifiedMs = statSync(mounted.named.path).mtimeMs;
    const parts = partsOf(request, mounted, modifiedMs);
    writable = parts.writable;
    const layout = imageTree({ ...parts, liveTexts: stats?.liveTexts });
    const tree = new FileTree(
      {
        uid: options.uid ?? process.geteuid?.() ?? 0,
        gid: options.gid ?? process.getegid?.() ?? 0,
        fileMode: options.fileMode,
        get modifiedMs() {
          return parts.writable?.modifiedMs ?? modifiedMs;
        },
        bytes: parts.disk.size,
        disk: parts.writable,
        hasLiveTexts: stats !== undefined,
      },
      layout.entries,
    );
    return {
      tree,
      summary: summarize(parts, layout, mounted.named.format),
      fingerprint,
      clusterCache,
      close,
    };
  } catch (error) {
    close({ isAccepted: false });
    throw error;
  }
}

/** What the image is made of: the whole disk with all that belongs to it, or a part of it. */
function partsOf(request: MountRequest, mounted: MountedImage, modifiedMs: number): ImageParts {
  const { snapshot, partition } = request;
  const { top, named } = mounted;
  // An overlay that is gone at the end is nothing to show.
  const layers = layersOf(request.access === 'temp' ? named : top);
  const common = {
    storedBytes: () => layersOf(top).reduce((sum, layer) => sum + allocatedBytes(layer), 0),
    texts: textsOf(mounted, request),
  };
  const disk = partOf(top, request);
  const isWhole = disk === top;
  const parts: ImageParts = {
    ...common,
    disk,
    writable: request.access === 'ro' ? undefined : new WritableDisk(disk, { modifiedMs }),
    // What looks like a table at the start of a partition is a boot sector.
    table: partition === undefined ? readPartitionTable(disk) : NO_TABLE,
    snapshots: [],
    layers: [],
  };
  if (!isWhole || snapshot !== undefined) return parts;
  parts.snapshots = (top === named ? [top] : [top, named]).flatMap(snapshotsOf);
  if (layers.length > 1) {
    parts.layers = layers.map((layer) => ({ name: basename(layer.path), device: layer })).reverse();
  }
  return parts;
}

/** The disk, or the snapshot or partition of it that is asked for. */
function partOf(image: Image, { snapshot, partition }: ImageRequest): BlockDevice {
  const disk = snapshot === undefined ? image : selectSnapshot(image, image, snapshot);
  return partition === undefined ? disk : selectPartition(disk, image, partition);
}

/**
 * What `info` and `map` print of the image, made when somebody looks. Of an overlay that is gone at
 * the end only what is in it is told.
 */
function textsOf({ top, named }: MountedImage, { access }: MountRequest): ImageParts['texts'] {
  const described = access === 'temp' ? named : top;
  return {
    'info.json': () => [`${JSON.stringify(imageInfo(described), null, 4)}\n`],
    'map.json': () => formatMapJson(mapImage(top)),
  };
}

const NO_TABLE: PartitionTable = {
  scheme: 'none',
  sectorSize: 512,
  diskId: '',
  partitions: [],
  warnings: [],
};

/** The image, its backing file, and so on down to the base. */
function layersOf(image: Image): Image[] {
  const layers: Image[] = [];
  for (let layer: Image | undefined = image; layer !== undefined; layer = layer.backing) {
    layers.push(layer);
  }
  return layers;
}

function snapshotsOf(image: Image): ImageParts['snapshots'] {
  if (!('snapshots' in image)) return [];
  return image.snapshots.map(({ id, name }) => ({
    id,
    name,
    open: (): BlockDevice => image.openSnapshot(id),
  }));
}

/** Space that a layer's file takes; a block device is full. */
function allocatedBytes({ file }: Image): number {
  if (!(file instanceof FileDevice)) return 0;
  return file.isBlockDevice ? Number.MAX_SAFE_INTEGER / 2 : file.allocatedSize;
}

/** Partitions whose content is looked at: a table may have thousands. */
const MAX_EXAMINED = 128;

function filesystemsIn(disk: BlockDevice, { offset, length }: SliceRange): Filesystem[] {
  return recognizeFilesystems(new SliceDevice(disk, { offset, length }));
}

function summarize(parts: ImageParts, layout: ImageTree, format: string): ImageSummary {
  return {
    format,
    disk: {
      file: 'disk.raw',
      size: parts.disk.size,
      filesystems: recognizeFilesystems(parts.disk),
    },
    partitionScheme: parts.table.scheme,
    partitions: layout.partitions.map(({ file, partition }, index) => ({
      file: `partitions/${file}`,
      size: partition.length,
      number: partition.number,
      type: partition.type,
      typeName: partition.typeName,
      name: partition.name,
      filesystems: index < MAX_EXAMINED ? filesystemsIn(parts.disk, partition) : [],
    })),
    snapshots: parts.snapshots.map(({ id, name }, index) => ({
      id,
      name,
      directory: `snapshots/${layout.snapshotDirectories[index]!}`,
    })),
    layers: parts.layers.map(({ device }, index) => ({
      file: `layers/${layout.layerFiles[index]!}`,
      size: device.size,
    })),
    warnings: parts.table.warnings,
  };
}
