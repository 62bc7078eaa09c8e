/**
 * Changing the size of a disk.
 *
 * What is beyond the new end of a smaller disk goes in the instant in which the header says the new
 * size: tables without it are written to fresh clusters first. What a larger disk gains reads as
 * zeroes: anything that would show there (the rest of the last cluster, a longer backing file, old
 * VM state) is dealt with before the header says the new size.
 */

import { Qcow2Error } from '../errors.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import { MAX_DISK_SIZE, MAX_L1_BYTES } from '../limits.ts';
import { alignUp } from '../util/bytes.ts';
import { eachEntry } from './atomic-update.ts';
import type { HeaderChanges } from './header-writer.ts';
import type { WriteEngine } from './image-writer.ts';
import { adoptTables } from './snapshot-writer.ts';
import { FreshClusters, L1Table, readL2Table } from './table-copies.ts';

/**
 * Changes the size of the disk.
 *
 * @param setSize makes the disk as its readers see it that long
 * @throws {Qcow2Error} `INVALID_OPTION`, `TOO_LARGE`, `UNSUPPORTED`; `HOST`; the size is the old one
 * then
 */
export function resizeDisk(
  engine: WriteEngine,
  newSize: number,
  setSize: (size: number) => void,
): void {
  const { header, committer } = engine;
  checkSize(header, newSize);
  committer.commitAll();
  if (newSize < header.size) {
    dropFrom(engine, alignUp(newSize, header.clusterSize), { size: newSize });
  } else if (newSize > header.size) {
    grow(engine, newSize, setSize);
  }
  setSize(header.size);
  if (header.hasExternalDataFile) engine.dataFile.resize(newSize);
}

/**
 * Drops everything that the disk has allocated, so that the backing file shows.
 * @throws {Qcow2Error} `HOST`, `CORRUPT`; nothing has changed then
 */
export function emptyDisk(engine: WriteEngine): void {
  engine.committer.commitAll();
  dropFrom(engine, 0, {});
}

function checkSize(
  { size, version, snapshotCount, ...header }: Qcow2Header,
  newSize: number,
): void {
  if (!Number.isSafeInteger(newSize) || newSize < 0 || newSize % 512 !== 0) {
    throw new Qcow2Error('INVALID_OPTION', `a size is a multiple of 512 bytes, not ${newSize}`);
  }
  const l1Size = Math.ceil(newSize / (header.clusterSize * header.l2Entries));
  if (newSize > MAX_DISK_SIZE || l1Size > MAX_L1_BYTES / 8) {
    throw new Qcow2Error('TOO_LARGE', `a disk of ${newSize} bytes needs too large an L1 table`, {
      hint: 'an image with larger clusters can have a larger disk',
    });
  }
  if (version < 3 && snapshotCount > 0 && newSize !== size) {
    throw new Qcow2Error('UNSUPPORTED', 'a version 2 image with snapshots cannot be resized', {
      hint: 'delete the snapshots, or convert the image',
    });
  }
}

// ---- Growing --------------------------------------------------------------------------------

function grow(engine: WriteEngine, newSize: number, setSize: (size: number) => void): void {
  const { header, committer, headerWriter, zero, l1, backing } = engine;
  const { size: oldSize, clusterSize, l2Entries } = header;
  const tableBytes = clusterSize * l2Entries;
  const firstNew = alignUp(oldSize, clusterSize);
  const covered = l1.size * tableBytes;
  if (covered > firstNew) {
    zero.deallocate({ offset: firstNew, length: covered - firstNew });
    committer.commitAll();
  }
  const needed = Math.ceil(newSize / tableBytes);
  if (needed > l1.size) growL1(engine, needed);
  try {
    setSize(newSize);
    // The rest of the last cluster may hold what was there before the disk was made smaller.
    const shown = Math.min(newSize, Math.max(firstNew, backing?.size ?? 0));
    if (shown > oldSize) {
      zero.writeZeroes({ offset: oldSize, length: shown - oldSize }, { mayUnmap: true });
    }
    committer.commitAll();
    headerWriter.update({ size: newSize });
    committer.requireFlush();
    committer.flushFiles();
  } finally {
    setSize(header.size);
  }
}

/** Gives the active L1 table more entries, in another place. */
function growL1(engine: WriteEngine, l1Size: number): void {
  const { header, l1, headerWriter, committer, allocator } = engine;
  const { clusterSize } = header;
  const old = { offset: l1.offset, count: Math.ceil((l1.size * 8) / clusterSize) };
  replaceTables(engine, (fresh) => {
    const table = L1Table.read(engine, l1, l1Size);
    const l1TableOffset = fresh.store(table.bytes);
    committer.commitAll();
    committer.flushFiles();
    headerWriter.update({ l1TableOffset, l1Size });
  });
  if (old.count > 0) allocator.free(old);
}

// ---- Dropping -------------------------------------------------------------------------------

/** Drops what is mapped from a cluster's guest offset on, together with other changes. */
function dropFrom(engine: WriteEngine, offset: number, changes: HeaderChanges): void {
  const { header, l1: location, headerWriter, committer, allocator, editor, tables } = engine;
  const { clusterSize, l2Entries, l2EntrySize } = header;
  const firstTable = Math.floor(offset / (clusterSize * l2Entries));
  const firstEntry = (offset / clusterSize) % l2Entries;
  const oldL1 = {
    offset: location.offset,
    count: Math.ceil((location.size * 8) / clusterSize),
  };
  const old = L1Table.read(engine, location);
  const dropped = [...old.entries()].filter(({ index }) => index >= firstTable);
  const table = new Uint8Array(clusterSize);
  replaceTables(engine, (fresh) => {
    const l1 = new L1Table(Uint8Array.from(old.bytes));
    for (const { index, offset: tableOffset } of dropped) {
      l1.set(index, 0, { isCopied: false });
      if (index !== firstTable || firstEntry === 0) continue;
      readL2Table(engine, tableOffset, table);
      table.fill(0, firstEntry * l2EntrySize);
      l1.set(index, fresh.store(table), { isCopied: true });
    }
    const l1Change = dropped.length > 0 ? { l1TableOffset: fresh.store(l1.bytes) } : {};
    committer.commitAll();
    committer.flushFiles();
    headerWriter.update({ ...changes, ...l1Change });
  });
  if (dropped.length === 0) return;
  allocator.free(oldL1);
  for (const { index, offset: tableOffset } of dropped) {
    readL2Table(engine, tableOffset, table);
    const kept = index === firstTable ? firstEntry * l2EntrySize : 0;
    eachEntry(header, table, (high, low, at) => {
      if (at >= kept) editor.freeEntry(high, low, 'request');
    });
    allocator.free({ offset: tableOffset, count: 1 });
    tables.drop(tableOffset, clusterSize);
    if (committer.isDue) committer.flush();
  }
  committer.flush();
}

/** Runs a change of the active tables, whose new clusters are taken back if it fails. */
function replaceTables(engine: WriteEngine, change: (fresh: FreshClusters) => void): void {
  const { header, committer } = engine;
  const fresh = new FreshClusters(engine);
  const before = { offset: header.l1TableOffset, size: header.size };
  try {
    change(fresh);
  } catch (error) {
    if (header.l1TableOffset === before.offset) fresh.release();
    throw error;
  } finally {
    if (header.l1TableOffset !== before.offset) adoptTables(engine);
  }
  committer.requireFlush();
  committer.flushFiles();
}
