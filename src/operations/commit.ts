/**
 * Committing an overlay: what it has of the disk goes to its backing file, and the overlay is
 * empty afterwards. Or several layers at once: what all of them have goes to the layer below them,
 * and they stay as they are.
 *
 * The backing file has everything, durably, before anything of the overlay is dropped, and the
 * overlay is dropped in one instant. Stopped at any point before, it shows what it always did,
 * because it still has all that was written below it, and it can be committed again.
 */

import { realpathSync } from 'node:fs';
import type { ChainedQcow2Image, Image } from '../chain/open.ts';
import { parseReference } from '../chain/names.ts';
import { Qcow2Error } from '../errors.ts';
import { runSteps } from './progress.ts';
import type { Steps } from './progress.ts';
import { RateLimit } from './rate-limit.ts';

/** Bytes that are copied at a time. */
const COPY_BYTES = 2 * 1024 * 1024;
/** Extents without data, between two reports of progress. */
const QUIET_EXTENTS = 64;

/** Options of {@link commitImage}. */
export interface CommitOptions {
  /** Leave the overlay as it is, which is quicker if it is to be deleted (default false). */
  keepsOverlay?: boolean | undefined;
  /**
   * The layer to commit to, 1 for the backing file (default), 2 for what is behind that, and so on.
   * Beyond 1 the overlay always stays as it is: the layers in between show something else
   * afterwards, and must not be used any more except through it.
   */
  depth?: number | undefined;
  /** Bytes that are copied a second at most (default: no limit). */
  bytesPerSecond?: number | undefined;
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

/**
 * {@link commitImage}, a step at a time. Between two steps the image reads as it did before.
 * @throws {Qcow2Error} as {@link commitImage}
 */
export function* commitSteps(
  image: ChainedQcow2Image,
  { keepsOverlay = false, depth: target = 1, bytesPerSecond = 0 }: CommitOptions = {},
): Steps<void> {
  const { path, size: total } = image;
  const base = layerAt(image, target);
  if (image.readOnly || base.readOnly) {
    throw new Qcow2Error('READ_ONLY', 'it was not opened for writing', {
      file: image.readOnly ? path : base.path,
    });
  }
  const limit = new RateLimit(bytesPerSecond);
  if (base.size < total) base.resize(total);
  const buffer = new Uint8Array(COPY_BYTES);
  let quietExtents = 0;
  for (const { offset, length, depth, present, zero } of image.extents(0, total)) {
    const isAbove = depth < target && present;
    if (isAbove && zero) base.writeZeroes(offset, length, { mayUnmap: true });
    for (let done = 0; isAbove && !zero && done < length; done += COPY_BYTES) {
      const part = buffer.subarray(0, Math.min(COPY_BYTES, length - done));
      image.read(part, offset + done);
      base.write(part, offset + done);
      const progress = { done: offset + done + part.length, total };
      yield progress;
      yield* limit.spend(part.length, progress);
    }
    if (isAbove || ++quietExtents % QUIET_EXTENTS === 0) yield { done: offset + length, total };
  }
  base.flush();
  yield { done: total, total };
  if (!keepsOverlay && target === 1) {
    image.makeEmpty();
    image.flush();
  }
}

function layerAt(image: ChainedQcow2Image, depth: number): Image {
  let layer: Image | undefined = image;
  for (let at = 0; at < depth; at++) layer = layer?.backing;
  if (depth >= 1 && layer !== undefined) return layer;
  const problem =
    image.backing === undefined
      ? 'it has no backing file to commit to'
      : `it has no layer that is ${depth} below it`;
  throw new Qcow2Error('INVALID_OPTION', problem, { file: image.path });
}

/**
 * How many layers below `image` the one is that is called `name`: as the layer above it calls it,
 * or by a path that starts where that does. Undefined if there is none.
 */
export function findBacking(image: Image, name: string): number | undefined {
  let depth = 1;
  for (let layer: Image = image; layer.backing !== undefined; layer = layer.backing) {
    const isCalled = layer.format === 'qcow2' && layer.header.backingFile === name;
    const { path } = parseReference(name, layer.path);
    if (isCalled || (path !== undefined && isSameFile(path, layer.backing.path))) return depth;
    depth++;
  }
  return undefined;
}

function isSameFile(one: string, other: string): boolean {
  try {
    return realpathSync(one) === realpathSync(other);
  } catch {
    return false;
  }
}
