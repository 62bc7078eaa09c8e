/**
 * What holds no files itself but a part of something: physical volumes of LVM, members of RAIDs and
 * of ZFS pools, and encrypted volumes.
 */

import { optionalSize, formatUuid, sizeOf } from './reader.ts';
import type { Reader, Structure } from './reader.ts';
import type { Filesystem } from './types.ts';

const KiB = 1024;
const SECTOR_BYTES = 512;

/** A physical volume of LVM2: a label in one of the first four sectors. */
export function recognizeLvm(reader: Reader): Filesystem | undefined {
  for (let sector = 0; sector < 4; sector++) {
    const label = reader.at(sector * SECTOR_BYTES, SECTOR_BYTES);
    if (label?.has(0, 'LABELONE') !== true || !label.has(24, 'LVM2 001')) continue;
    if (label.u64(8) !== sector) continue;
    const header = label.u32(20);
    if (header + 40 > SECTOR_BYTES) continue;
    const id = label.text(header, 32);
    return {
      type: 'LVM2_member',
      usage: 'member',
      version: '2',
      label: '',
      uuid: id.replace(/^(.{6})(.{4})(.{4})(.{4})(.{4})(.{4})(.{6})$/, '$1-$2-$3-$4-$5-$6-$7'),
      ...optionalSize(sizeOf(label.u64(header + 32), 1)),
    };
  }
  return undefined;
}

const LUKS_MAGIC = 'LUKS\xba\xbe';
/** Where the second header of LUKS2 may be, in KiB, should the first be damaged. */
const LUKS2_SECOND_KIB = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096];
const LUKS2_SECOND_MAGIC = 'SKUL\xba\xbe';

/** LUKS 1 and 2 ("LUKS On-Disk Format Specification"). Integers are big-endian. */
export function recognizeLuks(reader: Reader): Filesystem | undefined {
  const first = reader.at(0, 512);
  if (first?.has(0, LUKS_MAGIC) === true) return luks(first);
  for (const kibibytes of LUKS2_SECOND_KIB) {
    const second = reader.at(kibibytes * KiB, 512);
    if (second?.has(0, LUKS2_SECOND_MAGIC) === true) return luks(second);
  }
  return undefined;
}

function luks(header: Structure): Filesystem | undefined {
  const version = header.u16be(6);
  if (version !== 1 && version !== 2) return undefined;
  return {
    type: 'crypto_LUKS',
    usage: 'encrypted',
    version: String(version),
    label: version === 2 ? header.text(24, 48) : '',
    uuid: header.text(168, 40),
  };
}

const MD_MAGIC = 0xa92b_4efc;

/**
 * A member of a software RAID of Linux: version 1 at the start, 4 KiB further, or near the end;
 * version 0.90 near the end.
 */
export function recognizeMdRaid(reader: Reader): Filesystem | undefined {
  const sectors = Math.floor(reader.size / SECTOR_BYTES);
  const nearEnd = (Math.floor(sectors / 8) * 8 - 16) * SECTOR_BYTES;
  for (const [offset, minor] of [
    [nearEnd, 0],
    [0, 1],
    [4 * KiB, 2],
  ] as const) {
    const found = mdVersion1(reader.at(offset, 256), { offset, minor });
    if (found !== undefined) return found;
  }
  const at64KiB = Math.floor(reader.size / (64 * KiB)) * 64 * KiB - 64 * KiB;
  return mdVersion0(reader.at(at64KiB, 4 * KiB));
}

function mdVersion1(
  superblock: Structure | undefined,
  { offset, minor }: { offset: number; minor: number },
): Filesystem | undefined {
  if (superblock?.u32(0) !== MD_MAGIC || superblock.u32(4) !== 1) return undefined;
  if (superblock.u64(144) * SECTOR_BYTES !== offset) return undefined;
  return {
    type: 'linux_raid_member',
    usage: 'member',
    version: `1.${minor}`,
    label: superblock.text(32, 32),
    uuid: superblock.uuid(16),
    deviceCount: superblock.u32(92),
  };
}

function mdVersion0(superblock: Structure | undefined): Filesystem | undefined {
  if (superblock?.u32(0) !== MD_MAGIC || superblock.u32(4) !== 0) return undefined;
  // Four words, written as numbers of the host, of which the first stands apart.
  const uuid = Buffer.alloc(16);
  for (const [index, offset] of [20, 52, 56, 60].entries()) {
    uuid.writeUInt32BE(superblock.u32(offset), index * 4);
  }
  return {
    type: 'linux_raid_member',
    usage: 'member',
    version: `0.${superblock.u32(8)}.${superblock.u32(12)}`,
    label: '',
    uuid: formatUuid(uuid),
    deviceCount: superblock.u32(40),
  };
}
