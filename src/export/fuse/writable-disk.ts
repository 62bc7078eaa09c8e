/**
 * The disk of a mount that accepts writes.
 *
 * Several files show its bytes: the whole disk, each partition, perhaps the top layer. The kernel
 * caches each file by itself, so what is written through one would leave old bytes in the caches of
 * the others. Here it is known which files the kernel may hold pages of, so that a write tells whose
 * pages have to be dropped (`invalidations.ts`).
 */

import type { BlockDevice } from '../../device/block-device.ts';

/** A file that shows a part of the disk. */
export interface DiskView {
  readonly inode: number;
  /** First byte, in the disk's offsets. */
  readonly offset: number;
  /** Bytes. */
  readonly size: number;
  /** Whether the kernel may have pages of it that nobody has asked it to drop. */
  isCached: boolean;
}

/** A part of the disk. */
export interface DiskRange {
  /** First byte, in the disk's offsets. */
  offset: number;
  /** Bytes. */
  length: number;
}

/** How long something may stay unflushed while more and more is written. */
const FLUSH_AFTER_MS = 30_000;

const NONE: readonly DiskView[] = [];

/** See the head of this file. */
export class WritableDisk {
  readonly device: BlockDevice;
  /** When it was changed last, in milliseconds since 1970. */
  modifiedMs: number;
  /** How often it has been changed. */
  changes = 0;
  /** Files of which the kernel has had pages. */
  readonly #seen: DiskView[] = [];
  /** By `performance.now()`. */
  #unflushedSince: number | undefined;

  /** @param device stays the caller's to close */
  constructor(device: BlockDevice, { modifiedMs }: { modifiedMs: number }) {
    this.device = device;
    this.modifiedMs = modifiedMs;
  }

  /** Whether something was written since the last flush. */
  get isUnflushed(): boolean {
    return this.#unflushedSince !== undefined;
  }

  /** Whether what was written has been unflushed for so long that it should be. */
  get isFlushOverdue(): boolean {
    const since = this.#unflushedSince;
    return since !== undefined && performance.now() - since > FLUSH_AFTER_MS;
  }

  /** Stores all of `source`; throws what the device throws. */
  write(source: Uint8Array, offset: number): void {
    this.#noteChange();
    this.device.write(source, offset);
  }

  /** Makes a range read as zeroes; throws what the device throws. */
  writeZeroes({ offset, length }: DiskRange, how: { mayUnmap: boolean }): void {
    this.#noteChange();
    this.device.writeZeroes(offset, length, how);
  }

  /** Returns once everything written would survive a power cut; throws what the device throws. */
  flush(): void {
    this.device.flush();
    this.#unflushedSince = undefined;
  }

  /** Notes that the kernel may have pages of a file. */
  noteCached(view: DiskView): void {
    if (view.isCached) return;
    view.isCached = true;
    if (!this.#seen.includes(view)) this.#seen.push(view);
  }

  /**
   * The files, other than the one that was written through, that show a part of a range and of which
   * the kernel has or had pages.
   */
  othersAt(writtenThrough: DiskView, { offset, length }: DiskRange): readonly DiskView[] {
    const seen = this.#seen;
    if (seen.length === 0 || (seen.length === 1 && seen[0] === writtenThrough)) return NONE;
    return seen.filter(
      (view) =>
        view !== writtenThrough &&
        view.offset < offset + length &&
        offset < view.offset + view.size,
    );
  }

  #noteChange(): void {
    this.changes++;
    this.modifiedMs = Date.now();
    this.#unflushedSince ??= performance.now();
  }
}
