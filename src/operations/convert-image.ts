/**
 * A qcow2 image as the target of a conversion: made for it, or one that exists.
 *
 * If the conversion does not finish, an image that was made for it is removed again; where there
 * was a file before, that is left empty, so that half an image never passes for one. Meanwhile it is
 * marked, so that it does not either if the process is killed; version 2 of the format has no mark.
 */

import { statSync, truncateSync, unlinkSync } from 'node:fs';
import type { ImageDescription } from '../chain/description.ts';
import { parseReference } from '../chain/names.ts';
import { openImage } from '../chain/open.ts';
import type { ChainedQcow2Image, OpenImageOptions } from '../chain/open.ts';
import { FileDevice } from '../device/file.ts';
import { SpaceReserver } from '../host/reserve-space.ts';
import type { ConvertTarget } from './convert.ts';
import { createSteps } from './create.ts';
import type { CreateOptions } from './create.ts';
import { refuseInputs, tooSmall } from './output-file.ts';
import type { NewBitmap } from '../qcow2/bitmap-changes.ts';
import type { Steps } from './progress.ts';
import { SECTOR_BYTES } from './sector-padded.ts';

/** How an {@link ImageOutput} is opened. */
export interface ImageOutputOptions {
  /** How an output that exists is opened. */
  open: OpenImageOptions;
  /** Bytes of the disk that will be written. */
  size: number;
  /** Files that are read meanwhile: none of them may be written to. */
  inputs: readonly string[];
  /** Whether what was written is to survive a power cut once the image is finished. */
  durable: boolean;
  /** The output by its options, where it exists and is given so. */
  target?: ImageDescription | undefined;
}

/** What became of an output that was given up. */
export type AbandonedOutput = 'removed' | 'emptied' | 'kept';

/** A file of an image that was made. */
interface MadeFile {
  path: string;
  /** Whether it did not exist before. */
  isNew: boolean;
}

/** See the head of this file. */
export class ImageOutput {
  /** The image, open for writing. */
  readonly image: ChainedQcow2Image;
  /** Those that were made; none if the image existed. */
  readonly #made: readonly MadeFile[];
  #isMarked: boolean;

  private constructor(image: ChainedQcow2Image, made: readonly MadeFile[]) {
    this.image = image;
    this.#made = made;
    this.#isMarked = made.length > 0;
  }

  /**
   * Makes an image, a step at a time. Returning from it early gives the image up.
   * @throws {Qcow2Error} `REFUSED` if it would overwrite an input; what `createImage` throws
   */
  static *create(
    path: string,
    creation: CreateOptions,
    options: ImageOutputOptions,
  ): Steps<ImageOutput> {
    const files = [path];
    const { dataFile } = creation;
    if (dataFile !== undefined) files.push(parseReference(dataFile, path).path ?? dataFile);
    const made = files.map((file) => {
      const stats = statSync(file, { throwIfNoEntry: false });
      if (stats !== undefined) refuseInputs(file, stats, options.inputs);
      return { path: file, isNew: stats === undefined };
    });
    const { size, durable } = options;
    yield* createSteps(path, { ...creation, format: 'qcow2', size, durable });
    let image: ChainedQcow2Image | undefined;
    try {
      image = openOutput(path, options);
      image.setUnfinished(true);
      return new ImageOutput(image, made);
    } catch (error) {
      image?.abandon();
      giveUp(made);
      throw error;
    }
  }

  /**
   * Opens an image that exists.
   * @throws {Qcow2Error} `REFUSED` if it is an input, `OUT_OF_RANGE` if it is too small; what
   * `openImage` throws
   */
  static open(path: string, options: ImageOutputOptions): ImageOutput {
    const stats = statSync(path, { throwIfNoEntry: false });
    if (stats !== undefined) refuseInputs(path, stats, options.inputs);
    const image = openOutput(path, options);
    try {
      const { dataFile } = image;
      if (dataFile !== undefined) {
        refuseInputs(dataFile.path, statSync(dataFile.path), options.inputs);
      }
      if (image.size < options.size) throw tooSmall(path, image.size, options.size);
      return new ImageOutput(image, []);
    } catch (error) {
      image.abandon();
      throw error;
    }
  }

  /**
   * Gives an image whose disk is written its bitmaps.
   * @throws {Qcow2Error} as {@link finish}
   */
  addBitmaps(bitmaps: readonly NewBitmap[]): void {
    this.#unmark();
    this.image.addBitmaps(bitmaps);
  }

  /**
   * Closes the finished image.
   * @throws {Qcow2Error} `HOST`; then it is still open, and can be given up
   */
  finish(): void {
    this.#unmark();
    this.image.close();
  }

  /** Gives the output up. @returns what became of it */
  abandon(): AbandonedOutput {
    this.image.abandon();
    return giveUp(this.#made);
  }

  /** Once the whole disk is written. */
  #unmark(): void {
    if (this.#isMarked) this.image.setUnfinished(false);
    this.#isMarked = false;
  }
}

function openOutput(path: string, options: ImageOutputOptions): ChainedQcow2Image {
  const { open, durable } = options;
  const image = openImage(options.target ?? path, {
    ...open,
    format: 'qcow2',
    writable: true,
    forceShare: false,
  });
  if (image.format !== 'qcow2') throw new TypeError('the format was given');
  for (const device of [image.file, image.dataFile?.device]) {
    if (!(device instanceof FileDevice)) continue;
    device.durable = durable;
    device.reserver = new SpaceReserver(device.path);
  }
  return image;
}

function giveUp(made: readonly MadeFile[]): AbandonedOutput {
  const outcomes = made.map(({ path, isNew }) => {
    try {
      if (isNew) unlinkSync(path);
      else emptyFile(path);
      return isNew ? 'removed' : 'emptied';
    } catch {
      return 'kept';
    }
  });
  return outcomes[0] ?? 'kept';
}

/** Removes all content; of a block device the start, by which a format is told. */
function emptyFile(path: string): void {
  if (!statSync(path).isBlockDevice()) {
    truncateSync(path);
    return;
  }
  using device = new FileDevice(path, { writable: true });
  device.writeZeroes(0, Math.min(SECTOR_BYTES, device.size));
}

/** Writes to an image. */
export class ImageTarget implements ConvertTarget {
  readonly #image: ChainedQcow2Image;
  /** Whether whatever is not written reads as zeroes. */
  readonly #isZero: boolean;

  constructor(image: ChainedQcow2Image, { isZero }: { isZero: boolean }) {
    this.#image = image;
    this.#isZero = isZero;
  }

  write(bytes: Uint8Array, offset: number): void {
    this.#image.write(bytes, offset);
  }

  writeCompressed(compressed: Uint8Array, offset: number): void {
    this.#image.storeCompressed(compressed, offset);
  }

  zero(offset: number, length: number): void {
    if (!this.#isZero && length > 0) this.#image.writeZeroes(offset, length, { mayUnmap: true });
  }
}
