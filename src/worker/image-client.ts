/** The promise API: an image that a worker thread holds open. */

import type { OpenImageOptions } from '../chain/open.ts';
import { checkRange, mergeExtents } from '../device/block-device.ts';
import type { Extent, WriteZeroesOptions } from '../device/block-device.ts';
import type { PartitionTable } from '../format/partition/index.ts';
import { Qcow2Error } from '../errors.ts';
import type { SnapshotRow } from '../format/qcow2/snapshot-table.ts';
import type { AmendOptions } from '../operations/amend.ts';
import type { CommitOptions } from '../operations/commit.ts';
import type { BitmapInfo, DirtyRange } from '../qcow2/bitmaps.ts';
import type { ResizeOptions } from '../qcow2/image.ts';
import type { AddBitmapOptions } from '../qcow2/image-bitmaps.ts';
import type { PreallocationMode } from '../qcow2/preallocation.ts';
import type { DeviceHandle, ImageSummary } from './image-protocol.ts';
import { ImageThread, isShared } from './image-thread.ts';

/** Largest read that is asked of the worker in one message where nothing changes, in bytes. */
const MAX_READ_BYTES = 8 * 1024 * 1024;
/** Extents in one answer where nothing changes: the message is cheap, and bounded. */
const MAX_EXTENTS = 4096;

/** What a device is in the thread that holds it open. */
interface DevicePlace {
  thread: ImageThread;
  handle: DeviceHandle;
}

/**
 * An array of bytes in another thread. Calls are executed in the order in which they are made,
 * those of an image and its snapshots among each other; none has to be awaited before the next.
 */
export class AsyncDevice {
  /** Whether every write is refused. */
  readonly readOnly: boolean;
  /** The thread that holds the device open. */
  protected readonly thread: ImageThread;
  readonly #handle: DeviceHandle;
  readonly #size: number;

  /** Devices are made by {@link openImage} and {@link AsyncImage.openSnapshot}. */
  constructor({ thread, handle }: DevicePlace, device: { size: number; readOnly: boolean }) {
    this.thread = thread;
    this.readOnly = device.readOnly;
    this.#handle = handle;
    this.#size = device.size;
  }

  /** Bytes. */
  get size(): number {
    return this.#size;
  }

  /**
   * Fills all of `target` from `offset`. A target in shared memory is filled in place; any other
   * costs a copy.
   * @throws {Qcow2Error} `OUT_OF_RANGE`, and what reading the image throws
   */
  async read(target: Uint8Array, offset: number): Promise<void> {
    if (!this.readOnly) {
      // In one message, so that no write comes in between; the thread knows the size by then.
      await this.#readPart(target, offset);
      return;
    }
    checkRange(offset, target.length, this.size);
    for (let done = 0; done < target.length; done += MAX_READ_BYTES) {
      await this.#readPart(target.subarray(done, done + MAX_READ_BYTES), offset + done);
    }
  }

  /**
   * Stores all of `source` at `offset`. What is in shared memory is stored without a copy, and must
   * stay as it is until then; of anything else a copy is made before this returns.
   * @throws {Qcow2Error} `READ_ONLY`, `OUT_OF_RANGE`, and what writing the image throws
   */
  async write(source: Uint8Array, offset: number): Promise<void> {
    await this.thread.call('write', this.#handle, source, offset);
  }

  /**
   * Makes a range read as zeroes.
   * @throws {Qcow2Error} as {@link write}
   */
  async writeZeroes(
    offset: number,
    length: number,
    options: WriteZeroesOptions = {},
  ): Promise<void> {
    await this.thread.call('writeZeroes', this.#handle, offset, length, options);
  }

  /**
   * Tells that the bytes of a range are not needed any more.
   * @throws {Qcow2Error} as {@link write}
   */
  async discard(offset: number, length: number): Promise<void> {
    await this.thread.call('discard', this.#handle, offset, length);
  }

  /**
   * Fulfilled once everything written would survive a power cut.
   * @throws {Qcow2Error} `HOST` if the host cannot promise it
   */
  async flush(): Promise<void> {
    await this.thread.call('flush', this.#handle);
  }

  /**
   * The extents of a range, in order, neighbours merged.
   * @throws {Qcow2Error} `OUT_OF_RANGE`, and what reading the image throws
   */
  async extents(offset: number, length: number): Promise<Extent[]> {
    // What can change is told in one message, so that no change comes in between.
    const maxCount = this.readOnly ? MAX_EXTENTS : Infinity;
    const extents: Extent[] = [];
    const end = offset + length;
    let at = offset;
    do {
      const range = { offset: at, length: end - at };
      const batch = await this.thread.call('extents', this.#handle, range, maxCount);
      for (const extent of batch) extents.push(extent);
      const last = batch.at(-1);
      at = last === undefined ? end : last.offset + last.length;
    } while (at < end);
    return [...mergeExtents(extents)];
  }

  /** The partition table; `scheme` is `none` where there is none. */
  partitionTable(): Promise<PartitionTable> {
    return this.thread.call('partitionTable', this.#handle);
  }

  /** Releases the device. Closing an image does so for all that was opened from it. */
  async close(): Promise<void> {
    if (this.thread.isTerminated) return;
    await this.thread.call('closeDevice', this.#handle);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #readPart(target: Uint8Array, offset: number): Promise<void> {
    const destination = isShared(target) ? target : target.length;
    const bytes = await this.thread.call('read', this.#handle, destination, offset);
    if (bytes !== undefined) target.set(bytes);
  }
}

/**
 * An image that a worker thread holds open. As a device it is the active disk.
 *
 * An image that is open does not keep the process alive, a call under way does. If the process ends
 * without closing it, the image stays valid, but what was written since the last {@link flush} may
 * be lost.
 */
export class AsyncImage extends AsyncDevice {
  /** Path that it was opened by. */
  readonly path: string;
  /** Format of the image. */
  readonly format: ImageSummary['format'];
  #closing: Promise<void> | undefined;

  /** Images are opened by {@link openImage}. */
  constructor(thread: ImageThread, { path, format, readOnly }: ImageSummary) {
    super({ thread, handle: 0 }, { size: thread.diskSize, readOnly });
    this.path = path;
    this.format = format;
  }

  /** Bytes of the active disk, after the last call that has been answered. */
  override get size(): number {
    return this.thread.diskSize;
  }

  /**
   * Stores clusters compressed, each where that makes it smaller.
   *
   * @param source whole clusters, except that the last may end with the disk; as for {@link write}
   * @param offset a multiple of the cluster size
   * @throws {Qcow2Error} as {@link write}; `OUT_OF_RANGE` for parts of clusters; `UNSUPPORTED` for
   * an image with an external data file and for a raw one; `MISSING_DEPENDENCY` if nothing here
   * compresses that way
   */
  async writeCompressed(source: Uint8Array, offset: number): Promise<void> {
    await this.thread.call('writeCompressed', source, offset);
  }

  /**
   * Changes the size of the disk. What it gains reads as zeroes.
   *
   * @param size bytes, a multiple of 512
   * @throws {Qcow2Error} as {@link write}; `INVALID_OPTION` for a size that cannot be one, or a
   * smaller one without `shrink`; `TOO_LARGE`; `UNSUPPORTED` for a version 2 image with snapshots
   */
  async resize(size: number, options: ResizeOptions = {}): Promise<void> {
    await this.thread.call('resize', size, options);
  }

  /**
   * Gives each cluster of a range its space before anything is written to it. Clusters that have
   * some keep it.
   *
   * @param offset of a range that reads as zeroes where it has no space
   * @throws {Qcow2Error} as {@link write}; `UNSUPPORTED` for a raw image
   */
  async preallocate(offset: number, length: number, mode: PreallocationMode): Promise<void> {
    await this.thread.call('preallocate', offset, length, mode);
  }

  /**
   * Makes an internal snapshot of the disk as it is, in one instant.
   *
   * @param name 1 to 255 bytes; need not be unique, since the id is
   * @returns its row of the snapshot table
   * @throws {Qcow2Error} as {@link write}; `UNSUPPORTED` for an image with an external data file, a
   * raw one, or if a refcount is too narrow to share a cluster once more
   */
  createSnapshot(name: string): Promise<SnapshotRow> {
    return this.thread.call('createSnapshot', name);
  }

  /**
   * Makes the disk what it was at a snapshot, its size too. What was written since is lost.
   *
   * @param idOrName looked for among the ids first, then among the names
   * @throws {Qcow2Error} as {@link createSnapshot}; `NOT_FOUND`; `UNSUPPORTED` for an image with
   * bitmaps
   */
  async applySnapshot(idOrName: string): Promise<void> {
    await this.thread.call('applySnapshot', idOrName);
  }

  /**
   * Deletes a snapshot, and closes the devices that {@link openSnapshot} gave for it.
   *
   * @param idOrName looked for among the ids first, then among the names
   * @throws {Qcow2Error} as {@link write}; `NOT_FOUND`
   */
  async deleteSnapshot(idOrName: string): Promise<void> {
    await this.thread.call('deleteSnapshot', idOrName);
  }

  /**
   * Drops everything that the disk has allocated, so that the backing file shows, or zeroes where
   * there is none. Snapshots keep what they have.
   * @throws {Qcow2Error} as {@link write}
   */
  async makeEmpty(): Promise<void> {
    await this.thread.call('makeEmpty');
  }

  /**
   * Writes what the image has of the disk to its backing file, then empties the image. Needs to be
   * opened with `writable` and `writableBacking`. Other overlays of the backing file are worthless
   * afterwards.
   * @throws {Qcow2Error} as {@link write}; `INVALID_OPTION` without a backing file
   */
  async commit(options: CommitOptions = {}): Promise<void> {
    await this.thread.call('commit', options);
  }

  /**
   * Changes what a qcow2 image is, as the synchronous `amendImage` does. Close it after that, and
   * open it anew.
   * @throws {Qcow2Error} as {@link write}; `INVALID_OPTION`, `UNSUPPORTED` or `TOO_LARGE` for what
   * cannot be, with the image untouched
   */
  async amend(options: AmendOptions): Promise<void> {
    await this.thread.call('amend', options);
  }

  /**
   * The internal snapshots; none for a raw image.
   * @throws {Qcow2Error} `CORRUPT`, `TOO_LARGE` or `TRUNCATED` if the table is damaged
   */
  snapshots(): Promise<readonly SnapshotRow[]> {
    return this.thread.call('snapshots');
  }

  /**
   * The persistent bitmaps; none for a raw image.
   * @throws {Qcow2Error} `CORRUPT`, `TOO_LARGE` or `TRUNCATED` if the directory is damaged
   */
  bitmaps(): Promise<readonly BitmapInfo[]> {
    return this.thread.call('bitmaps');
  }

  /**
   * The runs of the disk that a bitmap marks.
   * @throws {Qcow2Error} `NOT_FOUND`; `CORRUPT` if it is inconsistent or damaged
   */
  dirtyRanges(bitmapName: string): Promise<DirtyRange[]> {
    return this.thread.call('dirtyRanges', bitmapName);
  }

  /**
   * Adds an empty bitmap, durably and in one instant.
   *
   * @param name 1 to 1023 bytes, of no other bitmap of the image
   * @throws {Qcow2Error} as {@link write}; `INVALID_OPTION` for a name or granularity that cannot be;
   * `UNSUPPORTED` for a raw image, one of version 2, or a disk of no bytes; `TOO_LARGE`
   */
  async addBitmap(name: string, options: AddBitmapOptions = {}): Promise<void> {
    await this.thread.call('addBitmap', name, options);
  }

  /**
   * Removes a bitmap, durably and in one instant; an inconsistent one too.
   * @throws {Qcow2Error} as {@link write}; `NOT_FOUND`
   */
  async removeBitmap(name: string): Promise<void> {
    await this.thread.call('removeBitmap', name);
  }

  /**
   * Makes a bitmap mark nothing, durably and in one instant.
   * @throws {Qcow2Error} as {@link write}; `NOT_FOUND`; `UNSUPPORTED` if it is inconsistent
   */
  async clearBitmap(name: string): Promise<void> {
    await this.thread.call('clearBitmap', name);
  }

  /**
   * Has writes to the disk recorded in a bitmap from now on.
   * @throws {Qcow2Error} as {@link clearBitmap}
   */
  async enableBitmap(name: string): Promise<void> {
    await this.thread.call('enableBitmap', name);
  }

  /**
   * Has writes to the disk no longer recorded in a bitmap.
   * @throws {Qcow2Error} as {@link clearBitmap}
   */
  async disableBitmap(name: string): Promise<void> {
    await this.thread.call('disableBitmap', name);
  }

  /**
   * Marks in a bitmap what another one marks, in addition to what it marks already, durably and in
   * one instant. Where the granularities differ, whatever holds a marked byte is marked.
   *
   * @param source name of a bitmap of this image, or one of another, whose disk has the same size
   * @throws {Qcow2Error} as {@link clearBitmap}, for either of them; `INVALID_OPTION` if the disks
   * differ in size; `CORRUPT` if a bitmap is damaged, or that of another image inconsistent
   */
  async mergeBitmap(
    name: string,
    source: string | { image: AsyncImage; name: string },
  ): Promise<void> {
    if (typeof source === 'string') {
      await this.thread.call('mergeBitmap', name, source);
      return;
    }
    const { image } = source;
    const dirty = await image.dirtyRanges(source.name);
    if (image.size !== this.size) {
      const sizes = `${image.size} bytes, and this one ${this.size}`;
      throw new Qcow2Error('INVALID_OPTION', `the disk of ${image.path} has ${sizes}`, {
        file: this.path,
        hint: 'bitmaps of disks of different sizes cannot be merged',
      });
    }
    await this.thread.call('markInBitmap', name, dirty);
  }

  /**
   * Marks ranges of the disk in a bitmap, in addition to what it marks, durably and in one instant.
   *
   * @param dirty in the order of their offsets
   * @throws {Qcow2Error} as {@link clearBitmap}; `OUT_OF_RANGE`
   */
  async markInBitmap(name: string, dirty: readonly DirtyRange[]): Promise<void> {
    await this.thread.call('markInBitmap', name, dirty);
  }

  /**
   * The disk as it was at a snapshot.
   * @throws {Qcow2Error} `NOT_FOUND`; `CORRUPT` if the snapshot is damaged
   */
  async openSnapshot(idOrName: string): Promise<AsyncDevice> {
    const { device, size } = await this.thread.call('openSnapshot', idOrName);
    return new AsyncDevice({ thread: this.thread, handle: device }, { size, readOnly: true });
  }

  /**
   * Brings what was written to the file, as {@link flush} does, closes the image and ends its
   * worker thread; safe to call again.
   *
   * @throws {Qcow2Error} `HOST` if the host refuses; the image stays open then, so that nothing is
   * lost and closing can be tried again, or {@link abandon} can close it
   */
  override close(): Promise<void> {
    return (this.#closing ??= this.#close('close'));
  }

  /**
   * Closes the image without bringing to its file what is only in memory: for one that
   * {@link close} cannot close, because its disk is broken or full. The image is as valid as after
   * a crash; what was written since the last {@link flush} may be lost.
   */
  abandon(): Promise<void> {
    return (this.#closing ??= this.#close('abandon'));
  }

  async #close(call: 'close' | 'abandon'): Promise<void> {
    try {
      await this.thread.call(call);
    } catch (error) {
      this.#closing = undefined;
      throw error;
    }
    await this.thread.terminate();
  }
}

/** Options of the promise API; the policy for references is a word, since functions cannot cross. */
export type AsyncOpenImageOptions = Omit<OpenImageOptions, 'references'> & {
  /** Which files the image may refer to (default `follow`: any plain path). */
  references?: 'follow' | 'refuse' | 'same-directory' | undefined;
};

/**
 * Opens an image with its backing chain in a worker thread of its own, for reading unless
 * `writable` is set.
 *
 * @throws {Qcow2Error} as the synchronous `openImage` does
 * @example
 * const image = await openImage('disk.qcow2');
 * const sector = new Uint8Array(512);
 * await image.read(sector, 0);
 * await image.close();
 */
export async function openImage(
  path: string,
  options: AsyncOpenImageOptions = {},
): Promise<AsyncImage> {
  const thread = new ImageThread({ path, options });
  try {
    return new AsyncImage(thread, await thread.call('open'));
  } catch (error) {
    await thread.terminate();
    throw error;
  }
}
