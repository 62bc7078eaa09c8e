/** Another descriptor of a FUSE connection, for another thread that reads requests. */

import { closeSync, openSync } from 'node:fs';
import { loadLibc } from './libc.ts';

/** `_IOR(229, 0, uint32_t)` of `linux/fuse.h`. */
const FUSE_DEV_IOC_CLONE = 0x8004_e500;

/**
 * Opens `/dev/fuse` once more for the connection of `fd`. Requests come by either; each is answered by
 * the one that it came by. When this one is closed, those that it has not answered fail, and no others.
 * It is the caller's to close.
 * @returns undefined where that cannot be done: no koffi, or the system refuses
 */
export function cloneFuseDevice(fd: number): number | undefined {
  const libc = process.platform === 'linux' ? loadLibc() : undefined;
  if (libc === undefined) return undefined;
  const ioctl = libc.func('int ioctl(int fd, unsigned long request, void *argument)');
  let clone: number;
  try {
    clone = openSync('/dev/fuse', 'r+');
  } catch {
    return undefined;
  }
  if (Number(ioctl(clone, FUSE_DEV_IOC_CLONE, Uint32Array.of(fd))) === 0) return clone;
  closeSync(clone);
  return undefined;
}
