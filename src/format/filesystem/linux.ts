/** Filesystems of Linux whose superblock says all there is to say: xfs, btrfs, f2fs and others. */

import { isPowerOfTwo, optionalSize, sizeOf } from './reader.ts';
import type { Reader } from './reader.ts';
import type { Filesystem } from './types.ts';

const KiB = 1024;

/** xfs (XFS Algorithms & Data Structures, "Superblocks"). Integers are big-endian. */
export function recognizeXfs(reader: Reader): Filesystem | undefined {
  const superblock = reader.at(0, 512);
  if (superblock?.has(0, 'XFSB') !== true) return undefined;
  const blockBytes = superblock.u32be(4);
  const sectorBytes = superblock.u16be(102);
  const isSane =
    isPowerOfTwo(blockBytes, { from: 512, to: 65_536 }) &&
    isPowerOfTwo(sectorBytes, { from: 512, to: 32_768 });
  if (!isSane) return undefined;
  return {
    type: 'xfs',
    usage: 'filesystem',
    version: '',
    label: superblock.text(108, 12),
    uuid: superblock.uuid(32),
    ...optionalSize(sizeOf(superblock.u64be(8), blockBytes)),
  };
}

/** btrfs (btrfs documentation, "On-disk format"): the superblock at 64 KiB. */
export function recognizeBtrfs(reader: Reader): Filesystem | undefined {
  const superblock = reader.at(64 * KiB, 4096);
  if (superblock?.has(64, '_BHRfS_M') !== true) return undefined;
  const devices = superblock.u64(136);
  return {
    type: 'btrfs',
    usage: 'filesystem',
    version: '',
    label: superblock.text(299, 256),
    uuid: superblock.uuid(32),
    ...optionalSize(sizeOf(superblock.u64(112), 1)),
    ...(devices > 1 ? { deviceCount: devices } : {}),
  };
}

/** f2fs (kernel documentation, `filesystems/f2fs.rst`). */
export function recognizeF2fs(reader: Reader): Filesystem | undefined {
  const superblock = reader.at(KiB, 1536);
  if (superblock?.u32(0) !== 0xf2f5_2010) return undefined;
  const blockBytes = 2 ** superblock.u32(16);
  if (!isPowerOfTwo(blockBytes, { from: 4096, to: 65_536 })) return undefined;
  return {
    type: 'f2fs',
    usage: 'filesystem',
    version: `${superblock.u16(4)}.${superblock.u16(6)}`,
    label: superblock.utf16(124, 1024),
    uuid: superblock.uuid(108),
    ...optionalSize(sizeOf(superblock.u64(36), blockBytes)),
  };
}

/** reiserfs 3: the superblock at 64 KiB, or at 8 KiB where it is very old. */
export function recognizeReiserfs(reader: Reader): Filesystem | undefined {
  for (const offset of [64 * KiB, 8 * KiB]) {
    const superblock = reader.at(offset, 512);
    const magic = superblock?.latin1(52, 9);
    if (superblock === undefined || magic === undefined) continue;
    if (!/^ReIsEr(?:Fs|[23]Fs)/.test(magic)) continue;
    const isOld = magic.startsWith('ReIsErFs');
    return {
      type: 'reiserfs',
      usage: 'filesystem',
      version: isOld ? '3.5' : magic.startsWith('ReIsEr2Fs') ? '3.6' : 'JR',
      label: isOld ? '' : superblock.text(100, 16),
      uuid: isOld ? '' : superblock.uuid(84),
      ...optionalSize(sizeOf(superblock.u32(0), superblock.u16(44))),
    };
  }
  return undefined;
}

/** squashfs 4 ("Squashfs Binary Format"): compressed, and never written after it was made. */
export function recognizeSquashfs(reader: Reader): Filesystem | undefined {
  const superblock = reader.at(0, 96);
  if (superblock?.has(0, 'hsqs') !== true) return undefined;
  const major = superblock.u16(28);
  if (major < 4) return undefined;
  return {
    type: 'squashfs',
    usage: 'filesystem',
    version: `${major}.${superblock.u16(30)}`,
    label: '',
    uuid: '',
    ...optionalSize(sizeOf(superblock.u64(40), 1)),
  };
}

/** erofs (kernel documentation, `filesystems/erofs.rst`). */
export function recognizeErofs(reader: Reader): Filesystem | undefined {
  const superblock = reader.at(KiB, 128);
  if (superblock?.u32(0) !== 0xe0f5_e1e2) return undefined;
  const blockBytes = 2 ** superblock.u8(12);
  if (!isPowerOfTwo(blockBytes, { from: 512, to: 65_536 })) return undefined;
  return {
    type: 'erofs',
    usage: 'filesystem',
    version: '',
    label: superblock.text(64, 16),
    uuid: superblock.uuid(48),
    ...optionalSize(sizeOf(superblock.u32(36), blockBytes)),
  };
}

/** Sizes of a page of memory, whose end holds the signature of swap space. */
const PAGE_SIZES = [4, 8, 16, 32, 64].map((kibibytes) => kibibytes * KiB);

/** Swap space of Linux, and the image of a system that sleeps in it. */
export function recognizeSwap(reader: Reader): Filesystem | undefined {
  for (const pageBytes of PAGE_SIZES) {
    const magic = reader.at(pageBytes - 10, 10)?.latin1(0, 10);
    if (magic === undefined) return undefined;
    const isSleeping = /^(?:S[12]SUSPEND|ULSUSPEND|LINHIB0001)/.test(magic);
    if (magic !== 'SWAPSPACE2' && magic !== 'SWAP-SPACE' && !isSleeping) continue;
    const header = reader.at(KiB, 64);
    const isNew = magic !== 'SWAP-SPACE' && header?.u32(0) === 1;
    return {
      type: isSleeping ? 'swsuspend' : 'swap',
      usage: 'other',
      version: isSleeping ? '' : isNew ? '1' : '0',
      label: isNew ? header.text(28, 16) : '',
      uuid: isNew ? header.uuid(12) : '',
      ...(isNew ? optionalSize(sizeOf(header.u32(4) + 1, pageBytes)) : {}),
    };
  }
  return undefined;
}
