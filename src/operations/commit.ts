/**
 * Committing an overlay: what it has of the disk goes to its backing file, and the overlay is
 * empty afterwards.
 *
 * The backing file has everything, durably, before anything of the overlay is dropped, and the
 * overlay is dropped in one instant. Stopped at any point before, it can be done again.
 */

import type { ChainedQcow2Image } from '../chain/open.ts';
import { Qcow2Error } from '../errors.ts';
import { runSteps } from './progress.ts';
import type { Steps } from './progress.ts';

/** Bytes that are copied at a time. */
const COPY_BYTES = 2 * 1024 * 1024;

/** Options of {@link commitImage}. */
export interface CommitOptions {
  /** Leave the overlay as it is, which is quicker if it is to be deleted (default false). */
  keepsOverlay?: boolean | undefined;
}

/**
 * Writes what an overlay has of the disk to its backing file, then empties the overlay. Both must
 * be open for writing: `openImage(path, { writable: true, writableBacking: true })`. A backing file
 * that is shorter than the overlay grows.
 *
 * Other overlays of the same backing file show the change too, and are worthless after it.
 *
 * @throws {Qcow2Error} `INVALID_OPTION` without a backing file; `READ_ONLY`; `HOST`; what reading
 * the overlay throws
 */
export function commitImage(image: ChainedQcow2Image, options: CommitOptions = {}): void {
  runSteps(commitSteps(image, options));
}

/** {@link commitImage}, a step at a time. */
export function* commitSteps(
  image: ChainedQcow2Image,
  { keepsOverlay = false }: CommitOptions = {},
): Steps<void> {
  const { backing, path, size: total } = image;
  if (backing === undefined) {
    throw new Qcow2Error('INVALID_OPTION', 'it has no backing file to commit to', { file: path });
  }
  if (image.readOnly || backing.readOnly) {
    throw new Qcow2Error('READ_ONLY', 'it was not opened for writing', {
      file: image.readOnly ? path : backing.path,
    });
  }
  if (backing.size < total) backing.resize(total);
  const buffer = new Uint8Array(COPY_BYTES);
  for (const { offset, length, depth, present, zero } of image.extents(0, total)) {
    const isOurs = depth === 0 && present;
    if (isOurs && zero) backing.writeZeroes(offset, length, { mayUnmap: true });
    for (let done = 0; isOurs && !zero && done < length; done += COPY_BYTES) {
      const part = buffer.subarray(0, Math.min(COPY_BYTES, length - done));
      image.read(part, offset + done);
      backing.write(part, offset + done);
      yield { done: offset + done + part.length, total };
    }
    yield { done: offset + length, total };
  }
  backing.flush();
  if (!keepsOverlay) {
    image.makeEmpty();
    image.flush();
  }
}
