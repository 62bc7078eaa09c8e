/** Which part of a disk `dd` copies, by the rules of qemu-img's `dd`. */

import type { BlockDevice } from '../device/block-device.ts';
import { SliceDevice } from '../device/slice.ts';
import { ConcatenatedDevice } from './concatenated.ts';
import { padToSector } from './sector-padded.ts';

/** Blocks of a disk. */
export interface BlockSelection {
  /** Bytes of a block (default 512). */
  blockBytes?: number | undefined;
  /**
   * Blocks of the disk that count, from its start: those that are skipped are among them (default:
   * all). May be more than the disk has.
   */
  count?: number | undefined;
  /** Blocks to leave out at the start (default 0). */
  skip?: number | undefined;
}

/** A part of a disk. */
export interface SelectedBlocks {
  /**
   * The part, and zeroes up to a multiple of 512 bytes. The disk must stay open while it is read;
   * closing it closes nothing.
   */
  device: BlockDevice;
  /** Whether more was to be skipped than there is, so that nothing is left. */
  isPastEnd: boolean;
}

/** Bytes of a block unless something else is said. */
export const DEFAULT_BLOCK_BYTES = 512;

/** The part of a disk that some blocks are. Blocks need not be multiples of 512 bytes. */
export function selectBlocks(
  disk: BlockDevice,
  { blockBytes = DEFAULT_BLOCK_BYTES, count = Infinity, skip = 0 }: BlockSelection = {},
): SelectedBlocks {
  const padded = padToSector(disk);
  // As in QEMU, `count` says where the part ends, and not how long it is.
  const end = Math.min(count * blockBytes, padded.size);
  const start = skip * blockBytes;
  const isPastEnd = start > end;
  const offset = isPastEnd ? end : start;
  const part = new SliceDevice(padded, { offset, length: end - offset });
  return { device: new ConcatenatedDevice([part]), isPastEnd };
}
