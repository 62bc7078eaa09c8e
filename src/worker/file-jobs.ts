/**
 * What a thread of its own does for the files of an image: mounting and unmounting with the drivers
 * of the kernel. Those calls wait for reads and writes of the image, which the process itself serves.
 */

import { Qcow2Error } from '../errors.ts';
import { mountDevice, syncFilesystem } from '../host/kernel-mount.ts';
import { attachLoop } from '../host/loop.ts';
import { raiseReadAhead, unmountFuse } from '../host/mount.ts';
import { findMount } from '../host/mountinfo.ts';
import type { KernelDriver } from './file-drivers.ts';
import { toWireError } from './wire-error.ts';
import type { WireError } from './wire-error.ts';

/** A filesystem to mount through a loop device. */
export interface KernelMountJob {
  kind: 'mount';
  /** Path of the file that holds it. */
  file: string;
  directory: string;
  /** What the loop device is told to be of. */
  name: string;
  driver: KernelDriver;
  readOnly: boolean;
  flags: readonly string[];
  /** Options that give owners to filesystems without. */
  ownerOptions: readonly string[];
}

/** Directories to unmount, in this order. */
export interface UnmountJob {
  kind: 'unmount';
  directories: readonly string[];
  /** Detach what is in use, after what was written has been brought to the image. */
  evenIfBusy: boolean;
}

/** How a job went. Survives being posted. */
export type FileJobResult =
  /** `hasUsers`: what was unmounted goes on for those who use it. */
  | { ok: true; type: string; journalIgnored: boolean; hasUsers: boolean }
  | { ok: false; error: WireError };

/** Does a job; its errors are in the result. */
export function doFileJob(job: KernelMountJob | UnmountJob): FileJobResult {
  try {
    if (job.kind === 'mount') return { ok: true, ...mountThroughLoop(job), hasUsers: false };
    let hasUsers = false;
    for (const directory of job.directories) {
      if (unmountOne(directory, job.evenIfBusy)) hasUsers = true;
    }
    return { ok: true, type: '', journalIgnored: false, hasUsers };
  } catch (error) {
    return { ok: false, error: toWireError(error) };
  }
}

/** What the kernel may read ahead of a filesystem, as of the image itself. */
const READ_AHEAD_KIB = 1024;

function mountThroughLoop(job: KernelMountJob): { type: string; journalIgnored: boolean } {
  const { file, name, driver, directory, readOnly, flags, ownerOptions } = job;
  // Past the cache: random reads are two to four times as fast, and nothing is kept in memory twice.
  const loop = attachLoop({ file, name, readOnly, directIo: true });
  try {
    const mounted = mountDevice({
      device: loop.path,
      directory,
      types: driver.types,
      flags: [...(readOnly ? ['ro'] : []), ...flags],
      options: [...driver.options, ...(driver.lacksOwners ? ownerOptions : [])],
      withoutJournal: readOnly ? driver.withoutJournal : [],
    });
    raiseReadAhead(directory, READ_AHEAD_KIB);
    return mounted;
  } finally {
    loop.release();
  }
}

/** Returns whether somebody goes on using it. */
function unmountOne(directory: string, evenIfBusy: boolean): boolean {
  if (findMount(directory) === undefined) return false;
  try {
    unmountFuse(directory);
    return false;
  } catch (error) {
    if (!evenIfBusy || !(error instanceof Qcow2Error) || error.code !== 'LOCKED') throw error;
    syncFilesystem(directory);
    unmountFuse(directory, { lazy: true });
    return true;
  }
}
