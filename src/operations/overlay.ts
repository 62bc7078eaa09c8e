/**
 * Writing on top of an image that is itself never opened for writing: into an overlay that is
 * forgotten when it is closed, or into one that is kept.
 */

import { mkdtempSync, realpathSync, rmSync, statSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { openImage } from '../chain/open.ts';
import type { Image, ImageFormat, OpenImageOptions } from '../chain/open.ts';
import { parseReference, quote } from '../chain/names.ts';
import { isBelow } from '../chain/policy.ts';
import { FileDevice } from '../device/file.ts';
import { Qcow2Error } from '../errors.ts';
import { createImage } from './create.ts';

/** How the image under an overlay is opened: as {@link OpenImageOptions}. */
export type OverlayOptions = Omit<
  OpenImageOptions,
  'writable' | 'writableBacking' | 'withoutBacking' | 'forRepair' | 'forceShare'
>;

/**
 * Opens an image for writes that are forgotten when it is closed. They go to a file without a name
 * in the directory that `TMPDIR` names (default /var/tmp, since it may become large), which is gone
 * when this process ends, however it ends.
 *
 * @param path of the image, which is opened for reading only
 * @throws {Qcow2Error} what opening the image throws; `HOST` if there is no place for the file
 */
export function openTemporaryOverlay(path: string, options: OverlayOptions = {}): Image {
  const image = lookAt(path, options);
  const directory = makeTemporaryDirectory();
  try {
    const overlay = join(directory, 'overlay.qcow2');
    createOverlay(overlay, image, options);
    const top = openOverlay(overlay, image, options);
    // Nothing of it outlives the process, so nothing has to survive a power cut.
    if (top.file instanceof FileDevice) top.file.durable = false;
    return top;
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/**
 * Opens an image for writes that are kept in an overlay of it, a qcow2 image which is made if it is
 * missing, and otherwise goes on to be used.
 *
 * @param path of the image, which is opened for reading only
 * @param overlay path of the overlay
 * @throws {Qcow2Error} `REFUSED` if there is a file that is not an overlay of this image; what
 * opening either throws
 */
export function openKeptOverlay(
  path: string,
  overlay: string,
  options: OverlayOptions = {},
): Image {
  return openOrMakeOverlay(path, overlay, options).top;
}

/** An overlay that is kept, and whether it has just been made. */
export interface KeptOverlay {
  top: Image;
  isNew: boolean;
}

/**
 * As {@link openKeptOverlay}, for callers that may still fail: a new overlay that nobody has come to
 * use is removed with {@link removeUnusedOverlay}. One that is made here and cannot be opened is
 * removed at once.
 */
export function openOrMakeOverlay(
  path: string,
  overlay: string,
  options: OverlayOptions = {},
): KeptOverlay {
  const image = lookAt(path, options);
  if (statSync(overlay, { throwIfNoEntry: false }) !== undefined) {
    checkOverlay(overlay, path);
    return { top: openOverlay(overlay, image, options), isNew: false };
  }
  createOverlay(overlay, image, options);
  const identity = identityOf(overlay);
  try {
    return { top: openOverlay(overlay, image, options), isNew: true };
  } catch (error) {
    removeFile(overlay, identity);
    throw error;
  }
}

/** Removes the file of an overlay, unless there is another of its name by now. */
export function removeUnusedOverlay({ path, file }: Image): void {
  if (file instanceof FileDevice) removeFile(path, file.identity);
}

function identityOf(path: string): string | undefined {
  const stats = statSync(path, { throwIfNoEntry: false });
  return stats === undefined ? undefined : `${stats.dev}:${stats.ino}`;
}

/** A symbolic link that named it stays, as it was before. */
function removeFile(path: string, identity: string | undefined): void {
  try {
    if (identityOf(path) === identity) rmSync(realpathSync(path), { force: true });
  } catch {
    // An empty overlay too many: why the caller failed is what has to be told.
  }
}

/** The image under an overlay. */
interface LowerImage {
  /** Its path, whole: the overlay can be moved, and the image is found from any place. */
  path: string;
  format: ImageFormat;
  /** Bytes of the disk. */
  size: number;
}

/** Opens the image once, so that what is wrong with it is told before anything is made. */
function lookAt(path: string, options: OverlayOptions): LowerImage {
  using image = openImage(path, options);
  return { path: resolve(path), format: image.format, size: image.size };
}

function createOverlay(
  overlay: string,
  { path, format, size }: LowerImage,
  { lock }: OverlayOptions,
): void {
  // The image was opened already, as the options say.
  const backing = { backingFile: path, backingFormat: format, withoutBacking: true };
  createImage(overlay, { ...backing, size, lock });
}

/**
 * Opens an overlay in the place of its image: what the caller may refuse is not the image, but what
 * that refers to.
 */
function openOverlay(overlay: string, { path }: LowerImage, options: OverlayOptions): Image {
  const { references } = options;
  return openImage(
    { path: overlay, format: 'qcow2', backing: { path } },
    {
      ...options,
      writable: true,
      references:
        references === 'same-directory' ? (file) => isBelow(file.path, dirname(path)) : references,
    },
  );
}

function checkOverlay(overlay: string, path: string): void {
  using top = openImage(overlay, { withoutBacking: true, forceShare: true });
  const name = top.format === 'qcow2' ? top.header.backingFile : undefined;
  if (name === undefined || name === '') {
    throw refused(overlay, `it is there already, and is not an overlay of ${quote(path)}`);
  }
  const backing = parseReference(name, overlay).path;
  const [wanted, found] = [path, backing].map((file) => {
    return file === undefined ? undefined : identityOf(file);
  });
  if (found === undefined || found !== wanted) {
    throw refused(overlay, `it is an overlay of ${quote(name)}, not of ${quote(path)}`);
  }
}

function refused(file: string, message: string): Qcow2Error {
  return new Qcow2Error('REFUSED', message, { file, hint: 'name another file for the overlay' });
}

function makeTemporaryDirectory(): string {
  const parent = process.env.TMPDIR || '/var/tmp';
  try {
    return mkdtempSync(join(parent, 'qcow2-'));
  } catch (cause) {
    throw new Qcow2Error('HOST', `no temporary file can be made in ${parent}`, {
      cause,
      hint: 'let TMPDIR name a directory that can be written to',
    });
  }
}
