import { describe, expect, it } from 'vitest';
import { MemoryDevice, NullDevice } from '../../../src/device/memory.ts';
import { FileTree } from '../../../src/export/fuse/file-tree.ts';
import type { TreeNode } from '../../../src/export/fuse/file-tree.ts';
import { imageTree } from '../../../src/export/fuse/image-tree.ts';
import type { ImageParts, TreeSnapshot } from '../../../src/export/fuse/image-tree.ts';
import { LimitedSources, TextSource } from '../../../src/export/fuse/sources.ts';
import type { Partition, PartitionTable } from '../../../src/format/partition/index.ts';
import { TREE_OPTIONS } from './wire.ts';

const MiB = 1024 * 1024;

function partition(number: number, changes: Partial<Partition> = {}): Partition {
  return {
    number,
    offset: number * MiB,
    length: MiB,
    type: '83',
    typeName: 'Linux',
    name: '',
    uuid: '',
    bootable: false,
    isContainer: false,
    ...changes,
  };
}

function parts(changes: Partial<ImageParts> = {}): ImageParts {
  return {
    disk: new NullDevice(16 * MiB),
    storedBytes: () => 4 * MiB,
    table: { scheme: 'none', sectorSize: 512, diskId: '', partitions: [], warnings: [] },
    snapshots: [],
    layers: [],
    texts: {},
    ...changes,
  };
}

function treeOf(changes: Partial<ImageParts>): FileTree {
  return new FileTree(TREE_OPTIONS, imageTree(parts(changes)).entries);
}

/** All paths below a directory. */
function paths(node: TreeNode, prefix = ''): string[] {
  const path = prefix + Buffer.from(node.name).toString();
  if (node.kind === 'file') return [path];
  return [`${path}/`, ...node.children.flatMap((child) => paths(child, `${path}/`))];
}

/** A disk with an MBR of one partition, whose bytes are all `fill`. */
function diskWithPartition(fill: number): MemoryDevice {
  const bytes = Buffer.alloc(4 * MiB, fill);
  bytes.fill(0, 0, 512);
  bytes[446 + 4] = 0x83;
  bytes.writeUInt32LE(2048, 446 + 8);
  bytes.writeUInt32LE(2048, 446 + 12);
  bytes.writeUInt16LE(0xaa55, 510);
  return new MemoryDevice(bytes);
}

describe('imageTree', () => {
  it('shows everything that an image may have', () => {
    const disk = diskWithPartition(5);
    const partitions = [
      partition(1, { name: 'root' }),
      partition(2, { isContainer: true }),
      partition(5, { typeName: 'Linux swap / Solaris' }),
    ];
    const tree = treeOf({
      disk,
      table: { scheme: 'gpt', sectorSize: 512, diskId: '', partitions, warnings: [] },
      snapshots: [
        { id: '1', name: 'before/after', open: () => disk },
        { id: '2', name: '', open: () => disk },
      ],
      layers: [
        { name: 'base.qcow2', device: disk },
        { name: 'top.qcow2', device: disk },
      ],
      texts: { 'info.json': () => ['{}\n'], 'map.json': () => ['[]\n'] },
    });
    expect(paths(tree.root)).toEqual([
      '/',
      '/disk.raw',
      '/partitions/',
      '/partitions/1-root.raw',
      '/partitions/5-Linux-swap-Solaris.raw',
      '/snapshots/',
      '/snapshots/1-before_after/',
      '/snapshots/1-before_after/disk.raw',
      '/snapshots/1-before_after/partitions/',
      '/snapshots/1-before_after/partitions/1-Linux.raw',
      '/snapshots/2/',
      '/snapshots/2/disk.raw',
      '/snapshots/2/partitions/',
      '/snapshots/2/partitions/1-Linux.raw',
      '/layers/',
      '/layers/0-base.qcow2.raw',
      '/layers/1-top.qcow2.raw',
      '/info.json',
      '/map.json',
    ]);
  });

  it('reads a partition of a snapshot from the snapshot', () => {
    const snapshot = { id: '1', name: 'a', open: () => diskWithPartition(9) };
    const tree = treeOf({ disk: diskWithPartition(5), snapshots: [snapshot] });
    const node = tree.resolve('/snapshots/1-a/partitions/1-Linux.raw');
    expect(node?.kind).toBe('file');
    if (node?.kind !== 'file') return;
    expect(node.size).toBe(MiB);
    const bytes = Buffer.alloc(4);
    node.read(bytes, 100);
    expect([...bytes]).toEqual([9, 9, 9, 9]);
  });

  it('opens few of many snapshots, and none for a listing', () => {
    let open = 0;
    let most = 0;
    const snapshots = Array.from({ length: 1000 }, (_, index): TreeSnapshot => {
      return {
        id: `${index}`,
        name: 'same',
        open() {
          open++;
          most = Math.max(most, open);
          const device = new NullDevice(index + 1);
          device.close = () => void open--;
          return device;
        },
      };
    });
    const tree = treeOf({ snapshots });
    const folder = tree.resolve('/snapshots');
    expect(folder?.kind === 'directory' && folder.children.length).toBe(1000);
    expect(open).toBe(0);
    for (let index = 0; index < 1000; index++) {
      const node = tree.resolve(`/snapshots/${index}-same/disk.raw`);
      expect(node && tree.attributes(node).size).toBe(index + 1);
    }
    expect(most).toBeLessThan(12);
  });

  it('tells programs that look at st_blocks that the disk is sparse, never that it is empty', () => {
    const table: PartitionTable = {
      ...{ scheme: 'mbr', sectorSize: 512, diskId: '' },
      ...{ partitions: [partition(1)], warnings: [] },
    };
    const blocks = (storedBytes: number, path: string): number => {
      const tree = treeOf({ table, storedBytes: () => storedBytes });
      return tree.attributes(tree.resolve(path)!).blocks;
    };
    expect(blocks(4 * MiB, '/disk.raw')).toBe((4 * MiB) / 512);
    expect(blocks(4 * MiB, '/partitions/1-Linux.raw')).toBe(MiB / 4 / 512);
    expect(blocks(0, '/disk.raw')).toBe(8);
    expect(blocks(64 * MiB, '/disk.raw')).toBe((16 * MiB) / 512);
  });

  it('keeps hostile names inside their directory, and apart', () => {
    const snapshots = ['..', '../..', '.', '/', 'a\0b', 'a\0b'].map((id) => ({
      id,
      name: '',
      open: () => new NullDevice(1),
    }));
    const { snapshotDirectories } = imageTree(parts({ snapshots }));
    expect(snapshotDirectories).toEqual(['__', '.._..', '_', '_~2', 'a_b', 'a_b~2']);
  });
});

describe('TextSource', () => {
  it('makes its text once, even if that fails', () => {
    let count = 0;
    const source = new TextSource(() => {
      count++;
      throw new Error('broken');
    });
    expect(() => source.device()).toThrow('broken');
    expect(() => source.device()).toThrow('broken');
    expect(count).toBe(1);
  });

  it('refuses a text that would not fit in memory before it is whole', () => {
    const piece = 'x'.repeat(MiB);
    let pieces = 0;
    const source = new TextSource(function* () {
      for (;;) {
        pieces++;
        yield piece;
      }
    });
    expect(() => source.device()).toThrow(expect.objectContaining({ code: 'TOO_LARGE' }));
    expect(pieces).toBe(65);
  });
});

describe('LimitedSources', () => {
  it('keeps what is used most recently', () => {
    const sources = new LimitedSources();
    const opened: number[] = [];
    const all = Array.from({ length: 9 }, (_, index) =>
      sources.source(() => {
        opened.push(index);
        return new NullDevice(1);
      }),
    );
    for (const index of [0, 1, 2, 3, 4, 5, 6, 7, 0, 8, 0, 1]) all[index]!.device();
    expect(opened).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 1]);
  });
});
