/** The directory of a mount: which one is meant, and whether it will do. */

import { lstatSync, mkdirSync, opendirSync, realpathSync, statSync } from 'node:fs';
import { basename, dirname, extname, join, resolve } from 'node:path';
import { hostError, Qcow2Error } from '../errors.ts';
import { listMounts } from '../host/mountinfo.ts';
import { imageMountedOn } from './fuse-mounts.ts';

/** A directory that something can be mounted on. */
export interface PreparedDirectory {
  /** Absolute path without symbolic links, as the mount table has it. */
  directory: string;
  /** Whether it was made just now. */
  madeDirectory: boolean;
}

/** The directory that an image is mounted on where none is named: `disk.qcow2` on `disk`. */
export function defaultDirectory(image: string): string {
  const name = basename(image);
  const stem = basename(name, extname(name));
  return stem === name ? `${name}.mnt` : stem;
}

/**
 * The path that the mount table has for `path`. What is mounted there is not asked anything, so
 * that a dead mount cannot get in the way.
 */
export function mountPath(path: string): string {
  const absolute = resolve(path);
  const mounted = new Set(listMounts().map(({ directory }) => directory));
  if (mounted.has(absolute)) return absolute;
  const canonical = realPath(dirname(absolute), basename(absolute));
  if (mounted.has(canonical)) return canonical;
  try {
    return lstatSync(canonical).isSymbolicLink() ? realpathSync(canonical) : canonical;
  } catch {
    return canonical;
  }
}

function realPath(parent: string, name: string): string {
  try {
    return join(realpathSync(parent), name);
  } catch {
    return join(parent, name);
  }
}

/**
 * Makes sure that `path` is a directory that can be mounted on; makes it if there is nothing.
 *
 * @throws {Qcow2Error} `LOCKED` if an image is mounted there, `INVALID_OPTION` if it is not empty,
 * `HOST` if it cannot be made or looked at
 */
export function prepareDirectory(
  path: string,
  { nonempty }: { nonempty: boolean },
): PreparedDirectory {
  const directory = mountPath(path);
  const mounted = imageMountedOn(directory);
  if (mounted !== undefined) {
    throw new Qcow2Error('LOCKED', `${mounted} is mounted there already`, {
      file: directory,
      hint: `qcow2 unmount ${path}`,
    });
  }
  try {
    mkdirSync(directory);
    return { directory, madeDirectory: true };
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') {
      throw hostError('cannot make the directory', directory, error);
    }
  }
  checkUsable(directory, nonempty);
  return { directory, madeDirectory: false };
}

function checkUsable(directory: string, nonempty: boolean): void {
  let isEmpty: boolean;
  try {
    if (!statSync(directory).isDirectory()) {
      throw new Qcow2Error('INVALID_OPTION', 'it is not a directory', { file: directory });
    }
    const listing = opendirSync(directory);
    isEmpty = listing.readSync() === null;
    listing.closeSync();
  } catch (error) {
    throw error instanceof Qcow2Error ? error : hostError('cannot look at it', directory, error);
  }
  if (isEmpty || nonempty) return;
  throw new Qcow2Error('INVALID_OPTION', 'the directory is not empty', {
    file: directory,
    hint: 'name another, or hide what is in it with -o nonempty',
  });
}
