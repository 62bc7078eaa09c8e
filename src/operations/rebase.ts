/**
 * Rebasing: an overlay gets another backing file, or none, and goes on reading as it did.
 *
 * Where the overlay has nothing of its own and the two backing files differ, it is given what it
 * shows. That changes nothing of what it reads as, with the old backing file behind it; and once it
 * is durable, nothing with the new one either. Only then does the header name the new one, in one
 * instant. So it can be stopped at any point, and started again.
 */

import { resolve } from 'node:path';
import type { ChainedQcow2Image, Image } from '../chain/open.ts';
import type { BlockDevice, Extent } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import { encodeBackingName } from '../format/qcow2/header-encode.ts';
import type { BackingReference } from '../qcow2/image-writer.ts';
import { alignDown, alignUp, isAllZero } from '../util/bytes.ts';
import { runSteps } from './progress.ts';
import type { Steps } from './progress.ts';

/** What an image is rebased to. */
export interface RebaseTarget extends BackingReference {
  /** The new backing file, open for reading; undefined for none. */
  backing: Image | undefined;
}

/** Options of {@link rebaseImage}. */
export interface RebaseOptions {
  /** Compress what the overlay is given (default false). */
  compress?: boolean | undefined;
}

/** Bytes that are read of each side at a time; a multiple of every cluster size. */
const CHUNK_BYTES = 2 * 1024 * 1024;
/** Extents that need no reading, between two reports of progress. */
const QUIET_EXTENTS = 256;
const SUBCLUSTERS = 32;

/**
 * Gives an overlay that is open for writing another backing file; what it reads as stays the same.
 * Close the image after it. Its internal snapshots are left alone: where they have nothing of their
 * own they show the new backing file.
 *
 * @throws {Qcow2Error} `INVALID_OPTION` for a name without a format; `UNSUPPORTED`, `TOO_LARGE` as
 * `Qcow2Image.setBacking`; `HOST`; what reading throws. It has its old backing file then
 */
export function rebaseImage(
  image: ChainedQcow2Image,
  target: RebaseTarget,
  options: RebaseOptions = {},
): void {
  runSteps(rebaseSteps(image, target, options));
}

/**
 * {@link rebaseImage}, a step at a time. Between two steps the image reads as it did before.
 * @throws {Qcow2Error} as {@link rebaseImage}
 */
export function* rebaseSteps(
  image: ChainedQcow2Image,
  target: RebaseTarget,
  { compress = false }: RebaseOptions = {},
): Steps<void> {
  const { size: total } = image;
  checkBacking(image, target);
  const merge = new Merge(image, target.backing, compress);
  let quietExtents = 0;
  for (let offset = 0; offset < total;) {
    const extent = firstExtent(image, offset);
    const end = extent.offset + extent.length;
    const isOwn = extent.depth === 0 && extent.present;
    if (!isOwn) {
      for (const done of merge.range(extent)) yield { done, total };
    }
    offset = end;
    if (++quietExtents % QUIET_EXTENTS === 0) yield { done: offset, total };
  }
  image.flush();
  yield { done: total, total };
  image.setBacking({ file: target.file, format: target.format });
}

/**
 * Finds what cannot be done before it is begun.
 * @throws {Qcow2Error} `INVALID_OPTION`, `READ_ONLY`, `TOO_LARGE`
 */
export function checkBacking(image: ChainedQcow2Image, { file, format }: BackingReference): void {
  if (image.readOnly) {
    throw new Qcow2Error('READ_ONLY', 'it was not opened for writing', { file: image.path });
  }
  if (file === null) return;
  if (format === null) {
    throw new Qcow2Error('INVALID_OPTION', 'the format of the new backing file is not given', {
      file: image.path,
      hint: 'say -F qcow2 or -F raw; guessing it later would be unsafe',
    });
  }
  encodeBackingName(file);
}

/** The extent at an offset. Asked for anew each time, because the image changes in between. */
function firstExtent(image: BlockDevice, offset: number): Extent {
  for (const extent of image.extents(offset, image.size - offset)) return extent;
  throw new Qcow2Error('CORRUPT', 'the extents end before the disk', { offset });
}

/** Gives an overlay what it shows of its old backing file where the new one differs. */
class Merge {
  readonly #image: ChainedQcow2Image;
  readonly #fresh: NewBacking;
  readonly #compress: boolean;
  /** Bytes that are allocated as one. */
  readonly #unit: number;
  readonly #old = Buffer.allocUnsafeSlow(CHUNK_BYTES);
  readonly #new = Buffer.allocUnsafeSlow(CHUNK_BYTES);

  constructor(image: ChainedQcow2Image, backing: Image | undefined, compress: boolean) {
    const { clusterSize, hasExtendedL2 } = image.header;
    this.#image = image;
    this.#fresh = new NewBacking(backing);
    this.#compress = compress;
    this.#unit = hasExtendedL2 && !compress ? clusterSize / SUBCLUSTERS : clusterSize;
  }

  /** Works on an extent of which the overlay has nothing; tells how far it is. */
  *range(extent: Extent): Generator<number, void, void> {
    const end = extent.offset + extent.length;
    // Only whole clusters are compressed, though the overlay may have parts of them.
    const limit = Math.min(alignUp(end, this.#unit), this.#image.size);
    for (let at = extent.offset; at < end;) {
      const sameEnd = Math.min(end, this.#sameUntil(extent, at));
      // The rest of a unit has to be looked at with the whole of it.
      const skipped = sameEnd === end ? end : alignDown(sameEnd, this.#unit);
      if (skipped > at) {
        at = skipped;
        continue;
      }
      const start = alignDown(at, this.#unit);
      const freshEnd = Math.min(limit, this.#fresh.endOfExtent(at));
      at = Math.min(limit, alignUp(freshEnd, this.#unit), start + CHUNK_BYTES);
      const isOldZero = extent.zero && start >= extent.offset && at <= end;
      this.#mergeChunk(start, at, isOldZero);
      yield Math.min(at, end);
    }
  }

  /** Where what both backing files are known to have in common ends; at `at` if there is none. */
  #sameUntil(old: Extent, at: number): number {
    const fresh = this.#fresh.extentAt(at);
    if (fresh === undefined) return old.zero ? Infinity : at;
    const areZero = old.zero && fresh.zero;
    const oldHost = hostOffsetAt(old, at);
    const isSameFile =
      oldHost !== undefined &&
      oldHost === hostOffsetAt(fresh, at) &&
      resolve(old.hostFile!) === resolve(fresh.hostFile!);
    return areZero || isSameFile ? fresh.offset + fresh.length : at;
  }

  #mergeChunk(start: number, end: number, isOldZero: boolean): void {
    const old = this.#old.subarray(0, end - start);
    const fresh = this.#new.subarray(0, end - start);
    if (isOldZero) old.fill(0);
    else this.#image.read(old, start);
    this.#fresh.read(fresh, start);
    if (old.equals(fresh)) return;
    // Neighbours that need the same are written as one.
    let run: { from: number; to: number; zero: boolean } | undefined;
    for (let from = 0; from < old.length; from += this.#unit) {
      const to = Math.min(from + this.#unit, old.length);
      if (old.compare(fresh, from, to, from, to) === 0) continue;
      const zero = isOldZero || isAllZero(old.subarray(from, to));
      if (run?.to === from && run.zero === zero) {
        run.to = to;
      } else {
        if (run !== undefined) this.#give(old, start, run);
        run = { from, to, zero };
      }
    }
    if (run !== undefined) this.#give(old, start, run);
  }

  #give(
    bytes: Uint8Array,
    start: number,
    { from, to, zero }: { from: number; to: number; zero: boolean },
  ): void {
    const data = bytes.subarray(from, to);
    if (zero) this.#image.pinZeroes(start + from, to - from);
    else if (this.#compress) this.#image.writeCompressed(data, start + from);
    else this.#image.write(data, start + from);
  }
}

/** The new backing file as the overlay will see it: zeroes follow its end. */
class NewBacking {
  readonly #device: Image | undefined;
  readonly #size: number;
  #extents: Iterator<Extent> | undefined;
  #extent: Extent | undefined;

  constructor(device: Image | undefined) {
    this.#device = device;
    this.#size = device?.size ?? 0;
  }

  /** The extent at an offset; undefined past the end. Offsets must not decrease by much. */
  extentAt(offset: number): Extent | undefined {
    if (this.#device === undefined || offset >= this.#size) return undefined;
    const current = this.#extent;
    if (current === undefined || offset < current.offset) {
      this.#extents = this.#device.extents(offset, this.#size - offset)[Symbol.iterator]();
      this.#extent = undefined;
    }
    while (this.#extent === undefined || this.#extent.offset + this.#extent.length <= offset) {
      const next = this.#extents!.next();
      if (next.done === true) {
        throw new Qcow2Error('CORRUPT', 'the extents end before the device', {
          file: this.#device.path,
          offset,
        });
      }
      this.#extent = next.value;
    }
    return this.#extent;
  }

  /** End of the extent at an offset. */
  endOfExtent(offset: number): number {
    const extent = this.extentAt(offset);
    return extent === undefined ? Infinity : extent.offset + extent.length;
  }

  /** Fills all of `target` from `offset`. */
  read(target: Uint8Array, offset: number): void {
    const inside = Math.max(0, Math.min(target.length, this.#size - offset));
    if (inside > 0) this.#device!.read(target.subarray(0, inside), offset);
    target.fill(0, inside);
  }
}

/** Where the byte at an offset is in the extent's host file, if it is stored there as it is. */
function hostOffsetAt({ kind, offset, hostOffset }: Extent, at: number): number | undefined {
  return kind === 'data' && hostOffset !== undefined ? hostOffset + (at - offset) : undefined;
}
