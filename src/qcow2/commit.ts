/**
 * The order in which changes reach the file.
 *
 * What is in the file must be a valid image at every instant, whichever of the writes since the
 * last completed flush the disk has kept. A crash may leak clusters. It may never leave a reference
 * to a cluster that is free, that is shared unknowingly, or that holds other data. Hence:
 *
 * 1. Guest data, new (empty or copied) L2 tables and new refcount blocks go to the file as they are
 *    made, into clusters that nothing in the file points at. Refcounts that were raised follow.
 *    -- flush --
 * 2. The refcount table names new blocks, those that others are counted by first; a table that grew
 *    is written whole to its new place.
 *    -- flush, and for a table that moved: the header, flush --
 * 3. L2 entries point at the new data.
 *    -- flush --
 * 4. L1 entries point at new L2 tables.
 *    -- flush --
 * 5. Only now are clusters given up whose reference the steps before removed: their counts fall in
 *    memory, to be written by step 1 of the next commit, and they can be allocated again. Until
 *    then a crash brings the old reference back, and it must find the old data.
 *
 * Steps with nothing to write are left out, so that overwriting costs one flush, and an allocating
 * write two. With lazy refcounts, steps 1 and 2 wait for the image to be closed: the dirty bit was
 * set before the first change, and says that the counts have to be made anew after a crash.
 *
 * Every step can fail (no space, an I/O error). What it was to write then still counts as changed,
 * the later steps have not begun, and the next commit does it again.
 *
 * Changes that no such order can do without an instant of contradiction (snapshots, resizing) are
 * made by `atomic-update.ts` in fresh clusters, and take effect by one write of the header.
 */

import type { BlockDevice, HostFile } from '../device/block-device.ts';
import type { ClusterAllocator } from './allocator.ts';
import type { HeaderWriter } from './header-writer.ts';
import type { RefcountStore } from './refcount-store.ts';
import type { TableCache, TableName } from './table-cache.ts';

/** What a {@link Committer} puts in order. */
export interface CommitterParts {
  file: HostFile;
  /** The external data file, if there is one. */
  dataFile: BlockDevice | undefined;
  tables: TableCache;
  refcounts: RefcountStore;
  allocator: ClusterAllocator;
  headerWriter: HeaderWriter;
}

/** Brings changes to the file in the order that is described at the head of this file. */
export class Committer {
  readonly #parts: CommitterParts;
  /** Something was written since the last flush of the files. */
  #isUnflushed = false;
  /** Some of it must be in the file before L2 entries that are still in memory. */
  #needsBarrier = false;
  /** A flush failed without which nothing more may be written. */
  #isFlushRequired = false;
  /** What was written since then, and counts as changed until the flush. */
  readonly #written: { cache: TableCache; table: TableName }[] = [];

  constructor(parts: CommitterParts) {
    this.#parts = parts;
  }

  /** Tells that guest data was overwritten, which nothing has to wait for. */
  noteOverwrite(): void {
    this.#isUnflushed = true;
  }

  /** Tells that something was written that L1 or L2 entries in memory now point at. */
  noteNewData(): void {
    this.#isUnflushed = true;
    this.#needsBarrier = true;
  }

  /** Whether so many changes are in memory that they should be committed soon. */
  get isDue(): boolean {
    const { tables, refcounts, allocator } = this.#parts;
    return tables.isCrowded || refcounts.blocks.isCrowded || allocator.hasManyWaiting;
  }

  /**
   * Returns once everything written would survive a power cut.
   * @throws {Qcow2Error} `HOST` if the host cannot promise it; nothing is lost, and it can be
   * called again
   */
  flush(): void {
    const { headerWriter, refcounts } = this.#parts;
    const areLazy = headerWriter.header.isDirty && !refcounts.blocks.isCrowded;
    this.#commit({ includesRefcounts: !areLazy });
  }

  /** As {@link flush}, for all counts too, where they are lazy. */
  commitAll(): void {
    this.#commit({ includesRefcounts: true });
    // The counts that fell at the end of it.
    if (this.#parts.refcounts.blocks.isDirty('refcount block')) {
      this.#commit({ includesRefcounts: true });
    }
  }

  #commit({ includesRefcounts }: { includesRefcounts: boolean }): void {
    const { tables, refcounts, allocator } = this.#parts;
    const { blocks } = refcounts;
    if (includesRefcounts && blocks.isDirty('refcount block')) {
      // Counts that only fell can reach the file in any order.
      if (refcounts.hasRaised) this.#needsBarrier = true;
      this.#write(blocks, 'refcount block');
    }
    if (this.#needsBarrier) this.flushFiles();
    if (includesRefcounts) this.#commitRefcountTable();
    if (tables.isDirty('L2 table')) {
      this.#write(tables, 'L2 table');
      this.flushFiles();
    }
    if (tables.isDirty('L1 table')) {
      this.#write(tables, 'L1 table');
      this.flushFiles();
    }
    if (this.#isUnflushed) this.flushFiles();
    allocator.giveUpFreed();
  }

  #commitRefcountTable(): void {
    const { refcounts, headerWriter, allocator } = this.#parts;
    while (refcounts.isTableDirty) {
      const { refcountTableOffset, refcountTableClusters } = headerWriter.header;
      const moved = refcounts.writeTable();
      this.flushFiles();
      if (moved !== undefined) {
        headerWriter.update({
          refcountTableOffset: moved.offset,
          refcountTableClusters: moved.clusters,
        });
        // The header has changed, whether it can be flushed now or only later.
        this.requireFlush();
        allocator.free({ offset: refcountTableOffset, count: refcountTableClusters });
      }
      refcounts.markTableWritten();
      this.ensureFlushed();
    }
  }

  #write(cache: TableCache, table: TableName): void {
    this.#isUnflushed = true;
    cache.write(table);
    this.#written.push({ cache, table });
  }

  /** Tells that nothing may be written before the files have been flushed. */
  requireFlush(): void {
    this.#isUnflushed = true;
    this.#isFlushRequired = true;
  }

  /**
   * Flushes the files first, if that is still required because it failed.
   * @throws {Qcow2Error} `HOST` if it fails again
   */
  ensureFlushed(): void {
    if (this.#isFlushRequired) this.flushFiles();
  }

  /** Brings what was written to the disk, without writing anything that is in memory. */
  flushFiles(): void {
    // If it fails, they count as changed, and what they are by then has to be written first.
    const written = this.#written.splice(0);
    this.#parts.dataFile?.flush();
    this.#parts.file.flush();
    this.#isUnflushed = false;
    this.#needsBarrier = false;
    this.#isFlushRequired = false;
    for (const { cache, table } of written) cache.markWritten(table);
    if (written.some(({ table }) => table === 'refcount block')) {
      this.#parts.refcounts.hasRaised = false;
    }
  }
}
