/** Images with partition tables, and sfdisk's reading of them as the oracle. */

import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { afterAll, expect } from 'vitest';
import { FileDevice } from '../../../src/device/file.ts';
import { readPartitionTable } from '../../../src/format/partition/index.ts';
import type { PartitionTable } from '../../../src/format/partition/index.ts';

export const MiB = 1024 * 1024;
export const DISK_SIZE = 40 * MiB;
export const directory = mkdtempSync(join(tmpdir(), 'qcow2-partition-'));
afterAll(() => {
  rmSync(directory, { recursive: true, force: true });
});

/** A sparse image of `size` bytes on which sfdisk has carried out `script`. */
export function makeImage(script: string, size = DISK_SIZE): string {
  const path = join(directory, 'image.raw');
  writeFileSync(path, '');
  truncateSync(path, size);
  execFileSync('sfdisk', ['--quiet', '--no-tell-kernel', path], { input: script, stdio: 'pipe' });
  return path;
}

export function readTable(path: string): PartitionTable {
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

export function expectAsSfdisk(path: string): PartitionTable {
  const table = readTable(path);
  expect(comparable(table)).toEqual(sfdiskTable(path));
  return table;
}

/** Flips every bit of the byte at `offset`. */
export function damage(path: string, offset: number, length = 1): void {
  const bytes = readFileSync(path);
  for (let at = offset; at < offset + length; at++) bytes[at]! ^= 0xff;
  writeFileSync(path, bytes);
}

/** A table with three partitions. */
export const GPT_SCRIPT = [
  'label: gpt',
  'size=10M, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name="EFI"',
  'size=20M, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4, name="räksmörgås", attrs="LegacyBIOSBootable"',
  'type=0657FD6D-A4AB-43C4-84E5-0933C84B4F4F',
].join('\n');

/** Corrects the checksum of a GPT header. */
export function writeHeaderCrc(header: Buffer): void {
  const size = Math.min(Math.max(header.readUInt32LE(12), 92), 512);
  header.writeUInt32LE(0, 16);
  header.writeUInt32LE(crc32(header.subarray(0, size)), 16);
}
