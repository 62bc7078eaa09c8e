/** Filesystems of other Unixes: Apple's HFS, HFS+ and APFS, and the UFS of the BSDs. */

import { isPowerOfTwo, optionalSize, sizeOf } from './reader.ts';
import type { Reader, Structure } from './reader.ts';
import type { Filesystem } from './types.ts';

const KiB = 1024;

/**
 * HFS and HFS+ (Apple's Technical Note 1150). Integers are big-endian. The name of an HFS+ volume
 * is in its catalog, which is not searched.
 */
export function recognizeHfs(reader: Reader): Filesystem | undefined {
  const header = reader.at(KiB, 512);
  if (header === undefined) return undefined;
  const signature = header.latin1(0, 2);
  if (signature === 'BD') return recognizeOldHfs(header);
  const version = header.u16be(2);
  const isPlus = (signature === 'H+' && version === 4) || (signature === 'HX' && version === 5);
  if (!isPlus || !isPowerOfTwo(header.u32be(40), { from: 512, to: 2 ** 31 })) return undefined;
  return {
    type: 'hfsplus',
    usage: 'filesystem',
    version: signature === 'HX' ? 'HFSX' : 'HFS+',
    label: '',
    uuid: '',
    ...optionalSize(sizeOf(header.u32be(44), header.u32be(40))),
  };
}

function recognizeOldHfs(header: Structure): Filesystem | undefined {
  const blockBytes = header.u32be(20);
  const nameBytes = header.u8(36);
  if (blockBytes === 0 || blockBytes % 512 !== 0 || nameBytes > 27) return undefined;
  // An HFS+ volume may be wrapped in one of HFS, for systems that know no other.
  const isWrapper = header.latin1(124, 2) === 'H+';
  return {
    type: isWrapper ? 'hfsplus' : 'hfs',
    usage: 'filesystem',
    version: isWrapper ? 'HFS+' : '',
    label: isWrapper ? '' : header.text(37, nameBytes),
    uuid: '',
    ...optionalSize(sizeOf(header.u16be(18), blockBytes)),
  };
}

/** The container of APFS ("Apple File System Reference"). Names are those of the volumes in it. */
export function recognizeApfs(reader: Reader): Filesystem | undefined {
  const superblock = reader.at(0, 4096);
  if (superblock?.has(32, 'NXSB') !== true) return undefined;
  const blockBytes = superblock.u32(36);
  if (!isPowerOfTwo(blockBytes, { from: 4096, to: 65_536 })) return undefined;
  return {
    type: 'apfs',
    usage: 'filesystem',
    version: '',
    label: '',
    uuid: superblock.uuid(72),
    ...optionalSize(sizeOf(superblock.u64(40), blockBytes)),
  };
}

/** Where the superblock of UFS may be: UFS2 at 64 KiB or 256 KiB, UFS1 at 8 KiB, or at 0. */
const UFS_OFFSETS = [64 * KiB, 8 * KiB, 0, 256 * KiB];
const UFS1_MAGIC = 0x0001_1954;
const UFS2_MAGIC = 0x1954_0119;

/** UFS1 and UFS2 in either byte order. */
export function recognizeUfs(reader: Reader): Filesystem | undefined {
  for (const offset of UFS_OFFSETS) {
    const superblock = reader.at(offset, 1376);
    if (superblock === undefined) continue;
    const isLittle = [UFS1_MAGIC, UFS2_MAGIC].includes(superblock.u32(1372));
    if (!isLittle && ![UFS1_MAGIC, UFS2_MAGIC].includes(superblock.u32be(1372))) continue;
    const u32 = (at: number): number => (isLittle ? superblock.u32(at) : superblock.u32be(at));
    const u64 = (at: number): number => (isLittle ? superblock.u64(at) : superblock.u64be(at));
    const isSecond = u32(1372) === UFS2_MAGIC;
    const fragmentBytes = u32(52);
    if (!isPowerOfTwo(fragmentBytes, { from: 512, to: 65_536 })) continue;
    const [first, second] = [144, 148].map((at) => u32(at).toString(16).padStart(8, '0'));
    const uuid = `${first}${second}`;
    return {
      type: 'ufs',
      usage: 'filesystem',
      version: isSecond ? '2' : '1',
      label: isSecond ? superblock.text(680, 32) : '',
      uuid: /^0*$/.test(uuid) ? '' : uuid,
      ...optionalSize(sizeOf(isSecond ? u64(1080) : u32(36), fragmentBytes)),
    };
  }
  return undefined;
}
