/**
 * Changing the size of a disk, raw or qcow2, and giving what it gains its space in advance.
 *
 * A smaller disk loses what is past its new end in one instant. A larger one has its new size before
 * its space is there: if that fails, or whoever drives the steps gives up, the disk can be taken
 * back to its old size.
 */

import { statfsSync } from 'node:fs';
import type { Image } from '../chain/open.ts';
import type { RawImage } from '../chain/raw-image.ts';
import { Qcow2Error } from '../errors.ts';
import type { PreallocationMode } from '../qcow2/preallocation.ts';
import { alignUp } from '../util/bytes.ts';
import { runSteps } from './progress.ts';
import type { Steps } from './progress.ts';
import { SECTOR_BYTES } from './sector-padded.ts';

/** How much of the space that a disk gains is there in advance. */
export const PREALLOCATION_MODES = ['off', 'metadata', 'falloc', 'full'] as const;

/** Options of {@link resizeImage}. */
export interface ResizeImageOptions {
  /** Allow a smaller size, which loses the data past it (default false). */
  shrink?: boolean | undefined;
  /** Space for what the disk gains (default `off`). */
  preallocation?: (typeof PREALLOCATION_MODES)[number] | undefined;
}

/** Bytes that are preallocated between two reports of progress. */
const STEP_BYTES = 64 * 1024 * 1024;

/**
 * Changes the size of an image that is open for writing. If it fails, the size is the old one.
 *
 * @param size bytes; a multiple of 512 for qcow2
 * @throws {Qcow2Error} `INVALID_OPTION` for a size that cannot be one, a smaller one without
 * `shrink`, or preallocation that is not possible; what writing throws
 */
export function resizeImage(image: Image, size: number, options: ResizeImageOptions = {}): void {
  runSteps(resizeSteps(image, size, options));
}

/**
 * {@link resizeImage}, a step at a time. After a step, {@link undoResize} takes back what was done.
 * @throws {Qcow2Error} as {@link resizeImage}
 */
export function* resizeSteps(
  image: Image,
  size: number,
  { shrink = false, preallocation = 'off' }: ResizeImageOptions = {},
): Steps<void> {
  const oldSize = diskSizeOf(image);
  const fail = (problem: string, hint?: string): Qcow2Error =>
    new Qcow2Error('INVALID_OPTION', problem, { file: image.path, hint });
  if (size <= oldSize && preallocation !== 'off') {
    throw fail('preallocation is for what a disk gains, and it would gain nothing');
  }
  if (size < oldSize && !shrink) {
    throw fail(
      'making the disk smaller deletes all data past its new end',
      'say --shrink if that is meant',
    );
  }
  if (image.format === 'raw') {
    if (preallocation === 'metadata') throw fail('a raw image has no metadata to preallocate');
    if (image.isBlockDevice && size !== oldSize) throw fail('a block device keeps its size');
  }
  const before = image.size;
  if (preallocation === 'falloc' || preallocation === 'full') checkRoom(image, size - before);
  try {
    if (image.format === 'raw') image.resize(size);
    else image.resize(size, { shrink });
    if (preallocation === 'off') return;
    const first = image.format === 'raw' ? before : alignUp(before, image.header.clusterSize);
    for (let offset = first; offset < size; offset += STEP_BYTES) {
      const length = Math.min(STEP_BYTES, size - offset);
      preallocateRange(image, { offset, length, mode: preallocation });
      yield { done: offset + length - first, total: size - first };
    }
    image.flush();
  } catch (error) {
    if (size > before) undoAfter(error, image, before);
    throw error;
  }
}

/** Where not even that is possible, says so in addition to what went wrong first. */
function undoAfter(error: unknown, image: Image, size: number): void {
  try {
    undoResize(image, size);
  } catch {
    if (!(error instanceof Qcow2Error)) return;
    const { code, problem, structure, offset, cause } = error;
    const hint = `the disk has ${image.size} bytes now, not all of them preallocated`;
    throw new Qcow2Error(code, problem, { file: image.path, structure, offset, hint, cause });
  }
}

/** Finds that there is no room before the host's filesystem is filled to find it. */
function checkRoom(image: Image, bytes: number): void {
  const { path } = image.format === 'qcow2' ? (image.dataFile ?? image) : image;
  const { bavail, bsize } = statfsSync(path);
  if (bytes <= bavail * bsize) return;
  throw new Qcow2Error('HOST', `no space left on the device to preallocate ${bytes} bytes`, {
    file: path,
    hint: `${bavail * bsize} bytes are free; nothing was changed`,
  });
}

/**
 * Takes an image that was made larger back to its old size in bytes.
 * @throws {Qcow2Error} what writing throws
 */
export function undoResize(image: Image, size: number): void {
  if (image.size <= size) return;
  if (image.format === 'raw') image.resize(size);
  else image.resize(size, { shrink: true });
}

/** Size of the disk, which ends with a sector even where a raw image does not. */
export function diskSizeOf(image: Image): number {
  return alignUp(image.size, SECTOR_BYTES);
}

interface Range {
  offset: number;
  length: number;
  mode: PreallocationMode;
}

function preallocateRange(image: Image, { offset, length, mode }: Range): void {
  if (image.format === 'raw') preallocateRaw(image, { offset, length, mode });
  else image.preallocate(offset, length, mode);
}

const ZEROES = new Uint8Array(1024 * 1024);

function preallocateRaw(image: RawImage, { offset, length, mode }: Range): void {
  if (mode === 'falloc') {
    image.writeZeroes(offset, length);
    return;
  }
  for (let done = 0; done < length; done += ZEROES.length) {
    image.write(ZEROES.subarray(0, Math.min(ZEROES.length, length - done)), offset + done);
  }
}
