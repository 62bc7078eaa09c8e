import { execFileSync } from 'node:child_process';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { readPartitionTable } from '../../../src/format/partition/index.ts';
import { directory, expectAsSfdisk, makeImage, MiB, readTable } from './sfdisk.ts';
import { describePeers } from '../../support/peers.ts';

describePeers(['sfdisk', 'mkfs.fat', 'mkfs.ext4'], 'MBR', () => {
  test('primary and logical partitions as sfdisk reads them', () => {
    const path = makeImage('label: dos\n,10M,c,*\n,5M\n,,E\n,5M\n,10M,82\n,,8e\n');
    const table = expectAsSfdisk(path);
    expect(table.warnings).toEqual([]);
    expect(table.partitions.map(({ typeName }) => typeName)).toEqual([
      'FAT32 (LBA)',
      'Linux',
      'Extended',
      'Linux',
      'Linux swap',
      'Linux LVM',
    ]);
    expect(table.partitions.filter(({ isContainer }) => isContainer)).toHaveLength(1);
  });

  test.each(['5', 'f', '85'])('follows an extended partition of type %s', (type) => {
    const path = makeImage(`label: dos\n,,${type}\n,10M\n,10M\n`);
    expect(expectAsSfdisk(path).partitions.map(({ number }) => number)).toEqual([1, 5, 6]);
  });

  test('numbers partitions by their slot', () => {
    const path = makeImage('label: dos\n2 : size=10M\n4 : size=10M\n');
    expect(expectAsSfdisk(path).partitions.map(({ number }) => number)).toEqual([2, 4]);
  });

  test('56 logical partitions', () => {
    const path = makeImage(`label: dos\n,,E\n${',1M\n'.repeat(56)}`, 200 * MiB);
    expect(expectAsSfdisk(path).partitions).toHaveLength(57);
  });

  test('a chain of extended boot records that loops ends with a warning', () => {
    const path = makeImage('label: dos\n,,E\n,10M\n,10M\n');
    const bytes = readFileSync(path);
    const second = bytes.readUInt32LE(2048 * 512 + 446 + 16 + 8);
    bytes.copy(bytes, (2048 + second) * 512 + 446 + 16, 2048 * 512 + 446 + 16, 2048 * 512 + 478);
    writeFileSync(path, bytes);
    const table = readTable(path);
    expect(table.partitions.map(({ number }) => number)).toEqual([1, 5, 6]);
    expect(table.warnings).toEqual([
      `the extended boot record at sector ${2048 + second} is linked twice; the chain was cut off there`,
    ]);
  });

  test('a chain of more than 256 extended boot records is cut off', () => {
    const device = new MemoryDevice(new Uint8Array(2 * MiB));
    const view = new DataView(device.bytes.buffer);
    const put = (sector: number, slot: number, values: [number, number, number]): void => {
      const at = sector * 512 + 446 + slot * 16;
      view.setUint8(at + 4, values[0]);
      view.setUint32(at + 8, values[1], true);
      view.setUint32(at + 12, values[2], true);
      view.setUint16(sector * 512 + 510, 0x55aa);
    };
    put(0, 0, [0x05, 1, 4000]);
    for (let index = 0; index < 1000; index++) {
      put(1 + index * 2, 0, [0x83, 1, 1]);
      put(1 + index * 2, 1, [0x05, (index + 1) * 2, 2]);
    }
    const table = readPartitionTable(device);
    expect(table.partitions).toHaveLength(257);
    expect(table.warnings).toEqual(['the chain of logical partitions was cut off after 256 links']);
  });

  test('partitions past the end of a truncated disk are cut off or left out', () => {
    const path = makeImage('label: dos\n,10M\n,10M\n,10M\n');
    truncateSync(path, 15 * MiB);
    const table = readTable(path);
    expect(table.partitions.map(({ length }) => length)).toEqual([10 * MiB, 4 * MiB]);
    expect(table.warnings).toEqual([
      'partition 2 reaches past the end of the disk and was cut off there',
      'partition 3 starts past the end of the disk and was left out',
    ]);
  });

  test('an MBR without partitions', () => {
    expect(expectAsSfdisk(makeImage('label: dos\n')).partitions).toEqual([]);
  });

  test.each([
    ['FAT12', ['mkfs.fat', '-F12'], 2],
    ['FAT16', ['mkfs.fat', '-F16'], 20],
    ['FAT32', ['mkfs.fat', '-F32'], 64],
    ['ext4', ['mkfs.ext4', '-q', '-F'], 8],
  ])('%s without a partition table is no MBR', (_name, [program, ...options], sizeMiB) => {
    const path = join(directory, 'filesystem.raw');
    writeFileSync(path, '');
    truncateSync(path, sizeMiB * MiB);
    execFileSync(program!, [...options, path], { stdio: 'pipe' });
    expect(readTable(path)).toMatchObject({ scheme: 'none', partitions: [], warnings: [] });
  });

  test.each(['NTFS    ', 'EXFAT   '])('the boot sector of %s is no MBR', (name) => {
    const sector = Buffer.alloc(4096);
    sector.set([0xeb, 0x52, 0x90]);
    sector.write(name, 3, 'latin1');
    sector.writeUInt16BE(0x55aa, 510);
    expect(readPartitionTable(new MemoryDevice(sector)).scheme).toBe('none');
    sector[0] = 0x33;
    expect(readPartitionTable(new MemoryDevice(sector)).scheme).toBe('mbr');
  });
});
