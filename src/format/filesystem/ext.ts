/** The superblock of ext2, ext3 and ext4 (kernel documentation, `filesystems/ext4/super.rst`). */

import { isPowerOfTwo, optionalSize, sizeOf } from './reader.ts';
import type { Reader, Structure } from './reader.ts';
import type { Filesystem } from './types.ts';

const SUPERBLOCK_OFFSET = 1024;
const MAGIC = 0xef53;

const COMPAT_HAS_JOURNAL = 0x4;
const INCOMPAT_RECOVER = 0x4;
const INCOMPAT_JOURNAL_DEV = 0x8;
const INCOMPAT_64BIT = 0x80;
/** filetype and meta_bg. */
const INCOMPAT_OF_EXT2 = 0x2 | 0x10;
const INCOMPAT_OF_EXT3 = INCOMPAT_OF_EXT2 | INCOMPAT_RECOVER;
/** sparse_super, large_file and btree_dir. */
const RO_COMPAT_OF_EXT3 = 0x7;

/** Recognises ext2, ext3, ext4, and a journal of theirs that is a device of its own. */
export function recognizeExt(reader: Reader): Filesystem | undefined {
  const superblock = reader.at(SUPERBLOCK_OFFSET, 1024);
  if (superblock?.u16(56) !== MAGIC) return undefined;
  const blockBytes = 1024 * 2 ** superblock.u32(24);
  const isSane =
    isPowerOfTwo(blockBytes, { from: 1024, to: 65_536 }) &&
    superblock.u32(4) > 0 &&
    superblock.u32(20) <= 1 &&
    superblock.u32(40) > 0;
  const incompat = superblock.u32(96);
  const isJournal = (incompat & INCOMPAT_JOURNAL_DEV) !== 0;
  if (!isSane && !isJournal) return undefined;
  const has64Bit = (incompat & INCOMPAT_64BIT) !== 0;
  const blocks = superblock.u32(4) + (has64Bit ? superblock.u32(336) * 2 ** 32 : 0);
  return {
    type: isJournal ? 'jbd' : typeOf(superblock),
    usage: isJournal ? 'other' : 'filesystem',
    version: '',
    label: superblock.text(120, 16),
    uuid: superblock.uuid(104),
    ...optionalSize(sizeOf(blocks, blockBytes)),
    needsRecovery: (incompat & INCOMPAT_RECOVER) !== 0,
  };
}

/** The oldest of the three that knows all of the features. */
function typeOf(superblock: Structure): 'ext2' | 'ext3' | 'ext4' {
  const incompat = superblock.u32(96);
  const isOld = (superblock.u32(100) & ~RO_COMPAT_OF_EXT3) === 0;
  const hasJournal = (superblock.u32(92) & COMPAT_HAS_JOURNAL) !== 0;
  if (!hasJournal && isOld && (incompat & ~INCOMPAT_OF_EXT2) === 0) return 'ext2';
  if (hasJournal && isOld && (incompat & ~INCOMPAT_OF_EXT3) === 0) return 'ext3';
  return 'ext4';
}
