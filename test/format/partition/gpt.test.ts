import { execFileSync } from 'node:child_process';
import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { expect, test } from 'vitest';
import {
  damage,
  directory,
  DISK_SIZE,
  expectAsSfdisk,
  GPT_SCRIPT,
  makeImage,
  MiB,
  readTable,
  writeHeaderCrc,
} from './sfdisk.ts';
import { describePeers } from '../../support/peers.ts';

describePeers(['sfdisk', 'sgdisk', 'fdisk'], 'GPT', () => {
  test('partitions as sfdisk reads them', () => {
    const table = expectAsSfdisk(makeImage(GPT_SCRIPT));
    expect(table.warnings).toEqual([]);
    expect(table.sectorSize).toBe(512);
    expect(table.partitions.map(({ typeName, name }) => [typeName, name])).toEqual([
      ['EFI system', 'EFI'],
      ['Linux filesystem', 'räksmörgås'],
      ['Linux swap', ''],
    ]);
  });

  test('partitions as sgdisk makes them, in slots of its choice', () => {
    const path = join(directory, 'sgdisk.raw');
    writeFileSync(path, '');
    truncateSync(path, 64 * MiB);
    const steps = ['-n3:0:+8M', '-t3:8300', '-c3:root', '-n128:0:+8M', '-t128:8200'];
    execFileSync('sgdisk', [...steps, path], { stdio: 'pipe' });
    expect(expectAsSfdisk(path).partitions.map(({ number }) => number)).toEqual([3, 128]);
  });

  test('sectors of 4096 bytes', () => {
    const path = join(directory, '4096.raw');
    writeFileSync(path, '');
    truncateSync(path, 64 * MiB);
    execFileSync('fdisk', ['-b', '4096', path], { input: 'g\nn\n\n\n+8M\nw\n', stdio: 'pipe' });
    expect(readTable(path)).toMatchObject({
      scheme: 'gpt',
      sectorSize: 4096,
      partitions: [{ number: 1, offset: MiB, length: 8 * MiB, typeName: 'Linux filesystem' }],
      warnings: [],
    });
    damage(path, 4096 + 20);
    expect(readTable(path)).toMatchObject({ scheme: 'gpt', sectorSize: 4096 });
  });

  test.each([
    ['header', 512 + 24, 'has a wrong checksum'],
    ['signature', 512, 'is missing'],
    ['entries', 1024 + 56, 'has entries with a wrong checksum'],
  ])('damage to the first %s: the copy is used', (_name, offset, problem) => {
    const path = makeImage(GPT_SCRIPT);
    const before = readTable(path);
    damage(path, offset);
    const after = readTable(path);
    expect(after.partitions).toEqual(before.partitions);
    expect(after.diskId).toBe(before.diskId);
    expect(after.warnings).toEqual([
      `the first GPT ${problem}; its copy at the end of the disk is used`,
    ]);
  });

  test('damage to the copy is a warning', () => {
    const path = makeImage(GPT_SCRIPT);
    const before = readTable(path);
    damage(path, DISK_SIZE - 512 + 24);
    expect(readTable(path)).toEqual({
      ...before,
      warnings: ['the copy of the GPT at the end of the disk has a wrong checksum'],
    });
  });

  test('damage to both copies leaves nothing, with a warning', () => {
    const path = makeImage(GPT_SCRIPT);
    damage(path, 512 + 24);
    damage(path, DISK_SIZE - 512 + 24);
    expect(readTable(path)).toMatchObject({
      scheme: 'none',
      partitions: [],
      warnings: [
        'the GPT has a wrong checksum',
        'the MBR announces a GPT, but neither copy of it can be used',
      ],
    });
  });

  test('copies that disagree: the first is used', () => {
    const path = makeImage(GPT_SCRIPT);
    const before = readTable(path);
    const bytes = readFileSync(path);
    const at = bytes.length - 512;
    bytes[at + 56]! ^= 0xff;
    writeHeaderCrc(bytes.subarray(at));
    writeFileSync(path, bytes);
    expect(readTable(path)).toEqual({
      ...before,
      warnings: ['the two copies of the GPT disagree; the first is used'],
    });
  });

  test('without its protective MBR it is read with a warning', () => {
    const path = makeImage(GPT_SCRIPT);
    const before = readTable(path);
    damage(path, 510);
    const warnings = ['the protective MBR of the GPT is missing'];
    expect(readTable(path)).toEqual({ ...before, warnings });
  });

  test('an MBR that replaced it wins, as it does on Linux', () => {
    const path = makeImage(GPT_SCRIPT);
    const bytes = readFileSync(path);
    bytes[446 + 4] = 0x83;
    writeFileSync(path, bytes);
    const table = readTable(path);
    expect(table.scheme).toBe('mbr');
    expect(table.warnings).toHaveLength(1);
  });

  test('the other entries of a hybrid MBR are ignored', () => {
    const path = makeImage(GPT_SCRIPT);
    execFileSync('sgdisk', ['--hybrid=1', path], { stdio: 'pipe' });
    const table = readTable(path);
    expect(table).toMatchObject({ scheme: 'gpt', partitions: { length: 3 } });
    expect(table.warnings).toEqual(['the MBR beside the GPT has 1 entries; they are ignored']);
  });

  test('a disk that was made larger keeps its table', () => {
    const path = makeImage(GPT_SCRIPT);
    const before = readTable(path);
    truncateSync(path, 200 * MiB);
    expect(readTable(path)).toEqual(before);
  });

  test('a truncated disk: partitions are cut off or left out', () => {
    const path = makeImage(GPT_SCRIPT);
    truncateSync(path, 15 * MiB);
    expect(readTable(path)).toMatchObject({
      scheme: 'gpt',
      partitions: [{ length: 10 * MiB }, { length: 4 * MiB }],
      warnings: [
        'the copy of the GPT at the end of the disk is missing',
        'partition 2 reaches past the end of the disk and was cut off there',
        'partition 3 starts past the end of the disk and was left out',
      ],
    });
  });

  test.each([
    ['header size', 12, 0xffffffff, 'has a header size of 4294967295'],
    ['header size', 12, 91, 'has a header size of 91'],
    ['entry count', 80, 0xffffffff, 'has 4294967295 entries, more than 4096'],
    ['entry count', 80, 4097, 'has 4097 entries, more than 4096'],
    ['entry size', 84, 0, 'has entries of 0 bytes'],
    ['entry size', 84, 8192, 'has entries of 8192 bytes'],
    ['entries LBA', 76, 0xffffffff, 'has its entries outside the disk'],
    ['own LBA', 24, 2, 'says that it is in sector 2'],
  ])('a bad %s in a header with the right checksum (%#)', (_name, offset, value, problem) => {
    const path = makeImage(GPT_SCRIPT);
    const bytes = readFileSync(path);
    bytes.writeUInt32LE(value, 512 + offset);
    writeHeaderCrc(bytes.subarray(512, 1024));
    writeFileSync(path, bytes);
    expect(readTable(path).warnings).toEqual([
      `the first GPT ${problem}; its copy at the end of the disk is used`,
    ]);
  });

  test('thousands of bad entries make few warnings', () => {
    const path = makeImage(GPT_SCRIPT);
    const bytes = readFileSync(path);
    const entries = bytes.subarray(1024, 1024 + 128 * 128);
    for (let at = 0; at < entries.length; at += 128) entries.copy(entries, at, 0, 32);
    for (let at = 0; at < entries.length; at += 128) entries.writeUInt32LE(0xffffffff, at + 32);
    bytes.writeUInt32LE(crc32(entries), 512 + 88);
    writeHeaderCrc(bytes.subarray(512, 1024));
    writeFileSync(path, bytes);
    const { partitions, warnings } = readTable(path);
    expect(partitions).toEqual([]);
    expect(warnings).toHaveLength(17);
    expect(warnings.at(-1)).toMatch(/^and \d+ more$/);
  });
});
