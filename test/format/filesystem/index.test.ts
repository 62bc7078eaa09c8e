import { closeSync, openSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { ReadOnlyDevice } from '../../../src/device/block-device.ts';
import type { BlockDevice, Extent } from '../../../src/device/block-device.ts';
import { FileDevice } from '../../../src/device/file.ts';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { Qcow2Error } from '../../../src/errors.ts';
import { recognizeFilesystems } from '../../../src/format/filesystem/index.ts';
import type { Filesystem } from '../../../src/format/filesystem/index.ts';
import { describePeers, itPeers } from '../../support/peers.ts';
import { run, tryRun } from '../../support/qemu.ts';
import { Random } from '../../support/random.ts';
import { temporaryDirectory } from '../../support/temp.ts';
import { MADE, MADE_BYTES, makeImage } from './signatures.ts';

const MiB = 1024 * 1024;

/** What libblkid says of a file. */
function blkid(path: string): { type: string; label: string; uuid: string } {
  const { stdout } = tryRun('blkid', ['-p', '-o', 'export', path]);
  const tags = new Map(
    stdout.split('\n').map((line) => {
      const equals = line.indexOf('=');
      // Characters that a shell might take for its own have a backslash.
      return [line.slice(0, equals), line.slice(equals + 1).replace(/\\(.)/g, '$1')] as const;
    }),
  );
  const tag = (name: string): string => tags.get(name) ?? '';
  return { type: tag('TYPE'), label: tag('LABEL'), uuid: tag('UUID') };
}

function recognizeFile(path: string): Filesystem[] {
  using device = new FileDevice(path);
  return recognizeFilesystems(device);
}

function sparseFile(bytes: number): string {
  const path = join(temporaryDirectory(), 'image');
  writeFileSync(path, '');
  truncateSync(path, bytes);
  return path;
}

/** What is made with its own program, by what is run: `IMAGE` stands for the file. */
const FORMATTED: readonly {
  name: string;
  command: string;
  bytes: number;
  also: Partial<Filesystem>;
}[] = [
  {
    name: 'ext2',
    command: 'mkfs.ext2 -q -L rocks IMAGE',
    bytes: 8 * MiB,
    also: { size: 8 * MiB, needsRecovery: false },
  },
  { name: 'ext3', command: 'mkfs.ext3 -q IMAGE', bytes: 8 * MiB, also: { label: '' } },
  {
    name: 'ext4',
    command: 'mkfs.ext4 -q -b 4096 -L sixteen_letters_ IMAGE',
    bytes: 16 * MiB,
    also: { size: 16 * MiB, label: 'sixteen_letters_' },
  },
  {
    name: 'an ext4 journal of its own',
    command: 'mke2fs -q -O journal_dev IMAGE',
    bytes: 8 * MiB,
    also: { usage: 'other' },
  },
  {
    name: 'xfs',
    command: 'mkfs.xfs -q -L data IMAGE',
    bytes: 300 * MiB,
    also: { size: 300 * MiB, label: 'data' },
  },
  {
    name: 'btrfs',
    command: 'mkfs.btrfs -q -L tree IMAGE',
    bytes: 128 * MiB,
    also: { size: 128 * MiB },
  },
  {
    name: 'FAT12',
    command: 'mkfs.vfat -F 12 -n BOOT IMAGE',
    bytes: 2 * MiB,
    also: { version: 'FAT12', size: 2 * MiB },
  },
  { name: 'FAT16', command: 'mkfs.vfat -F 16 IMAGE', bytes: 16 * MiB, also: { version: 'FAT16' } },
  {
    name: 'FAT32',
    command: 'mkfs.vfat -F 32 -n EFI_SYSTEM IMAGE',
    bytes: 64 * MiB,
    also: { version: 'FAT32', label: 'EFI_SYSTEM' },
  },
  {
    name: 'exFAT',
    command: 'mkfs.exfat -L Grüße IMAGE',
    bytes: 16 * MiB,
    also: { label: 'Grüße', version: '1.0' },
  },
  {
    name: 'NTFS',
    command: 'mkfs.ntfs -q -F -Q -L Windows-Daten IMAGE',
    bytes: 16 * MiB,
    also: { label: 'Windows-Daten' },
  },
  {
    name: 'f2fs',
    command: 'mkfs.f2fs -q -l flash IMAGE',
    bytes: 64 * MiB,
    also: { label: 'flash' },
  },
  {
    name: 'swap',
    command: 'mkswap -q -L pages IMAGE',
    bytes: 4 * MiB,
    also: { usage: 'other', size: 4 * MiB },
  },
  {
    name: 'swap of larger pages',
    command: 'mkswap -q -p 65536 IMAGE',
    bytes: 4 * MiB,
    also: { size: 4 * MiB },
  },
  {
    name: 'squashfs',
    command: 'mksquashfs /etc/hostname IMAGE -quiet -no-progress -noappend',
    bytes: 0,
    also: { version: '4.0' },
  },
  {
    name: 'ISO 9660',
    command: 'genisoimage -quiet -V INSTALL_DISC -o IMAGE /etc/hostname',
    bytes: 0,
    also: { label: 'INSTALL_DISC' },
  },
];

describe('a filesystem made by its own program is told as libblkid tells it', () => {
  for (const { name, command, bytes, also } of FORMATTED) {
    const [program = '', ...args] = command.split(' ');
    itPeers([program, 'blkid'], name, () => {
      const path = sparseFile(bytes);
      run(
        program,
        args.map((argument) => argument.replace('IMAGE', path)),
      );
      const found = recognizeFile(path);
      expect(found).toHaveLength(1);
      expect(found[0]).toMatchObject({ ...blkid(path), ...also });
    });
  }
});

itPeers(['mkfs.vfat', 'blkid'], 'FAT32 with the largest clusters has its label in them', () => {
  const path = sparseFile(300 * MiB);
  run('mkfs.vfat', ['-F', '32', '-S', '4096', '-s', '128', '-n', 'ROOT_LABEL', path]);
  // Windows leaves the copy of the label in the boot sector as it was.
  const file = openSync(path, 'r+');
  writeSync(file, 'NO NAME    ', 71);
  closeSync(file);
  expect(blkid(path).label).toBe('ROOT_LABEL');
  expect(recognizeFile(path)).toMatchObject([blkid(path)]);
});

describePeers(['blkid'], 'a superblock made by hand is told as libblkid tells it', () => {
  for (const [name, { also }] of Object.entries(MADE)) {
    it(name, () => {
      const path = join(temporaryDirectory(), 'image');
      writeFileSync(path, makeImage(name));
      // libblkid does not look for pools on less; the labels at the end are missing then.
      if (name.includes('ZFS')) truncateSync(path, 64 * MiB);
      const oracle = blkid(path);
      expect(oracle.type).not.toBe('');
      const found = recognizeFile(path);
      expect(found).toHaveLength(1);
      // The names of HFS+ volumes are made of numbers by libblkid, not stored.
      const same = name.startsWith('HFS') ? { type: oracle.type } : oracle;
      expect(found[0]).toMatchObject({ ...same, ...also });
    });
  }
});

describe('several signatures', () => {
  itPeers(['mkfs.ext4'], 'are all told, members of something larger first', () => {
    const path = sparseFile(MADE_BYTES);
    run('mkfs.ext4', ['-q', '-L', 'half', path]);
    const disk = new MemoryDevice(Buffer.alloc(MADE_BYTES));
    using file = new FileDevice(path);
    file.read(disk.bytes, 0);
    MADE['a RAID member, version 1.0']!.make(disk.bytes as Buffer);
    MADE['LUKS 1']!.make(disk.bytes as Buffer);
    expect(recognizeFilesystems(disk).map(({ type }) => type)).toEqual([
      'linux_raid_member',
      'crypto_LUKS',
      'ext4',
    ]);
  });
});

itPeers(['mkfs.ext4', 'debugfs'], 'a journal that has to be replayed is told', () => {
  const path = sparseFile(8 * MiB);
  run('mkfs.ext4', ['-q', path]);
  run('debugfs', ['-w', '-R', 'feature needs_recovery', path]);
  expect(recognizeFile(path)).toMatchObject([{ type: 'ext4', needsRecovery: true }]);
});

describe('a device', () => {
  it('of any size down to nothing holds nothing', () => {
    for (const size of [0, 1, 511, 512, 1023, 1024, 2047, 4096, 65_535, 65_536, 1_048_576]) {
      expect(recognizeFilesystems(new MemoryDevice(new Uint8Array(size)))).toEqual([]);
    }
  });

  it('that cannot be read holds nothing', () => {
    expect(recognizeFilesystems(new BrokenDevice(MiB))).toEqual([]);
  });

  it('throws on what is a bug', () => {
    const device = new BrokenDevice(MiB, new TypeError('oops'));
    expect(() => recognizeFilesystems(device)).toThrow(TypeError);
  });

  it('is read a little', () => {
    for (const name of Object.keys(MADE)) {
      const device = new CountingDevice(makeImage(name));
      recognizeFilesystems(device);
      expect(device.bytesRead, name).toBeLessThan(800_000);
    }
    const empty = new CountingDevice(new Uint8Array(8 * MiB));
    recognizeFilesystems(empty);
    expect(empty.bytesRead).toBeLessThan(200_000);
  });
});

describe('damage', () => {
  it('never throws, and sizes are safe integers', () => {
    const seed = Number(process.env.QCOW2_FUZZ_SEED ?? 20_261_123);
    const random = new Random(seed);
    for (const name of Object.keys(MADE)) {
      const original = makeImage(name);
      const used = usedBytes(original);
      for (let round = 0; round < 40; round++) {
        const image = Buffer.from(original);
        damage(image, used, random);
        for (const found of recognizeFilesystems(new MemoryDevice(image))) judge(found, seed);
      }
    }
  });

  itPeers(['mkfs.vfat', 'mkfs.ntfs', 'mkfs.exfat'], 'of those with pointers neither', () => {
    const random = new Random(1);
    for (const command of ['mkfs.vfat', 'mkfs.vfat -F 32', 'mkfs.ntfs -q -F -Q', 'mkfs.exfat']) {
      const [program = '', ...args] = command.split(' ');
      const path = sparseFile(4 * MiB);
      run(program, [...args, path]);
      using file = new FileDevice(path);
      const original = Buffer.alloc(4 * MiB);
      file.read(original, 0);
      const used = usedBytes(original.subarray(0, 512));
      for (let round = 0; round < 40; round++) {
        const image = Buffer.from(original);
        damage(image, used, random);
        for (const found of recognizeFilesystems(new MemoryDevice(image))) judge(found, 1);
      }
    }
  });

  it('of random bytes makes next to nothing', () => {
    const random = new Random(3);
    const image = Buffer.alloc(MiB);
    for (let round = 0; round < 30; round++) {
      for (let at = 0; at < image.length; at += 4) image.writeUInt32LE(random.next(), at);
      expect(recognizeFilesystems(new MemoryDevice(image))).toEqual([]);
    }
  });
});

/** Where an image is not zero, by words. */
function usedBytes(image: Buffer): number[] {
  const used: number[] = [];
  for (let at = 0; at < image.length; at += 4) if (image.readUInt32LE(at) !== 0) used.push(at);
  return used;
}

/** Puts extreme and random bytes into an image, where it holds something. */
function damage(image: Buffer, used: readonly number[], random: Random): void {
  for (let count = 1 + random.below(6); count > 0; count--) {
    const at = random.pick(used) + random.below(4);
    image[at] = random.pick([0, 1, 0x7f, 0x80, 0xff, random.below(256)]);
    if (random.oneIn(3)) image.fill(0xff, at, at + random.below(9));
  }
}

function judge({ type, label, uuid, size }: Filesystem, seed: number): void {
  expect(type, `seed ${seed}`).not.toBe('');
  expect(label.length, `seed ${seed}`).toBeLessThanOrEqual(120_000);
  expect(uuid.length, `seed ${seed}`).toBeLessThanOrEqual(120);
  if (size !== undefined) {
    expect(Number.isSafeInteger(size) && size >= 0, `seed ${seed}: ${type} of ${size}`).toBe(true);
  }
}

class BrokenDevice extends ReadOnlyDevice implements BlockDevice {
  readonly size: number;
  readonly #error: Error;

  constructor(size: number, error: Error = new Qcow2Error('TRUNCATED', 'gone')) {
    super();
    this.size = size;
    this.#error = error;
  }

  read(): void {
    throw this.#error;
  }

  extents(): Iterable<Extent> {
    return [];
  }

  close(): void {
    // Nothing is open.
  }
}

class CountingDevice extends MemoryDevice {
  bytesRead = 0;

  override read(target: Uint8Array, offset: number): void {
    this.bytesRead += target.length;
    super.read(target, offset);
  }
}
