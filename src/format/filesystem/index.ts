/**
 * Recognises what is in a partition, or on a disk without partitions, by its own signature: the type
 * in a partition table is only what somebody once meant to put there.
 */

import type { BlockDevice } from '../../device/block-device.ts';
import { recognizeExt } from './ext.ts';
import { recognizeFat } from './fat.ts';
import { recognizeIso9660 } from './iso9660.ts';
import {
  recognizeBtrfs,
  recognizeErofs,
  recognizeF2fs,
  recognizeReiserfs,
  recognizeSquashfs,
  recognizeSwap,
  recognizeXfs,
} from './linux.ts';
import { recognizeLuks, recognizeLvm, recognizeMdRaid } from './members.ts';
import { recognizeBitlocker, recognizeExfat, recognizeNtfs, recognizeRefs } from './microsoft.ts';
import { Reader } from './reader.ts';
import type { Filesystem } from './types.ts';
import { recognizeApfs, recognizeHfs, recognizeUfs } from './unix.ts';
import { recognizeZfs } from './zfs.ts';

export type { Filesystem, FilesystemType, FilesystemUsage } from './types.ts';

/**
 * In the order of what counts where several are found: members of something larger first, because
 * such a member may look like a filesystem too (one half of a mirror does).
 */
const RECOGNIZERS: readonly ((reader: Reader) => Filesystem | undefined)[] = [
  recognizeMdRaid,
  recognizeLvm,
  recognizeLuks,
  recognizeBitlocker,
  recognizeZfs,
  recognizeBtrfs,
  recognizeXfs,
  recognizeExt,
  recognizeExfat,
  recognizeNtfs,
  recognizeRefs,
  recognizeFat,
  recognizeF2fs,
  recognizeErofs,
  recognizeSquashfs,
  recognizeReiserfs,
  recognizeApfs,
  recognizeHfs,
  recognizeIso9660,
  recognizeUfs,
  recognizeSwap,
];

/**
 * Everything whose signature is on the device: none, one, or several, of which the first counts most.
 * Several mean that something was left over from an earlier use, or that a disc was made to be read
 * in two ways; nothing here can tell which one is meant.
 *
 * Garbage is not an error, and what cannot be read is not there. At most some hundred KiB are read.
 */
export function recognizeFilesystems(device: BlockDevice): Filesystem[] {
  const reader = new Reader(device);
  return RECOGNIZERS.map((recognize) => recognize(reader)).filter((found) => found !== undefined);
}
