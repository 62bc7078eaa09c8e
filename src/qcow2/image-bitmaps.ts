/** The persistent bitmaps of an open image, as its users see them. */

import type { BlockDevice } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import { defaultGranularity } from './bitmap-changes.ts';
import type { BitmapChange, NewBitmap } from './bitmap-changes.ts';
import { BitmapTable } from './bitmap-table.ts';
import { dirtyRanges, readBitmapDirectory } from './bitmaps.ts';
import type { BitmapInfo, DirtyRange, UnsavedBits } from './bitmaps.ts';
import { GuestDisk } from './guest-disk.ts';
import type { ImageWriter } from './image-writer.ts';

/** Options of {@link DiskWithBitmaps.addBitmap}. */
export interface AddBitmapOptions {
  /**
   * Bytes of the disk that one bit stands for, a power of two from 512 to 2^31 (default: the cluster
   * size, but at least 4096 and at most 65,536).
   */
  granularity?: number | undefined;
  /** Whether writes to the disk are recorded in it from now on (default true). */
  isEnabled?: boolean | undefined;
}

/** A bitmap of another image. */
export interface BitmapReference {
  /** The image, which stays open. Its disk has the same size. */
  image: DiskWithBitmaps;
  /** Name of the bitmap. */
  name: string;
}

/** The active disk of an image, whose changes bitmaps record. */
export abstract class DiskWithBitmaps extends GuestDisk {
  /** Path that the image was opened by. */
  abstract readonly path: string;
  /** The header, decoded. */
  abstract readonly header: Qcow2Header;
  /** The image's own file. */
  abstract readonly file: BlockDevice;
  /** Changes the image; undefined where it is open for reading. */
  protected abstract readonly writer: ImageWriter | undefined;
  #bitmaps: BitmapInfo[] | undefined;

  /**
   * What changes the image.
   * @throws {Qcow2Error} `READ_ONLY` if it is open for reading
   */
  protected get openWriter(): ImageWriter {
    if (this.writer !== undefined) return this.writer;
    throw new Qcow2Error('READ_ONLY', 'it can only be read: it was not opened for writing', {
      file: this.path,
    });
  }

  /**
   * The persistent bitmaps with their state.
   * @throws {Qcow2Error} `CORRUPT`, `TOO_LARGE`, `TRUNCATED` or `UNSUPPORTED` if the bitmap
   * directory is damaged
   */
  get bitmaps(): readonly BitmapInfo[] {
    if (this.writer !== undefined) {
      this.writer.storeBitmaps();
      this.#bitmaps = undefined;
    }
    return (this.#bitmaps ??= this.inFile(() => readBitmapDirectory(this)));
  }

  /**
   * The runs of the disk that a bitmap marks, in order, neighbours merged. Of one that records
   * changes, as they are when a run is looked for.
   *
   * @param from runs that end before it may be left out, and the one around it cut short
   * @throws {Qcow2Error} `NOT_FOUND`; `CORRUPT` if it is inconsistent or damaged
   */
  *dirtyRanges(bitmapName: string, from = 0): Generator<DirtyRange> {
    const tracked = this.writer?.trackedBitmap(bitmapName);
    if (tracked !== undefined) {
      yield* this.#rangesOf(tracked.info, from, tracked);
      return;
    }
    const bitmap = this.bitmaps.find(({ name }) => name === bitmapName);
    if (bitmap === undefined) {
      throw new Qcow2Error('NOT_FOUND', `there is no bitmap '${bitmapName}'`, { file: this.path });
    }
    if (bitmap.isInconsistent) {
      throw new Qcow2Error('CORRUPT', 'it was not saved properly and cannot be trusted', {
        file: this.path,
        structure: `bitmap '${bitmapName}'`,
        offset: bitmap.offset,
      });
    }
    yield* this.#rangesOf(bitmap, from);
  }

  *#rangesOf(bitmap: BitmapInfo, from: number, unsaved?: UnsavedBits): Generator<DirtyRange> {
    try {
      yield* dirtyRanges(this, bitmap, { diskSize: this.size, from, unsaved });
    } catch (error) {
      throw error instanceof Qcow2Error ? error.inFile(this.path) : error;
    }
  }

  /**
   * Adds an empty bitmap, durably and in one instant.
   *
   * @param name 1 to 1023 bytes, of no other bitmap of the image
   * @throws {Qcow2Error} as `write`; `INVALID_OPTION` for a name or granularity that cannot be;
   * `UNSUPPORTED` for an image of version 2 or a disk of no bytes; `TOO_LARGE` if there are too many,
   * or if it would have more than 512 MiB of bits
   */
  addBitmap(name: string, options: AddBitmapOptions = {}): void {
    const { granularity = defaultGranularity(this.header), isEnabled = true } = options;
    this.addBitmaps([{ name, granularity, isEnabled, dirty: [] }]);
  }

  /**
   * Adds bitmaps with what they mark, durably and in one instant.
   * @throws {Qcow2Error} as {@link addBitmap}
   */
  addBitmaps(bitmaps: readonly NewBitmap[]): void {
    this.#change({ action: 'add', bitmaps });
  }

  /**
   * Removes a bitmap, durably and in one instant; an inconsistent one too.
   * @throws {Qcow2Error} as `write`; `NOT_FOUND`
   */
  removeBitmap(name: string): void {
    this.#change({ action: 'remove', name });
  }

  /**
   * Makes a bitmap mark nothing, durably and in one instant.
   * @throws {Qcow2Error} as `write`; `NOT_FOUND`; `UNSUPPORTED` if it is inconsistent
   */
  clearBitmap(name: string): void {
    this.#change({ action: 'clear', name });
  }

  /**
   * Has writes to the disk recorded in a bitmap from now on.
   * @throws {Qcow2Error} as {@link clearBitmap}
   */
  enableBitmap(name: string): void {
    this.#change({ action: 'enable', name });
  }

  /**
   * Has writes to the disk no longer recorded in a bitmap.
   * @throws {Qcow2Error} as {@link clearBitmap}
   */
  disableBitmap(name: string): void {
    this.#change({ action: 'disable', name });
  }

  /**
   * Marks in a bitmap what another one marks, in addition to what it marks already, durably and in
   * one instant. Where the granularities differ, whatever holds a marked byte is marked.
   *
   * @param source name of a bitmap of this image, or one of another
   * @throws {Qcow2Error} as {@link clearBitmap}, for either of them; `INVALID_OPTION` if the disks
   * differ in size; `CORRUPT` if a bitmap is damaged
   */
  mergeBitmap(name: string, source: string | BitmapReference): void {
    const from = typeof source === 'string' ? { image: this, name: source } : source;
    const { image } = from;
    const info = image.bitmaps.find((bitmap) => bitmap.name === from.name);
    if (info?.isInconsistent === true) {
      throw new Qcow2Error('UNSUPPORTED', 'it is inconsistent, and cannot be merged', {
        file: image.path,
        structure: `bitmap '${from.name}'`,
        offset: info.offset,
        hint: 'it can only be removed',
      });
    }
    if (info === undefined) {
      throw new Qcow2Error('NOT_FOUND', `there is no bitmap '${from.name}'`, { file: image.path });
    }
    if (image.size !== this.size) {
      const sizes = `${image.size} bytes, and this one ${this.size}`;
      throw new Qcow2Error('INVALID_OPTION', `the disk of ${image.path} has ${sizes}`, {
        file: this.path,
        hint: 'bitmaps of disks of different sizes cannot be merged',
      });
    }
    const marks = {
      granularity: info.granularity,
      ranges: () => image.dirtyRanges(from.name),
      table: () => BitmapTable.read(image, info),
    };
    this.#change({ action: 'merge', name, source: marks });
  }

  /**
   * Marks ranges of the disk in a bitmap, in addition to what it marks, durably and in one instant.
   *
   * @param dirty in the order of their offsets
   * @throws {Qcow2Error} as {@link clearBitmap}; `OUT_OF_RANGE`
   */
  markInBitmap(name: string, dirty: Iterable<DirtyRange>): void {
    this.#change({ action: 'mark', name, dirty });
  }

  /**
   * Runs `action`.
   * @throws {Qcow2Error} what `action` throws, naming this image
   */
  protected inFile<T>(action: () => T): T {
    try {
      return action();
    } catch (error) {
      throw error instanceof Qcow2Error ? error.inFile(this.path) : error;
    }
  }

  #change(change: BitmapChange): void {
    const writer = this.openWriter;
    try {
      this.inFile(() => writer.changeBitmaps(change));
    } finally {
      this.#bitmaps = undefined;
    }
  }
}
