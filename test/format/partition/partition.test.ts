import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import fc from 'fast-check';
import { afterAll, describe, expect, test } from 'vitest';
import { ReadOnlyDevice } from '../../../src/device/block-device.ts';
import { FileDevice } from '../../../src/device/file.ts';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { Qcow2Error } from '../../../src/errors.ts';
import { readPartitionTable } from '../../../src/format/partition/index.ts';
import type { PartitionTable } from '../../../src/format/partition/index.ts';

const MiB = 1024 * 1024;
const DISK_SIZE = 40 * MiB;
const directory = mkdtempSync(join(tmpdir(), 'qcow2-partition-'));
afterAll(() => {
  rmSync(directory, { recursive: true, force: true });
});

/** A sparse image of `size` bytes on which sfdisk has carried out `script`. */
function makeImage(script: string, size = DISK_SIZE): string {
  const path = join(directory, 'image.raw');
  writeFileSync(path, '');
  truncateSync(path, size);
  execFileSync('sfdisk', ['--quiet', '--no-tell-kernel', path], { input: script, stdio: 'pipe' });
  return path;
}

function readTable(path: string): PartitionTable {
  using device = new FileDevice(path);
  return readPartitionTable(device);
}

interface SfdiskTable {
  label: 'dos' | 'gpt';
  id: string;
  partitions?: {
    node: string;
    start: number;
    size: number;
    type: string;
    uuid?: string;
    name?: string;
    bootable?: boolean;
    attrs?: string;
  }[];
}

/** What sfdisk reads, in our terms. */
function sfdiskTable(path: string) {
  const json = execFileSync('sfdisk', ['--json', path], { encoding: 'utf8', stdio: 'pipe' });
  const table = (JSON.parse(json) as { partitiontable: SfdiskTable }).partitiontable;
  const isMbr = table.label === 'dos';
  return {
    scheme: isMbr ? 'mbr' : 'gpt',
    diskId: table.id,
    partitions: (table.partitions ?? []).map((partition) => {
      const number = Number(partition.node.slice(path.length));
      const numberHex = number.toString(16).padStart(2, '0');
      return {
        number,
        offset: partition.start * 512,
        length: partition.size * 512,
        type: isMbr ? partition.type.padStart(2, '0') : partition.type,
        name: partition.name ?? '',
        uuid: isMbr ? `${table.id.slice(2)}-${numberHex}` : partition.uuid,
        bootable: partition.bootable ?? partition.attrs?.includes('LegacyBIOSBootable') ?? false,
      };
    }),
  };
}

function comparable({ scheme, diskId, partitions }: PartitionTable) {
  return {
    scheme,
    diskId,
    partitions: partitions.map(({ number, offset, length, type, name, uuid, bootable }) => ({
      number,
      offset,
      length,
      type,
      name,
      uuid,
      bootable,
    })),
  };
}

function expectAsSfdisk(path: string): PartitionTable {
  const table = readTable(path);
  expect(comparable(table)).toEqual(sfdiskTable(path));
  return table;
}

/** Flips every bit of the byte at `offset`. */
function damage(path: string, offset: number, length = 1): void {
  const bytes = readFileSync(path);
  for (let at = offset; at < offset + length; at++) bytes[at]! ^= 0xff;
  writeFileSync(path, bytes);
}

const GPT_SCRIPT = [
  'label: gpt',
  'size=10M, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name="EFI"',
  'size=20M, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name="räksmörgås", attrs="LegacyBIOSBootable"',
  'type=0657FD6D-A4AB-43C4-84E5-0933C84B4F4F',
].join('\n');

describe('MBR', () => {
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

describe('GPT', () => {
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

function writeHeaderCrc(header: Buffer): void {
  const size = Math.min(Math.max(header.readUInt32LE(12), 92), 512);
  header.writeUInt32LE(0, 16);
  header.writeUInt32LE(crc32(header.subarray(0, size)), 16);
}

test('a device that cannot be read is a warning', () => {
  class BrokenDevice extends ReadOnlyDevice {
    readonly size = MiB;
    override read(): void {
      throw new Qcow2Error('CORRUPT', 'reserved bits are set', { structure: 'L2 entry 0' });
    }
    override *extents() {
      // Never asked for.
    }
    override close(): void {
      // Holds nothing.
    }
  }
  expect(readPartitionTable(new BrokenDevice())).toMatchObject({
    scheme: 'none',
    warnings: ['cannot read the disk at offset 0: L2 entry 0: reserved bits are set'],
  });
});

test.each([0, 1, 511, 512, 1000])('a device of %i bytes', (size) => {
  const table = readPartitionTable(new MemoryDevice(new Uint8Array(size)));
  expect(table).toEqual({
    scheme: 'none',
    sectorSize: 512,
    diskId: '',
    partitions: [],
    warnings: [],
  });
});

describe('properties', () => {
  function expectSane(device: MemoryDevice): void {
    const { partitions, scheme } = readPartitionTable(device);
    if (scheme === 'none') expect(partitions).toEqual([]);
    for (const { offset, length } of partitions) {
      expect(length).toBeGreaterThan(0);
      expect(offset + length).toBeLessThanOrEqual(device.size);
    }
  }

  test('garbage behind a signature never throws', () => {
    fc.assert(
      fc.property(
        fc.uint8Array({ minLength: 512, maxLength: 8192, size: 'max' }),
        fc.uint8Array({ minLength: 64, maxLength: 64 }),
        (bytes, entries) => {
          bytes.set(entries, 446);
          for (let at = 446; at < 510; at += 16) bytes[at]! &= 0x80;
          bytes.set([0x55, 0xaa], 510);
          expectSane(new MemoryDevice(bytes));
        },
      ),
      { numRuns: 300 },
    );
  });

  test('changed bytes in real tables never throw', () => {
    const images = [GPT_SCRIPT, 'label: dos\n,1M,c,*\n,,E\n,1M\n,1M\n'].map((script) =>
      readFileSync(makeImage(script.replace('=10M', '=1M').replace('=20M', '=1M'), 6 * MiB)),
    );
    const place = fc.oneof(
      fc.nat(2047),
      fc.nat(1023).map((at) => 2 * MiB + at),
      fc.nat(512).map((at) => 6 * MiB - 1 - at),
    );
    const changes = fc.array(fc.tuple(place, fc.nat(255)), { maxLength: 8 });
    fc.assert(
      fc.property(fc.constantFrom(...images), changes, (image, list) => {
        const bytes = new Uint8Array(image);
        for (const [at, value] of list) bytes[at] = value;
        if (bytes[512] === 0x45) writeHeaderCrc(Buffer.from(bytes.buffer, 512, 512));
        expectSane(new MemoryDevice(bytes));
      }),
      { numRuns: 200 },
    );
  });

  const size = fc.integer({ min: 1, max: 6 });

  test('random MBR layouts as sfdisk reads them', () => {
    const type = fc.constantFrom('83', '82', 'c', '7', 'a5', 'fd', 'ef');
    const entry = fc.tuple(size, type, fc.boolean());
    const layout = fc.record({
      primary: fc.array(entry, { maxLength: 3 }),
      logical: fc.array(entry, { maxLength: 8 }),
    });
    fc.assert(
      fc.property(layout, ({ primary, logical }) => {
        const line = ([sizeMiB, code, boot]: [number, string, boolean]): string =>
          `,${sizeMiB}M,${code}${boot ? ',*' : ''}`;
        const lines = [...primary.map(line), ',,E', ...logical.map(line)];
        const path = makeImage(`label: dos\n${lines.join('\n')}\n`);
        expect(expectAsSfdisk(path).warnings).toEqual([]);
      }),
      { numRuns: 15 },
    );
  });

  test('random GPT layouts as sfdisk reads them', () => {
    const entry = fc.record({
      slot: fc.integer({ min: 1, max: 128 }),
      sizeMiB: size,
      type: fc.uuid(),
      name: fc.stringMatching(/^[a-zA-Z0-9 _.äé€-]{0,36}$/),
    });
    const layout = fc.uniqueArray(entry, { maxLength: 12, selector: ({ slot }) => slot });
    fc.assert(
      fc.property(layout, (entries) => {
        const lines = entries.map(
          ({ slot, sizeMiB, type, name }) =>
            `${slot} : size=${sizeMiB}M, type=${type}, name="${name}"`,
        );
        const path = makeImage(`label: gpt\n${lines.join('\n')}\n`);
        expect(expectAsSfdisk(path).warnings).toEqual([]);
      }),
      { numRuns: 15 },
    );
  });
});
