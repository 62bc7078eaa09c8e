/**
 * Making, applying and deleting internal snapshots (specification: "Snapshots").
 *
 * Each takes effect in one instant (`atomic-update.ts`). A new snapshot takes over the tables that
 * were active, and the disk goes on with copies of them, in which no cluster is COPIED any more.
 * Applying copies the snapshot's tables likewise. After deleting, those active tables are replaced
 * in which a cluster has become the disk's own again.
 */

import { Qcow2Error } from '../errors.ts';
import { EntryFlag, entryOffset } from '../format/qcow2/l2-entry.ts';
import { encodeSnapshotTable } from '../format/qcow2/snapshot-table.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import type { SnapshotRow } from '../format/qcow2/snapshot-table.ts';
import { MAX_SNAPSHOT_NAME_BYTES, MAX_SNAPSHOTS } from '../limits.ts';
import { readU32, writeU32 } from '../util/bytes.ts';
import { eachEntry, RefcountChanges, updateAtomically } from './atomic-update.ts';
import type { ReferenceCounts } from './check/reference-counts.ts';
import type { HeaderChanges } from './header-writer.ts';
import type { WriteEngine } from './image-writer.ts';
import type { L1Location } from './mapping.ts';
import { overflowError } from './refcount-store.ts';
import { measureSnapshotTable, readSnapshotTable } from './snapshots.ts';
import { FreshClusters, L1Table, readL2Table } from './table-copies.ts';

/**
 * Makes a snapshot of the disk as it is.
 *
 * @throws {Qcow2Error} `UNSUPPORTED` for an image with an external data file, or if a refcount would
 * overflow; `TOO_LARGE`; `INVALID_OPTION` for a name that cannot be one; `HOST`. Nothing has
 * changed then
 */
export function createSnapshot(engine: WriteEngine, name: string): SnapshotRow {
  const { header, committer } = engine;
  checkName(name);
  if (engine.refcounts.maxRefcount < 2) throw overflowError(header);
  refuseExternalData(header);
  committer.commitAll();
  const rows = readSnapshotTable(header, engine.file);
  if (rows.length >= MAX_SNAPSHOTS) {
    throw new Qcow2Error('TOO_LARGE', `the image has ${MAX_SNAPSHOTS} snapshots, which is all`, {});
  }
  const changes = new RefcountChanges(engine.refcounts, header);
  const row = newRow(engine, rows, name);
  inFreshClusters(engine, (fresh) => {
    const l1 = L1Table.read(engine, engine.l1);
    shareTables(engine, l1, { changes, fresh });
    const l1TableOffset = storeL1(engine, l1, fresh);
    const table = storeSnapshotTable(engine, [...rows, row], { changes, fresh });
    return { changes, header: { ...table, l1TableOffset } };
  });
  return row;
}

/**
 * Makes the disk what it was at a snapshot, its size too.
 * @throws {Qcow2Error} `UNSUPPORTED` if the image has bitmaps, which could not follow, or an
 * external data file, or if a refcount would overflow; `CORRUPT`, `HOST`. Nothing has changed then
 */
export function applySnapshot(engine: WriteEngine, row: SnapshotRow): void {
  const { header, committer } = engine;
  refuseExternalData(header);
  if (header.areBitmapsValid && header.extensions.bitmaps !== undefined) {
    throw new Qcow2Error('UNSUPPORTED', 'its bitmaps would not know what changed', {
      structure: `snapshot ${row.id}`,
      hint: 'remove the bitmaps first',
    });
  }
  committer.commitAll();
  const changes = new RefcountChanges(engine.refcounts, header);
  inFreshClusters(engine, (fresh) => {
    dropTables(engine, engine.l1, changes);
    const size = row.diskSize - (row.diskSize % 512);
    const needed = Math.ceil(size / (header.clusterSize * header.l2Entries));
    const l1Size = Math.max(row.l1Size, needed);
    const location = { offset: row.l1TableOffset, size: row.l1Size };
    const l1 = L1Table.read(engine, location, l1Size);
    shareTables(engine, l1, { changes, fresh });
    const l1TableOffset = storeL1(engine, l1, fresh);
    return { changes, header: { l1TableOffset, l1Size, size } };
  });
}

/**
 * Deletes a snapshot.
 * @throws {Qcow2Error} `UNSUPPORTED` if the image has an external data file; `CORRUPT` or `HOST`;
 * nothing has changed then
 */
export function deleteSnapshot(engine: WriteEngine, id: string): void {
  const { header, committer, file } = engine;
  refuseExternalData(header);
  committer.commitAll();
  const rows = readSnapshotTable(header, file);
  const row = rows.find((candidate) => candidate.id === id)!;
  const changes = new RefcountChanges(engine.refcounts, header);
  inFreshClusters(engine, (fresh) => {
    dropTables(engine, { offset: row.l1TableOffset, size: row.l1Size }, changes);
    const remaining = rows.filter((candidate) => candidate !== row);
    const table = storeSnapshotTable(engine, remaining, { changes, fresh });
    const active = reclaimActiveTables(engine, { changes, fresh });
    return { changes, header: { ...table, ...active } };
  });
}

/**
 * Writes the snapshot table anew: rows of version 2 need not have the extra data that those of
 * version 3 must have.
 * @throws {Qcow2Error} `CORRUPT`, `HOST` or `TOO_LARGE`; nothing has changed then
 */
export function rewriteSnapshotTable(engine: WriteEngine): void {
  const { header, committer, file } = engine;
  committer.commitAll();
  const rows = readSnapshotTable(header, file);
  const changes = new RefcountChanges(engine.refcounts, header);
  inFreshClusters(engine, (fresh) => {
    const table = storeSnapshotTable(engine, rows, { changes, fresh });
    return { changes, header: table };
  });
}

/**
 * Lowers the counts of clusters that are counted more often than they are referred to, together
 * with the COPIED flags that depend on them.
 *
 * @param counts by how much
 * @throws {Qcow2Error} `CORRUPT`, `HOST` or `TOO_LARGE`; nothing has changed then
 */
export function lowerCounts(engine: WriteEngine, counts: ReferenceCounts): void {
  const { header, committer } = engine;
  committer.commitAll();
  const changes = new RefcountChanges(engine.refcounts, header);
  counts.forEachIn(0, counts.clusterCount, (cluster, count) => changes.add(cluster, -count));
  if (changes.blocks.size === 0) return;
  inFreshClusters(engine, (fresh) => {
    const active = reclaimActiveTables(engine, { changes, fresh });
    return { changes, header: active };
  });
}

/** What the steps of one change share. */
interface Change {
  changes: RefcountChanges;
  fresh: FreshClusters;
}

/** Runs a change whose new structures are taken back if it fails, and goes over to the new ones. */
function inFreshClusters(
  engine: WriteEngine,
  prepare: (fresh: FreshClusters) => { changes: RefcountChanges; header: HeaderChanges },
): void {
  const { header } = engine;
  const fresh = new FreshClusters(engine);
  const { l1TableOffset, l1Size, snapshotsOffset } = header;
  const hasChanged = (): boolean =>
    header.l1TableOffset !== l1TableOffset ||
    // An L1 table without entries has no place of its own.
    header.l1Size !== l1Size ||
    header.snapshotsOffset !== snapshotsOffset;
  try {
    updateAtomically(engine, prepare(fresh));
  } catch (error) {
    // Once the header has changed, they are in use.
    if (!hasChanged()) fresh.release();
    throw error;
  } finally {
    if (hasChanged()) adoptTables(engine);
  }
}

/** Goes over to the tables that the header points at now. */
export function adoptTables(engine: WriteEngine): void {
  const { header, metadata, l1, file } = engine;
  const { clusterSize, snapshotsOffset } = header;
  l1.offset = header.l1TableOffset;
  l1.size = header.l1Size;
  metadata.removeKind('L1 table');
  metadata.removeKind('L2 table');
  metadata.removeKind('snapshot table');
  metadata.removeKind('snapshot L1 table');
  metadata.add({ offset: l1.offset, length: l1.size * 8, kind: 'L1 table' });
  for (const { offset } of L1Table.read(engine, l1).entries()) {
    metadata.add({ offset, length: clusterSize, kind: 'L2 table' });
  }
  const length = measureSnapshotTable(header, file);
  metadata.add({ offset: snapshotsOffset, length, kind: 'snapshot table' });
  for (const { l1TableOffset, l1Size } of readSnapshotTable(header, file)) {
    metadata.add({ offset: l1TableOffset, length: l1Size * 8, kind: 'snapshot L1 table' });
  }
}

/**
 * Replaces the L2 tables of `l1` by copies in which nothing is COPIED, and counts what they point
 * at once more.
 */
function shareTables(engine: WriteEngine, l1: L1Table, { changes, fresh }: Change): void {
  const { header } = engine;
  const table = new Uint8Array(header.clusterSize);
  for (const { index, offset } of l1.entries()) {
    readL2Table(engine, offset, table);
    eachEntry(header, table, (high, low, at) => {
      changes.addEntry(high, low, 1);
      writeU32(table, at, high & ~EntryFlag.COPIED);
    });
    l1.set(index, fresh.store(table), { isCopied: true });
  }
}

/** Writes an L1 table; one without entries has no place of its own. */
function storeL1(engine: WriteEngine, l1: L1Table, fresh: FreshClusters): number {
  return l1.bytes.length === 0 ? engine.header.l1TableOffset : fresh.store(l1.bytes);
}

/** Counts an L1 table, its L2 tables and what they point at once less. */
function dropTables(engine: WriteEngine, location: L1Location, changes: RefcountChanges): void {
  const { header } = engine;
  const table = new Uint8Array(header.clusterSize);
  changes.addRange(location.offset, location.size * 8, -1);
  for (const { offset } of L1Table.read(engine, location).entries()) {
    changes.addRange(offset, 1, -1);
    readL2Table(engine, offset, table);
    eachEntry(header, table, (high, low) => changes.addEntry(high, low, -1));
  }
}

/** Replaces those active tables in which a COPIED flag has to change. */
function reclaimActiveTables(engine: WriteEngine, { changes, fresh }: Change): HeaderChanges {
  const { header, l1: location } = engine;
  const { clusterSize } = header;
  const l1 = L1Table.read(engine, location);
  const table = new Uint8Array(clusterSize);
  let isL1Changed = false;
  for (const { index, offset } of l1.entries()) {
    readL2Table(engine, offset, table);
    if (correctFlags(engine, table, changes)) {
      // A table that a snapshot shares is left to it.
      changes.addRange(offset, 1, -1);
      l1.set(index, fresh.store(table), { isCopied: true });
      isL1Changed = true;
      continue;
    }
    const isCopied = changes.countAfter(offset / clusterSize) === 1;
    if (isCopied === l1.isCopied(index)) continue;
    l1.set(index, offset, { isCopied });
    isL1Changed = true;
  }
  if (!isL1Changed) return {};
  changes.addRange(location.offset, location.size * 8, -1);
  return { l1TableOffset: storeL1(engine, l1, fresh) };
}

/** Sets the COPIED flags of a table to what the counts will be; whether any changed. */
function correctFlags(engine: WriteEngine, table: Uint8Array, changes: RefcountChanges): boolean {
  const { header } = engine;
  let isChanged = false;
  eachEntry(header, table, (high, low, at) => {
    const offset = entryOffset(high, low);
    if ((high & EntryFlag.COMPRESSED) !== 0 || offset === 0) return;
    const isCopied = changes.countAfter(offset / header.clusterSize) === 1;
    const flag = isCopied ? EntryFlag.COPIED : 0;
    const corrected = ((high & ~EntryFlag.COPIED) | flag) >>> 0;
    if (corrected === readU32(table, at)) return;
    writeU32(table, at, corrected);
    isChanged = true;
  });
  return isChanged;
}

/** Writes a new snapshot table, and counts the old one once less. */
function storeSnapshotTable(
  engine: WriteEngine,
  rows: readonly SnapshotRow[],
  { changes, fresh }: Change,
): HeaderChanges {
  const { header, file } = engine;
  changes.addRange(header.snapshotsOffset, measureSnapshotTable(header, file), -1);
  if (rows.length === 0) return { snapshotCount: 0, snapshotsOffset: 0 };
  const bytes = encodeSnapshotTable(rows);
  return { snapshotCount: rows.length, snapshotsOffset: fresh.store(bytes) };
}

/** Its clusters are not counted, so that none can be shared. */
function refuseExternalData(header: Qcow2Header): void {
  if (!header.hasExternalDataFile) return;
  throw new Qcow2Error('UNSUPPORTED', 'an image with an external data file cannot have snapshots', {
    hint: 'make an overlay instead: qemu-img create -b',
  });
}

function checkName(name: string): void {
  const length = Buffer.byteLength(name);
  if (length === 0 || length > MAX_SNAPSHOT_NAME_BYTES || name.includes('\0')) {
    throw new Qcow2Error(
      'INVALID_OPTION',
      `a snapshot's name has 1 to ${MAX_SNAPSHOT_NAME_BYTES} bytes, not ${length}`,
    );
  }
}

function newRow(engine: WriteEngine, rows: readonly SnapshotRow[], name: string): SnapshotRow {
  const { header, l1 } = engine;
  const highest = rows.reduce(
    (id, row) => (/^\d{1,15}$/.test(row.id) ? Math.max(id, Number(row.id)) : id),
    0,
  );
  const now = Date.now();
  return {
    id: String(highest + 1),
    name,
    l1TableOffset: l1.offset,
    l1Size: l1.size,
    dateSeconds: Math.floor(now / 1000),
    dateNanoseconds: (now % 1000) * 1_000_000,
    vmClockNanoseconds: 0n,
    vmStateSize: 0,
    diskSize: header.size,
    // What qemu-img writes, though nobody counted.
    icount: 0n,
    unknownExtra: new Uint8Array(0),
    offset: 0,
    length: 0,
  };
}
