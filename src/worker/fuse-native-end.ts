/** Noticing the end of a mount through fuse-native: libfuse's thread ends silently. */

import { readdirSync, readlinkSync } from 'node:fs';
import { findMount } from '../host/mountinfo.ts';

/** How often it is looked; outside Linux that takes a program. */
const POLL_MS = process.platform === 'linux' ? 250 : 1000;

/** The end of a mount through fuse-native. */
export interface NativeEnd {
  /** Device number of the mounted filesystem; undefined where that cannot be told. */
  device: string | undefined;
  /** Settles when the connection to the kernel has ended. */
  ended: Promise<void>;
  /** From now on it is enough that the directory is unmounted. */
  cut(): void;
}

/**
 * Watches a mount that stands.
 *
 * A directory that was unmounted lazily is not the end: a loop device or a program, which shows the
 * files of a partition, has a file open and goes on reading and writing. libfuse closes its descriptor
 * when the kernel has let go of the filesystem.
 */
export function watchNative(directory: string): NativeEnd {
  const device = findMount(directory)?.device;
  let isCut = false;
  const ended = new Promise<void>((resolve) => {
    const timer = setInterval(() => {
      const mount = findMount(directory);
      if (mount !== undefined && mount.device === device) return;
      if (!isCut && hasFuseDescriptor()) return;
      clearInterval(timer);
      resolve();
    }, POLL_MS);
  });
  return {
    device,
    ended,
    cut: () => {
      isCut = true;
    },
  };
}

/** Whether this process has a connection to FUSE open; false where that cannot be told. */
function hasFuseDescriptor(): boolean {
  try {
    const folder = '/proc/self/fd';
    return readdirSync(folder).some((fd) => isFuseLink(`${folder}/${fd}`));
  } catch {
    return false;
  }
}

function isFuseLink(path: string): boolean {
  try {
    return readlinkSync(path).endsWith('/fuse');
  } catch {
    // Closed since, as that of the folder itself.
    return false;
  }
}
