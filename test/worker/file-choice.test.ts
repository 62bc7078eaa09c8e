import { describe, expect, it } from 'vitest';
import type { Filesystem, FilesystemType } from '../../src/format/filesystem/index.ts';
import { chooseFilesystems } from '../../src/worker/file-choice.ts';
import type { ImageSummary } from '../../src/worker/fuse-request.ts';

function found(type: FilesystemType, more: Partial<Filesystem> = {}): Filesystem {
  const member = type.endsWith('_member');
  const usage = member ? 'member' : type === 'crypto_LUKS' ? 'encrypted' : 'filesystem';
  return { type, usage, version: '', label: '', uuid: '', ...more };
}

const SWAP = found('swap', { usage: 'other' });

/** A disk whose partitions, or which itself, holds what is listed. */
function summary(partitions: readonly Filesystem[][], disk: Filesystem[] = []): ImageSummary {
  return {
    format: 'qcow2',
    disk: { file: 'disk.raw', size: 1e9, filesystems: disk },
    partitionScheme: partitions.length === 0 ? 'none' : 'gpt',
    partitions: partitions.map((filesystems, index) => ({
      file: `partitions/${index + 1}-p.raw`,
      size: 1e6,
      number: index + 1,
      type: '',
      typeName: 'Linux filesystem',
      name: 'p',
      filesystems,
    })),
    snapshots: [],
    layers: [],
    warnings: [],
  };
}

const READ_ONE = { all: false, writable: false };
const EXT4 = found('ext4');

describe('of a disk', () => {
  it('the only partition with a filesystem is chosen', () => {
    const [first, ...others] = chooseFilesystems(summary([[SWAP], [], [EXT4]]), READ_ONE);
    expect(others).toEqual([]);
    expect(first).toMatchObject({ file: 'partitions/3-p.raw', name: '3-p', filesystem: EXT4 });
  });

  it('all that have one are chosen if asked', () => {
    const chosen = chooseFilesystems(summary([[EXT4], [SWAP], [found('xfs')]]), {
      all: true,
      writable: true,
    });
    expect(chosen.map(({ name }) => name)).toEqual(['1-p', '3-p']);
  });

  it('the whole is chosen where no partition has one', () => {
    const disc = summary([[], [SWAP]], [found('iso9660')]);
    expect(chooseFilesystems(disc, READ_ONE)).toMatchObject([{ file: 'disk.raw' }]);
    expect(chooseFilesystems(summary([], [EXT4]), READ_ONE)).toMatchObject([{ name: 'disk' }]);
  });
});

describe('there is an error', () => {
  it.each([
    ['LVM2_member', 'an LVM physical volume', 'vgchange --activate y'],
    ['crypto_LUKS', 'a volume encrypted with LUKS', 'cryptsetup open DIR/partitions/2-p.raw'],
    ['linux_raid_member', 'a member of a RAID', 'mdadm --assemble'],
    ['zfs_member', 'a member of a ZFS pool', 'zpool import -d DIR/partitions/2-p.raw'],
  ] as const)('for %s that names it and how to go on', (type, name, hint) => {
    const attempt = (): unknown => chooseFilesystems(summary([[SWAP], [found(type)]]), READ_ONE);
    expect(attempt).toThrow(
      `there is no filesystem to mount, but swap space in partition 1, ${name}`,
    );
    expect(attempt).toThrow(hint);
  });

  it('for several of which one is asked for', () => {
    const labelled = found('xfs', { label: 'data' });
    expect(() => chooseFilesystems(summary([[EXT4], [labelled]]), READ_ONE)).toThrow(
      'several partitions hold files: 1 (ext4), 2 (xfs, data); ' +
        'choose one with --partition N, or take all with --all',
    );
  });
});

describe('several signatures in one place', () => {
  it('are a warning for reading', () => {
    const [chosen] = chooseFilesystems(summary([[EXT4, found('ntfs')]]), READ_ONE);
    expect(chosen?.warnings).toEqual([
      'partition 1 has the signatures of ext4 and ntfs; it is mounted as ext4',
    ]);
  });

  it('are refused for writing', () => {
    const writing = { all: false, writable: true };
    expect(() => chooseFilesystems(summary([[EXT4, found('ntfs')]]), writing)).toThrow(
      'partition 1 has the signatures of ext4 and ntfs: writing to the wrong one',
    );
  });

  it('are no filesystem if what counts most is a member of something', () => {
    const mirror = summary([[found('linux_raid_member'), EXT4]]);
    expect(() => chooseFilesystems(mirror, READ_ONE)).toThrow('a member of a RAID in partition 1');
  });
});

it('a filesystem that is longer than its partition is told', () => {
  const [chosen] = chooseFilesystems(summary([[found('ext4', { size: 1e6 + 512 })]]), READ_ONE);
  expect(chosen?.warnings).toEqual(['the filesystem in partition 1 is 512 bytes longer than that']);
});
