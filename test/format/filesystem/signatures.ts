/**
 * Superblocks laid by hand, of what cannot be made here: their makers are not installed, need
 * devices, or run on other systems. libblkid judges them in the test.
 */

import { crc32 } from 'node:zlib';

const KiB = 1024;
const MiB = 1024 * KiB;
/** Bytes of each image: on the smallest devices libblkid looks for no RAIDs and volumes. */
export const MADE_BYTES = 2 * MiB;

const UUID = Buffer.from('00112233445566778899aabbccddeeff', 'hex');

/** Something to put into an image of zeroes. */
type Maker = (image: Buffer) => void;

/** An empty UFS: little-endian unless told otherwise. */
function ufs(offset: number, magic: number, bigEndian = false): Maker {
  return (image) => {
    const u32 = (at: number, value: number): void => {
      if (bigEndian) image.writeUInt32BE(value, offset + at);
      else image.writeUInt32LE(value, offset + at);
    };
    u32(36, 1024);
    u32(52, 2048);
    u32(144, 0x1234_5678);
    u32(148, 0x9abc_def0);
    u32(1372, magic);
    image.write('bsd files', offset + 680);
  };
}

function lvm(sector: number): Maker {
  return (image) => {
    const label = image.subarray(sector * 512, (sector + 1) * 512);
    label.write('LABELONE', 0);
    label.writeUInt32LE(sector, 8);
    label.writeUInt32LE(32, 20);
    label.write('LVM2 001', 24);
    label.write('abcdefGHIJklmnOPQRstuvWXYZ012345', 32);
    label.writeUInt32LE(MADE_BYTES, 64);
    // The usual polynomial, begun with 0xf597a6cf and not inverted at the end.
    label.writeUInt32LE(~crc32(label.subarray(20), ~0xf597_a6cf >>> 0) >>> 0, 16);
  };
}

function luks(version: 1 | 2): Maker {
  return (image) => {
    image.write('LUKS\xba\xbe', 0, 'latin1');
    image.writeUInt16BE(version, 6);
    if (version === 2) image.write('secret disk', 24);
    image.write('12345678-9abc-def0-1234-56789abcdef0', 168);
  };
}

function mdVersion1(offset: number): Maker {
  return (image) => {
    const superblock = image.subarray(offset);
    superblock.writeUInt32LE(0xa92b_4efc, 0);
    superblock.writeUInt32LE(1, 4);
    UUID.copy(superblock, 16);
    superblock.write('host:array', 32);
    superblock.writeUInt32LE(2, 92);
    superblock.writeUInt32LE(offset / 512, 144);
    superblock.writeUInt32LE(mdChecksum(superblock), 216);
  };
}

/** The sum of the words of a superblock without devices, with its carry added. */
function mdChecksum(superblock: Buffer): number {
  let sum = 0;
  for (let at = 0; at < 256; at += 4) sum += at === 216 ? 0 : superblock.readUInt32LE(at);
  return ((sum >>> 0) + Math.floor(sum / 2 ** 32)) >>> 0;
}

function mdVersion0(image: Buffer): void {
  const superblock = image.subarray(MADE_BYTES - 64 * KiB);
  for (const [index, word] of [0xa92b_4efc, 0, 90, 3].entries()) {
    superblock.writeUInt32LE(word, index * 4);
  }
  superblock.writeUInt32LE(0x0011_2233, 20);
  superblock.writeUInt32LE(2, 40);
  for (const [index, word] of [0x4455_6677, 0x8899_aabb, 0xccdd_eeff].entries()) {
    superblock.writeUInt32LE(word, 52 + index * 4);
  }
}

/** A string or 64-bit number in XDR. */
function xdrPair(name: string, value: string | bigint): Buffer {
  const string = (text: string): Buffer => {
    const bytes = Buffer.alloc(4 + Math.ceil(text.length / 4) * 4);
    bytes.writeUInt32BE(text.length, 0);
    bytes.write(text, 4);
    return bytes;
  };
  const number = Buffer.alloc(8);
  if (typeof value === 'bigint') number.writeBigUInt64BE(value);
  const type = Buffer.alloc(8);
  type.writeUInt32BE(typeof value === 'bigint' ? 8 : 9, 0);
  type.writeUInt32BE(1, 4);
  const content = [string(name), type, typeof value === 'bigint' ? number : string(value)];
  const sizes = Buffer.alloc(8);
  sizes.writeUInt32BE(8 + Buffer.concat(content).length, 0);
  sizes.writeUInt32BE(64, 4);
  return Buffer.concat([sizes, ...content]);
}

function zfs(image: Buffer): void {
  const head = Buffer.from([1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
  const pairs = [xdrPair('version', 5000n), xdrPair('name', 'tank'), xdrPair('txg', 4n)];
  const list = Buffer.concat([head, ...pairs, xdrPair('pool_guid', 12_345_678_901_234_567_890n)]);
  const ends = MADE_BYTES - 512 * KiB;
  for (const label of [0, 256 * KiB, ends, ends + 256 * KiB]) {
    list.copy(image, label + 16 * KiB);
    for (let index = 0; index < 8; index++) {
      image.writeBigUInt64LE(0x00ba_b10cn, label + 128 * KiB + index * KiB);
    }
  }
}

function reiserfs(image: Buffer): void {
  const superblock = image.subarray(64 * KiB);
  superblock.writeUInt32LE(MADE_BYTES / 4096, 0);
  superblock.writeUInt32LE(18, 12);
  superblock.writeUInt16LE(4096, 44);
  superblock.write('ReIsEr2Fs', 52);
  UUID.copy(superblock, 84);
  superblock.write('old tree', 100);
}

function hfsPlus(image: Buffer): void {
  const header = image.subarray(KiB);
  header.write('H+', 0);
  header.writeUInt16BE(4, 2);
  header.writeUInt32BE(4096, 40);
  header.writeUInt32BE(MADE_BYTES / 4096, 44);
}

function hfs(image: Buffer): void {
  const header = image.subarray(KiB);
  header.write('BD', 0);
  header.writeUInt16BE(1000, 18);
  header.writeUInt32BE(4096, 20);
  header.writeUInt8(8, 36);
  header.write('Old Disk', 37);
}

function apfs(image: Buffer): void {
  // Type and subtype of the object, which libblkid looks at too.
  image.writeUInt32LE(0x8000_0001, 24);
  image.write('NXSB', 32);
  image.writeUInt32LE(4096, 36);
  image.writeUInt32LE(MADE_BYTES / 4096, 40);
  UUID.copy(image, 72);
}

function erofs(image: Buffer): void {
  const superblock = image.subarray(KiB);
  superblock.writeUInt32LE(0xe0f5_e1e2, 0);
  superblock.writeUInt8(12, 12);
  superblock.writeUInt32LE(100, 36);
  UUID.copy(superblock, 48);
  superblock.write('system', 64);
}

function bitlocker(image: Buffer): void {
  image.write('\xeb\x58\x90-FVE-FS-', 0, 'latin1');
  Buffer.from('3bd66749292ed84a8399f6a339e3d001', 'hex').copy(image, 160);
  image.writeUInt32LE(64 * KiB, 176);
  image.write('-FVE-FS-', 64 * KiB);
  image.writeUInt16LE(2, 64 * KiB + 10);
}

/** Something that is made. */
export interface Made {
  make: Maker;
  /** What libblkid does not tell, and is told here. */
  also: object;
}

/** What is made, by name. */
export const MADE: Readonly<Record<string, Made>> = {
  'an LVM physical volume': { make: lvm(1), also: { usage: 'member', size: MADE_BYTES } },
  'an LVM label in sector 3': { make: lvm(3), also: { usage: 'member' } },
  'LUKS 1': { make: luks(1), also: { usage: 'encrypted', version: '1' } },
  'LUKS 2': { make: luks(2), also: { usage: 'encrypted', version: '2', label: 'secret disk' } },
  'a RAID member, version 1.0': {
    make: mdVersion1(MADE_BYTES - 8 * KiB),
    also: { version: '1.0', deviceCount: 2 },
  },
  'a RAID member, version 1.1': { make: mdVersion1(0), also: { version: '1.1' } },
  'a RAID member, version 1.2': { make: mdVersion1(4096), also: { label: 'host:array' } },
  'a RAID member, version 0.90': { make: mdVersion0, also: { version: '0.90.3' } },
  'a member of a ZFS pool': { make: zfs, also: { label: 'tank', usage: 'member' } },
  reiserfs: { make: reiserfs, also: { size: MADE_BYTES, version: '3.6' } },
  'HFS+': { make: hfsPlus, also: { size: MADE_BYTES } },
  HFS: { make: hfs, also: { label: 'Old Disk', size: 4_096_000 } },
  APFS: { make: apfs, also: { size: MADE_BYTES } },
  erofs: { make: erofs, also: { size: 409_600, label: 'system' } },
  UFS1: { make: ufs(8 * KiB, 0x0001_1954), also: { size: 2 * MiB } },
  UFS2: { make: ufs(64 * KiB, 0x1954_0119), also: { label: 'bsd files' } },
  'UFS2, big-endian': { make: ufs(64 * KiB, 0x1954_0119, true), also: { version: '2' } },
  BitLocker: { make: bitlocker, also: { usage: 'encrypted' } },
  ReFS: { make: (image) => image.write('\0\0\0ReFS\0', 0, 'latin1'), also: {} },
};

/** An image of zeroes with something in it. */
export function makeImage(name: string): Buffer {
  const image = Buffer.alloc(MADE_BYTES);
  MADE[name]!.make(image);
  return image;
}
