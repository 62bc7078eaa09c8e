/** Opens the image of a mount for reading or writing, and closes it at the end. */

import { statSync } from 'node:fs';
import { relative } from 'node:path';
import { openImage } from '../chain/open.ts';
import type { Image, OpenImageOptions } from '../chain/open.ts';
import { FileDevice } from '../device/file.ts';
import { Qcow2Error } from '../errors.ts';
import { writeBackEarly } from '../operations/early-writeback.ts';
import {
  openOrMakeOverlay,
  openTemporaryOverlay,
  removeUnusedOverlay,
} from '../operations/overlay.ts';
import type { ImageRequest, MountRequest } from './fuse-request.ts';

/** An image that is open for a mount. */
export interface MountedImage {
  /** What is read and, unless the mount is read-only, written: an overlay perhaps. */
  top: Image;
  /** The image that was asked for. */
  named: Image;
  /** `top` is an overlay that has been made for this mount, and is kept. */
  isNewOverlay: boolean;
}

/**
 * Opens the image of a request.
 * @throws {Qcow2Error} what is wrong with it
 */
export function openMounted(request: ImageRequest): MountedImage {
  const { image: path, access, overlay } = request;
  const options = openOptions(request);
  switch (access) {
    case 'ro': {
      const image = openImage(path, options);
      return { top: image, named: image, isNewOverlay: false };
    }
    case 'rw': {
      const image = writeBackEarly(openImage(path, { ...options, writable: true }));
      return { top: image, named: image, isNewOverlay: false };
    }
    case 'temp': {
      const top = openTemporaryOverlay(path, options);
      return { top, named: top.backing!, isNewOverlay: false };
    }
    case 'overlay': {
      const { top, isNew } = openOrMakeOverlay(path, overlay!, options);
      return { top: writeBackEarly(top), named: top.backing!, isNewOverlay: isNew };
    }
  }
}

/** How the image of a request is opened, besides for writing or not. */
function openOptions(request: ImageRequest): OpenImageOptions {
  const { format, backingFormat, allowProtocolNames, forceShare } = request;
  return {
    ...(format === undefined ? {} : { format }),
    ...(backingFormat === undefined ? {} : { backingFormat }),
    ...(allowProtocolNames === undefined ? {} : { allowProtocolNames }),
    ...(forceShare === undefined ? {} : { forceShare }),
  };
}

/**
 * Brings everything that was written to the disk and closes the image, whether that works or not.
 * Nothing of the mount itself is looked at: this may be the thread that would have to answer.
 *
 * @param isUnused the mount failed, or nobody was told of it, and nothing was written: an overlay that
 * was made for it goes again
 * @throws {Qcow2Error} `HOST` and others if what was written last may be lost, or nobody will find
 * it, because the file was replaced
 */
export function closeMounted(
  { top, isNewOverlay }: MountedImage,
  { access, directory }: MountRequest,
  { isUnused }: { isUnused: boolean },
): void {
  const identity = top.file instanceof FileDevice ? top.file.identity : undefined;
  try {
    top.close();
  } catch (error) {
    if (top.format === 'qcow2') top.abandon();
    throw error instanceof Qcow2Error ? error.inFile(top.path) : error;
  } finally {
    if (isNewOverlay && isUnused) removeUnusedOverlay(top);
  }
  if (isNewOverlay && isUnused) return;
  if (access !== 'rw' && access !== 'overlay') return;
  const isHidden = !relative(directory, top.path).startsWith('..');
  if (isHidden) return;
  const stats = statSync(top.path, { throwIfNoEntry: false });
  if (stats !== undefined && `${stats.dev}:${stats.ino}` === identity) return;
  const fate = stats === undefined ? 'removed or renamed' : 'replaced by another';
  throw new Qcow2Error('HOST', `the file was ${fate} while it was mounted`, {
    file: top.path,
    hint: 'what was written is not in it',
  });
}
