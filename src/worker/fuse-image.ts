/** Opens an image for a mount, and lays out what the mount shows of it. */

import { basename } from 'node:path';
import { statSync } from 'node:fs';
import { FileDevice } from '../device/file.ts';
import { readPartitionTable } from '../format/partition/index.ts';
import { FileTree } from '../export/fuse/file-tree.ts';
import { imageTree } from '../export/fuse/image-tree.ts';
import type { ImageParts, ImageTree } from '../export/fuse/image-tree.ts';
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
export function openForMount(request: MountRequest): OpenedImage {
  const { options, image } = request;
  const { parts, format } = openParts(request);
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

function openParts(request: ImageRequest): { parts: ImageParts; format: string } {
  const disk = new FileDevice(request.image);
  return {
    parts: {
      disk,
      storedBytes: disk.allocatedSize,
      table: readPartitionTable(disk),
      snapshots: [],
      layers: [{ name: basename(disk.path), device: disk }],
      texts: { 'info.json': () => ['{}\n'] },
    },
    format: 'raw',
  };
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
