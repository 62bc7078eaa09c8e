/**
 * The directory that shows an image:
 *
 *     disk.raw                          the whole disk
 *     partitions/NUMBER-NAME.raw        one file a partition
 *     snapshots/ID-NAME/disk.raw, …     the same for each internal snapshot
 *     layers/NUMBER-NAME.raw            the disk as each layer of the chain saw it; 0 is the base
 *     info.json, map.json               texts, made when they are first looked at
 *     stats, stats.json                 what was asked for and read so far
 */

import type { BlockDevice } from '../../device/block-device.ts';
import { readPartitionTable } from '../../format/partition/index.ts';
import type { Partition, PartitionTable } from '../../format/partition/index.ts';
import { openSource } from './file-tree.ts';
import type { FileSource, TreeEntry } from './file-tree.ts';
import { UniqueNames } from './names.ts';
import { ChangingTextSource, LimitedSources, LiveTextSource, TextSource } from './sources.ts';
import type { WritableDisk } from './writable-disk.ts';

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
  /** The disk, if it accepts writes. */
  writable?: WritableDisk | undefined;
  /** Bytes that the files of the image take on the host. */
  storedBytes: () => number;
  table: PartitionTable;
  snapshots: readonly TreeSnapshot[];
  /** The base first. Empty for a disk without a backing chain. */
  layers: readonly { name: string; device: BlockDevice }[];
  /** Texts in pieces, by file name. */
  texts: Readonly<Record<string, () => Iterable<string>>>;
  /** Texts that are different whenever somebody looks, by file name (default: there are none). */
  liveTexts?: Readonly<Record<string, LiveText>> | undefined;
}

/** A text about what goes on. */
export interface LiveText {
  content: () => string;
  /** Bytes that it never exceeds. */
  longest: () => number;
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
  const { disk, writable, snapshots, layers, storedBytes } = parts;
  const names = new UniqueNames();
  const snapshotDirectories = snapshots.map(({ id, name }) => names.next(joinName(id, name)));
  const layerFiles = layers.map(({ name }, index) => names.next(joinName(index, name), '.raw'));
  const partitions = namePartitions(parts.table);
  const sources = new LimitedSources();
  const stored = (length: number): number => (storedBytes() * length) / Math.max(1, disk.size);
  const diskFiles: DiskFiles = { stored, writable: writable !== undefined };
  const entries = function* (): Generator<TreeEntry> {
    yield* diskEntries(openSource(disk), () => partitions, diskFiles);
    yield directory('snapshots', () =>
      snapshots.map((snapshot, index) => {
        const source = sources.source(() => snapshot.open());
        const table = (): NamedPartition[] => namePartitions(readPartitionTable(source.device()));
        const name = snapshotDirectories[index]!;
        return directory(name, () => diskEntries(source, table, {}));
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
      const source =
        writable === undefined
          ? new TextSource(content)
          : new ChangingTextSource(content, () => writable.changes);
      yield { kind: 'file', name, source };
    }
    for (const [name, { content, longest }] of Object.entries(parts.liveTexts ?? {})) {
      yield { kind: 'file', name, source: new LiveTextSource(content, longest) };
    }
  };
  return { entries, partitions, snapshotDirectories, layerFiles };
}

/** What the files of a disk and its partitions have in common. */
interface DiskFiles {
  /** Space on the host that a part of the disk takes: its share, by its length in bytes. */
  stored?: (length: number) => number;
  writable?: boolean;
}

function* diskEntries(
  source: FileSource,
  partitions: () => readonly NamedPartition[],
  { stored, writable = false }: DiskFiles,
): Generator<TreeEntry> {
  const common = { kind: 'file', source, writable } as const;
  const space = (length: () => number): { storedBytes?: () => number } =>
    stored === undefined ? {} : { storedBytes: () => stored(length()) };
  yield { ...common, name: 'disk.raw', ...space(() => source.device().size) };
  yield directory('partitions', () =>
    partitions().map(({ file, partition: { offset, length } }) => ({
      ...common,
      name: file,
      range: { offset, length },
      ...space(() => length),
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
