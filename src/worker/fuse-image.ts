/** Opens an image for a mount, and lays out what the mount shows of it. */

import { statSync } from 'node:fs';
import { basename } from 'node:path';
import { openDevice } from '../chain/open-device.ts';
import { openImage } from '../chain/open.ts';
import type { Image, OpenImageOptions } from '../chain/open.ts';
import { prepareToRead } from '../chain/prepare.ts';
import type { BlockDevice } from '../device/block-device.ts';
import { FileTree } from '../export/fuse/file-tree.ts';
import { imageTree } from '../export/fuse/image-tree.ts';
import type { ImageParts, ImageTree } from '../export/fuse/image-tree.ts';
import { readPartitionTable } from '../format/partition/index.ts';
import type { PartitionTable } from '../format/partition/index.ts';
import { formatMapJson } from '../operations/format-map.ts';
import { imageInfo } from '../operations/info.ts';
import { mapImage } from '../operations/map.ts';
import type { ImageRequest, ImageSummary, MountRequest } from './fuse-request.ts';

/** An image that is open, and its tree. */
export interface OpenedImage {
  tree: FileTree;
  summary: ImageSummary;
}

/**
 * Opens the image of a request.
 * @throws {Qcow2Error} what is wrong with it
 */
export async function openForMount(request: MountRequest): Promise<OpenedImage> {
  const { options, image } = request;
  const { parts, format } = await openParts(request);
  const layout = imageTree(parts);
  const tree = new FileTree(
    {
      uid: options.uid ?? process.geteuid?.() ?? 0,
      gid: options.gid ?? process.getegid?.() ?? 0,
      fileMode: options.fileMode,
      modifiedMs: statSync(image).mtimeMs,
      bytes: parts.disk.size,
    },
    layout.entries,
  );
  return { tree, summary: summarize(parts, layout, format) };
}

async function openParts(request: ImageRequest): Promise<{ parts: ImageParts; format: string }> {
  const { image: path, snapshot, partition } = request;
  const options = openOptions(request);
  const image = openImage(path, options);
  await prepareToRead(image);
  const layers = layersOf(image);
  const storedBytes = layers.reduce((sum, layer) => sum + allocatedBytes(layer.path), 0);
  const common = { storedBytes, texts: textsOf(image) };
  if (snapshot !== undefined || partition !== undefined) {
    const disk = openDevice(path, {
      ...options,
      ...(snapshot === undefined ? {} : { snapshot }),
      ...(partition === undefined ? {} : { partition }),
    });
    // What looks like a table at the start of a partition is a boot sector.
    const table = partition === undefined ? readPartitionTable(disk) : NO_TABLE;
    const parts = { ...common, disk, table, snapshots: [], layers: [] };
    return { parts, format: image.format };
  }
  const parts: ImageParts = {
    ...common,
    disk: image,
    table: readPartitionTable(image),
    snapshots: snapshotsOf(image),
    layers:
      image.backing === undefined
        ? []
        : layers.map((layer) => ({ name: basename(layer.path), device: layer })).reverse(),
  };
  return { parts, format: image.format };
}

/** What `info` and `map` print of the image, made when somebody looks. */
function textsOf(image: Image): ImageParts['texts'] {
  return {
    'info.json': () => [`${JSON.stringify(imageInfo(image), null, 4)}\n`],
    'map.json': () => formatMapJson(mapImage(image)),
  };
}

const NO_TABLE: PartitionTable = {
  scheme: 'none',
  sectorSize: 512,
  diskId: '',
  partitions: [],
  warnings: [],
};

function openOptions(request: ImageRequest): OpenImageOptions {
  const { format, backingFormat, allowProtocolNames, forceShare } = request;
  return {
    ...(format === undefined ? {} : { format }),
    ...(backingFormat === undefined ? {} : { backingFormat }),
    ...(allowProtocolNames === undefined ? {} : { allowProtocolNames }),
    ...(forceShare === undefined ? {} : { forceShare }),
  };
}

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

/** Space that a file takes; a block device is full. */
function allocatedBytes(path: string): number {
  const stats = statSync(path);
  return stats.isFile() ? stats.blocks * 512 : Number.MAX_SAFE_INTEGER / 2;
}

function summarize(parts: ImageParts, layout: ImageTree, format: string): ImageSummary {
  return {
    format,
    disk: { file: 'disk.raw', size: parts.disk.size },
    partitionScheme: parts.table.scheme,
    partitions: layout.partitions.map(({ file, partition }) => ({
      file: `partitions/${file}`,
      size: partition.length,
      number: partition.number,
      type: partition.type,
      typeName: partition.typeName,
      name: partition.name,
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
