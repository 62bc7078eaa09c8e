/**
 * Inode numbers that say where in the tree a node is: the place of each directory on the way to it in
 * the one above, from the lowest bits on. So every thread, and every mount of the same image, gives a
 * node the same number, without having listed anything before.
 */

import { FUSE_ROOT_ID } from './protocol.ts';

/**
 * Bits for the place at each depth. At the root and in a snapshot's directory there are few entries;
 * snapshots and partitions come in many. Together they stay below 2^53.
 */
const BITS = [8, 17, 8, 17] as const;
/** Numbers above: of what is too deep or has too many neighbours, in the order in which it was seen. */
const FIRST_OTHER = 2 ** 51;

/** Gives numbers out, and reads them. */
export class InodeNumbers {
  #others = 0;

  /**
   * The number of an entry of a directory.
   * @param index its place, from 0
   */
  child(directory: number, index: number): number {
    let below = 1;
    let rest = directory === FUSE_ROOT_ID ? 0 : directory;
    for (const bits of BITS) {
      if (rest === 0) {
        // 1 is the root's.
        const place = below === 1 ? index + 2 : index + 1;
        const start = directory === FUSE_ROOT_ID ? 0 : directory;
        if (place < 2 ** bits && directory < FIRST_OTHER) return start + place * below;
        break;
      }
      rest = Math.floor(rest / 2 ** bits);
      below *= 2 ** bits;
    }
    return FIRST_OTHER + this.#others++;
  }

  /** The places on the way to a number from the root; not to be trusted for one never given out. */
  indexes(inode: number): number[] {
    const indexes: number[] = [];
    let rest = inode >= FIRST_OTHER || inode === FUSE_ROOT_ID ? 0 : inode;
    for (const bits of BITS) {
      if (rest === 0) break;
      const place = rest % 2 ** bits;
      indexes.push(place - (indexes.length === 0 ? 2 : 1));
      rest = Math.floor(rest / 2 ** bits);
    }
    return indexes;
  }
}
