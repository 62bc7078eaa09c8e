/**
 * A whole new refcount structure (specification: "Host cluster management"), and with it, where they
 * are to be repaired, a new snapshot table and new tables of bitmaps.
 *
 * All of it is laid out in clusters that nothing refers to, neither the tables of the image nor the
 * old refcount structure, so that until the header is switched, in one write, the image is what it
 * was; and from then on the old structures are free.
 */

import type { HostFile } from '../../device/block-device.ts';
import { Qcow2Error } from '../../errors.ts';
import { MAX_REFCOUNT_TABLE_BYTES } from '../../limits.ts';
import { alignUp, writeU64 } from '../../util/bytes.ts';
import { setRefcountAt } from '../refcounts.ts';
import { countReferences } from './check-metadata.ts';
import type { CountedImage } from './check-metadata.ts';
import { CheckReport } from './check-report.ts';
import type { ProblemCounts } from './check-report.ts';
import { tableBuffer } from './metadata-file.ts';
import { FreeClusters } from './free-clusters.ts';
import type { ReferenceCounts } from './reference-counts.ts';
import type { References } from './references.ts';
import type { StoredRefcounts } from './stored-refcounts.ts';

/** How often the file may have to grow until everything fits. */
const MAX_ATTEMPTS = 16;

/** A refcount structure that is to be written. */
export interface Rebuild {
  /** What the image's tables refer to, the new structures included. */
  counts: ReferenceCounts;
  /** Bytes that the file has to have: then nothing that was laid out or counted is past its end. */
  fileSize: number;
  /** Host offset of the refcount table in bytes. */
  tableOffset: number;
  /** Clusters of the refcount table. */
  tableClusters: number;
  /** Host offsets of the refcount blocks by their index. */
  blocks: ReadonlyMap<number, number>;
  /** The new snapshot table, where there has to be one. */
  snapshotTable: { offset: number; bytes: Uint8Array; count: number } | undefined;
  /** Empty tables for bitmaps whose own are lost, in their order. */
  bitmapTables: { offset: number; clusters: number }[];
}

/**
 * Finds a place for a new refcount structure. Nothing is written.
 *
 * @param options.trustsStored whether clusters past the end of the file that are counted as being in
 * use are kept
 * @returns it, and what it leaves wrong
 * @throws {Qcow2Error} `TOO_LARGE` if no refcount table can hold what the image refers to
 */
export function planRebuild(
  image: { header: CountedImage['header']; file: HostFile },
  old: CountedImage,
  { trustsStored }: { trustsStored: boolean },
): { rebuild: Rebuild; left: ProblemCounts } {
  const { clusterSize } = image.header;
  const table = old.snapshots.isToBeRewritten ? old.snapshots.repaired() : undefined;
  let fileSize = 0;
  for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
    const report = new CheckReport(undefined);
    // In a larger file, what was past its end is there, and has to be counted.
    const { references } = countReferences(image, report, {
      fix: 'all',
      fileSize,
      withoutRefcounts: true,
      withoutSnapshotTable: table !== undefined,
    });
    if (trustsStored) keepCountsPastEnd(references, old.stored);
    const free = new FreeClusters(references.counts);
    avoidOldStructures(free, old);
    const rebuild = layOut(free, { old, table });
    const end = (free.lastTaken + 1) * clusterSize;
    if (end <= references.fileSize) {
      return { rebuild: { ...rebuild, fileSize }, left: report.counts };
    }
    fileSize = end;
  }
  throw tooLarge();
}

/** In a file that was cut, what is past its end stays in use, and reads as zeroes. */
function keepCountsPastEnd(references: References, stored: StoredRefcounts): void {
  const { counts, fileSize, clusterSize } = references;
  const { blockEntries, presentEntries } = stored;
  const end = Math.ceil(fileSize / clusterSize);
  for (let index = Math.floor(end / blockEntries); index < presentEntries; index++) {
    if (!stored.hasBlock(index)) continue;
    const block = stored.decode(index);
    for (let at = 0; at < blockEntries; at++) {
      const cluster = index * blockEntries + at;
      if (cluster >= end && block.counts[at] !== 0) counts.add(cluster, Number(block.exact(at)));
    }
  }
}

/** Until the header is switched, the old structures are in use. */
function avoidOldStructures(free: FreeClusters, { header, stored, snapshots }: CountedImage): void {
  const { clusterSize, refcountTableOffset, snapshotsOffset } = header;
  const avoid = (offset: number, length: number): void => {
    // Nothing is laid out that far, and numbers do not count clusters there.
    if (offset > Number.MAX_SAFE_INTEGER) return;
    free.avoid(Math.floor(offset / clusterSize), Math.floor((offset + length - 1) / clusterSize));
  };
  avoid(refcountTableOffset, Math.max(1, stored.tableSize * 8));
  avoid(snapshotsOffset, Math.max(1, snapshots.length));
  for (let index = 0; index < stored.presentEntries; index++) {
    if (stored.hasBlock(index)) avoid(stored.entry(index).offset, clusterSize);
  }
}

function layOut(
  free: FreeClusters,
  { old, table }: { old: CountedImage; table: Buffer | undefined },
): Omit<Rebuild, 'fileSize'> {
  const { header, snapshots, stored } = old;
  const { clusterSize } = header;
  const { blockEntries } = stored;
  let snapshotTable: Rebuild['snapshotTable'];
  if (table !== undefined) {
    const first = table.length === 0 ? 0 : free.take(Math.ceil(table.length / clusterSize));
    snapshotTable = { offset: first * clusterSize, bytes: table, count: snapshots.rowCount };
  }
  const bitmapTables = old.bitmapRepairs.lostTables.map(({ tableSize }) => {
    const clusters = Math.ceil((tableSize * 8) / clusterSize);
    return { offset: free.take(clusters) * clusterSize, clusters };
  });
  const blocks = new Map<number, number>();
  let tableClusters = 0;
  let tableStart = 0;
  let highest = 0;
  for (;;) {
    // Blocks need clusters, which need to be counted by blocks.
    const missing = free.usedBlocks(blockEntries).filter((index) => !blocks.has(index));
    for (const index of missing) blocks.set(index, free.take(1) * clusterSize);
    for (const index of missing) highest = Math.max(highest, index);
    const wanted = Math.ceil(((highest + 1) * 8) / clusterSize);
    if (wanted * clusterSize > MAX_REFCOUNT_TABLE_BYTES) throw tooLarge();
    if (wanted > tableClusters) {
      if (tableClusters > 0) free.release(tableStart, tableClusters);
      tableClusters = wanted;
      tableStart = free.take(tableClusters);
    } else if (missing.length === 0) {
      const tableOffset = tableStart * clusterSize;
      const { counts } = free;
      return { counts, tableOffset, tableClusters, blocks, snapshotTable, bitmapTables };
    }
  }
}

/**
 * Writes the new structures and returns once they are durable. Nothing refers to them yet.
 * @throws {Qcow2Error} `HOST`
 */
export function writeRebuild(
  file: HostFile,
  rebuild: Rebuild,
  header: CountedImage['header'],
): void {
  const { counts, tableOffset, tableClusters, blocks, snapshotTable } = rebuild;
  const { clusterSize, refcountOrder } = header;
  const blockEntries = (clusterSize * 8) / 2 ** refcountOrder;
  if (file.size < rebuild.fileSize) file.resize(rebuild.fileSize);
  const table = tableBuffer(tableClusters * clusterSize);
  const block = tableBuffer(clusterSize);
  for (const [index, offset] of blocks) {
    block.fill(0);
    counts.forEachIn(index * blockEntries, (index + 1) * blockEntries, (cluster, count) => {
      setRefcountAt(block, cluster % blockEntries, refcountOrder, count);
    });
    file.write(block, offset);
    writeU64(table, index * 8, offset);
  }
  file.write(table, tableOffset);
  for (const { offset, clusters } of rebuild.bitmapTables) {
    file.write(tableBuffer(clusters * clusterSize), offset);
  }
  if (snapshotTable !== undefined && snapshotTable.bytes.length > 0) {
    const padded = tableBuffer(alignUp(snapshotTable.bytes.length, clusterSize));
    padded.set(snapshotTable.bytes);
    file.write(padded, snapshotTable.offset);
  }
  file.flush();
}

function tooLarge(): Qcow2Error {
  return new Qcow2Error('TOO_LARGE', 'no refcount table can count all that the image refers to', {
    structure: 'refcount table',
    offset: 48,
    hint: 'save what can be read of it with: qcow2 convert',
  });
}
