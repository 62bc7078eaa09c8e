/**
 * Keeps the persistent bitmaps of an image up to date while it is written (specification:
 * "Bitmaps").
 *
 * The order that makes a crash harmless: before the first change of the disk, every bitmap that
 * records changes is marked as in use, and that is durable; then no reader trusts it. Bits are kept
 * in memory, and go to the file, in place or to new clusters, when there are many, and at the end.
 * There, once bits and counts are durable, tables get the new clusters; once these are durable, the
 * marks go. So a crash loses what bitmaps said, and never makes them say less than is true.
 *
 * Bitmaps that do not record changes, and those that were inconsistent when the image was opened,
 * stay as they are; only a change of the disk's size concerns all of them.
 */

import type { BlockDevice } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import { readBitmapDirectory } from './bitmaps.ts';
import { TrackedBitmap } from './tracked-bitmap.ts';
import type { BitmapSpace } from './tracked-bitmap.ts';

/** Default bytes of bits that are kept in memory, of all bitmaps together. */
const DEFAULT_MEMORY_BYTES = 16 * 1024 * 1024;

/** What a {@link BitmapTracker} works on. */
export interface BitmapTrackerParts {
  header: Qcow2Header;
  file: BlockDevice;
  space: BitmapSpace;
  /** Bytes of bits to keep in memory (default 16 MiB; a cluster at the least). */
  maxMemoryBytes?: number | undefined;
}

/** Records changes of one image's disk in its bitmaps: see the head of this file. */
export class BitmapTracker {
  readonly #file: BlockDevice;
  readonly #space: BitmapSpace;
  readonly #bitmaps: TrackedBitmap[];
  /** Those that record now. */
  #recording: TrackedBitmap[] = [];
  /** Whether all that record changes are marked, and that is durable. */
  #isReady = false;

  /** @throws {Qcow2Error} `CORRUPT`, `TOO_LARGE`, `TRUNCATED` or `UNSUPPORTED`, as for reading */
  constructor(parts: BitmapTrackerParts) {
    const { header, file, space, maxMemoryBytes = DEFAULT_MEMORY_BYTES } = parts;
    this.#file = file;
    this.#space = space;
    const reserveMemory = (bytes: number): void => {
      const used = this.#recording.reduce((sum, bitmap) => sum + bitmap.loadedBytes, 0);
      if (used + bytes > maxMemoryBytes) for (const bitmap of this.#recording) bitmap.spill();
    };
    const shared = { header, file, space, reserveMemory };
    this.#bitmaps = header.areBitmapsValid
      ? readBitmapDirectory({ header, file }).map((info) => new TrackedBitmap(info, shared))
      : [];
  }

  /** Whether bitmaps record changes that are not in the file yet. */
  get isRecording(): boolean {
    return this.#recording.length > 0 || this.#bitmaps.some(({ needsClearing }) => needsClearing);
  }

  /** A bitmap whose bits can be trusted, in the file or here. */
  find(name: string): TrackedBitmap | undefined {
    return this.#bitmaps.find(
      ({ info, state, needsClearing }) =>
        info.name === name && state !== 'lost' && (state === 'recording' || !needsClearing),
    );
  }

  /**
   * Records that a range of the disk is about to change; to be called before it does. The first
   * call returns once the bitmaps are durably marked as in use.
   * @throws {Qcow2Error} `HOST`, or what allocating throws; then the disk must not be changed
   */
  markDirty(offset: number, length: number): void {
    if (!this.#isReady) {
      this.#activate(({ info }) => info.isEnabled);
      this.#isReady = true;
    }
    if (length === 0) return;
    for (const bitmap of this.#recording) {
      if (bitmap.isRecording && bitmap.info.isEnabled) bitmap.mark(offset, length);
    }
  }

  /**
   * Makes room for a disk of another size, before the header says so. All bitmaps are in use from
   * now on, until {@link store}. Followed by {@link resize} if the size did change.
   *
   * @throws {Qcow2Error} `UNSUPPORTED` if a bitmap is inconsistent (as QEMU refuses then),
   * `TOO_LARGE` if one cannot cover the disk, `HOST`, or what allocating throws
   */
  prepareResize(diskSize: number): void {
    for (const bitmap of this.#bitmaps) {
      if (bitmap.state === 'lost' || !bitmap.isUsable) throw inconsistentError(bitmap.info.name);
      bitmap.checkSize(diskSize);
    }
    this.#activate(() => true);
    for (const bitmap of this.#recording) bitmap.reserve(diskSize);
  }

  /**
   * Makes the bitmaps cover the disk's new size, after the header says so. What was cut off is
   * forgotten, what was added is not marked.
   * @throws {Qcow2Error} `HOST`
   */
  resize(diskSize: number): void {
    for (const bitmap of this.#recording) bitmap.setSize(diskSize);
    for (const bitmap of this.#recording) bitmap.trimTable();
  }

  /**
   * Brings all bitmaps to the file, consistent again, after the disk's changes are durable; to be
   * called before the image is closed, or before bitmaps are read. Recording starts over with the
   * next change. After an error it can be called again; until it succeeds, the bitmaps are in use.
   *
   * @throws {Qcow2Error} `HOST`, or what allocating throws
   */
  store(): void {
    if (!this.isRecording) return;
    const recording = this.#recording.filter((bitmap) => bitmap.isRecording);
    for (const bitmap of recording) {
      bitmap.trimTable();
      bitmap.writeBits();
    }
    this.#space.commit();
    const sound = recording.filter((bitmap) => bitmap.isRecording);
    for (const bitmap of sound) bitmap.writeTable();
    this.#file.flush();
    // From here on the next change has to mark them again, whatever becomes of the rest.
    this.#isReady = false;
    this.#recording = [];
    for (const bitmap of sound) bitmap.settle();
    for (const bitmap of this.#bitmaps) if (bitmap.needsClearing) bitmap.writeMark(false);
    this.#file.flush();
    for (const bitmap of this.#bitmaps) bitmap.needsClearing = false;
  }

  /** Marks those that are selected as in use, and returns once that is durable. */
  #activate(isSelected: (bitmap: TrackedBitmap) => boolean): void {
    const selected = this.#bitmaps.filter(
      (bitmap) => bitmap.state === 'idle' && isSelected(bitmap),
    );
    if (selected.length === 0) return;
    for (const bitmap of selected) bitmap.writeMark(true);
    this.#file.flush();
    for (const bitmap of selected) {
      bitmap.needsClearing = false;
      // Changes that cannot be recorded in it: it stays marked.
      if (!bitmap.isUsable) bitmap.abandon();
      else {
        bitmap.state = 'recording';
        this.#recording.push(bitmap);
      }
    }
  }
}

function inconsistentError(name: string): Qcow2Error {
  return new Qcow2Error('UNSUPPORTED', 'it is inconsistent, so that the disk cannot be resized', {
    structure: `bitmap '${name}'`,
    hint: 'remove it first',
  });
}
