/**
 * The directory that shows an image:
 *
 *     disk.raw                          the whole disk
 *     partitions/NUMBER-NAME.raw        one file a partition
 *     snapshots/ID-NAME/disk.raw, …     the same for each internal snapshot
 *     layers/NUMBER-NAME.raw            the disk as each layer of the chain saw it; 0 is the base
 *     info.json, map.json               texts, made when they are first looked at
 */

import type { BlockDevice } from '../../device/block-device.ts';
import { readPartitionTable } from '../../format/partition/index.ts';
import type { Partition, PartitionTable } from '../../format/partition/index.ts';
import { openSource } from './file-tree.ts';
import type { FileSource, TreeEntry } from './file-tree.ts';
import { UniqueNames } from './names.ts';
import { LimitedSources, TextSource } from './sources.ts';

/** An internal snapshot. */
export interface TreeSnapshot {
  id: string;
  name: string;
  /** Opens the disk as it was; called again after it was closed. */
  open(): BlockDevice;
}

/** What an image is made of, as far as the tree shows it. */
export interface ImageParts {
  disk: BlockDevice;
  /** Bytes that the files of the image take on the host. */
  storedBytes: number;
  table: PartitionTable;
  snapshots: readonly TreeSnapshot[];
  /** The base first. Empty for a disk without a backing chain. */
  layers: readonly { name: string; device: BlockDevice }[];
  /** Texts in pieces, by file name. */
  texts: Readonly<Record<string, () => Iterable<string>>>;
}

/** A partition, and the name of its file. */
export interface NamedPartition {
  file: string;
  partition: Partition;
}

/** What the root directory holds, with the names that it is shown under. */
export interface ImageTree {
  entries: () => Iterable<TreeEntry>;
  partitions: readonly NamedPartition[];
  /** Directory of each snapshot, in their order. */
  snapshotDirectories: readonly string[];
  /** File of each layer, in their order. */
  layerFiles: readonly string[];
}

/** Lays out the tree of an image. */
export function imageTree(parts: ImageParts): ImageTree {
  const { disk, snapshots, layers, storedBytes } = parts;
  const names = new UniqueNames();
  const snapshotDirectories = snapshots.map(({ id, name }) => names.next(joinName(id, name)));
  const layerFiles = layers.map(({ name }, index) => names.next(joinName(index, name), '.raw'));
  const partitions = namePartitions(parts.table);
  const sources = new LimitedSources();
  const diskShare: StoredShare = { stored: storedBytes, size: disk.size };
  const entries = function* (): Generator<TreeEntry> {
    yield* diskEntries(openSource(disk), () => partitions, diskShare);
    yield directory('snapshots', () =>
      snapshots.map((snapshot, index) => {
        const source = sources.source(() => snapshot.open());
        const table = (): NamedPartition[] => namePartitions(readPartitionTable(source.device()));
        const name = snapshotDirectories[index]!;
        return directory(name, () => diskEntries(source, table, undefined));
      }),
    );
    yield directory('layers', () =>
      layers.map(({ device }, index) => ({
        kind: 'file',
        name: layerFiles[index]!,
        source: openSource(device),
        storedBytes,
      })),
    );
    for (const [name, content] of Object.entries(parts.texts)) {
      yield { kind: 'file', name, source: new TextSource(content) };
    }
  };
  return { entries, partitions, snapshotDirectories, layerFiles };
}

/** How much of a disk's size is stored on the host: for partitions, the same share of theirs. */
interface StoredShare {
  stored: number;
  size: number;
}

function* diskEntries(
  source: FileSource,
  partitions: () => readonly NamedPartition[],
  share: StoredShare | undefined,
): Generator<TreeEntry> {
  const stored = (length: number): { storedBytes?: number } =>
    share === undefined ? {} : { storedBytes: (share.stored * length) / Math.max(1, share.size) };
  const whole = share === undefined ? {} : { storedBytes: share.stored };
  yield { kind: 'file', name: 'disk.raw', source, ...whole };
  yield directory('partitions', () =>
    partitions().map(({ file, partition: { offset, length } }) => ({
      kind: 'file',
      name: file,
      source,
      range: { offset, length },
      ...stored(length),
    })),
  );
}

function directory(name: string, entries: () => Iterable<TreeEntry>): TreeEntry {
  return { kind: 'directory', name, entries };
}

/** Files of the partitions that hold something themselves: not of extended MBR partitions. */
function namePartitions({ partitions }: PartitionTable): NamedPartition[] {
  const names = new UniqueNames();
  return partitions
    .filter(({ isContainer }) => !isContainer)
    .map((partition) => {
      const { number, name, typeName } = partition;
      // A label stays as it is; the words of a type are joined, for the shell's sake.
      const label = name.trim() === '' ? typeName.replace(/[^\p{L}\p{N}.]+/gu, '-') : name;
      return { file: names.next(joinName(number, label), '.raw'), partition };
    });
}

function joinName(first: string | number, second: string): string {
  return second === '' ? String(first) : `${first}-${second}`;
}
