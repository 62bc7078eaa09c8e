/** What can be told of a filesystem, or of anything else that fills a partition, by its signature. */

/** What is recognised; the names are those that libblkid gives (`blkid`, `lsblk -f`). */
export type FilesystemType =
  | 'apfs'
  | 'BitLocker'
  | 'btrfs'
  | 'crypto_LUKS'
  | 'erofs'
  | 'exfat'
  | 'ext2'
  | 'ext3'
  | 'ext4'
  | 'f2fs'
  | 'hfs'
  | 'hfsplus'
  | 'iso9660'
  | 'jbd'
  | 'linux_raid_member'
  | 'LVM2_member'
  | 'ntfs'
  | 'ReFS'
  | 'reiserfs'
  | 'squashfs'
  | 'swap'
  | 'swsuspend'
  | 'ufs'
  | 'vfat'
  | 'xfs'
  | 'zfs_member';

/**
 * What it is there for: `filesystem` holds files; `member` is a part of something that several
 * devices may make up (LVM, RAID, ZFS); `encrypted` has to be unlocked; `other` holds no files.
 */
export type FilesystemUsage = 'filesystem' | 'member' | 'encrypted' | 'other';

/** What was recognised. */
export interface Filesystem {
  /** What it is. */
  type: FilesystemType;
  /** What it is there for. */
  usage: FilesystemUsage;
  /** Version or variant where there are several: `FAT32`, `2` of LUKS; '' otherwise. */
  version: string;
  /** As it is stored, without trailing blanks; '' if there is none. May hold any character. */
  label: string;
  /** In the form that libblkid gives it, which /etc/fstab has; '' if there is none. */
  uuid: string;
  /** Bytes that it says it has; undefined where the superblock does not say. */
  size?: number;
  /** Whether a journal has to be replayed before the files are as they were meant to be. */
  needsRecovery?: boolean;
  /** Devices that belong together; undefined where one is all there is. */
  deviceCount?: number;
}
