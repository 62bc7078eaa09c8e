/** The tables of a new image (specification: "Host cluster management", "Cluster mapping"). */

import type { FileDevice } from '../device/file.ts';
import { EntryFlag, entryHigh, entryLow } from '../format/qcow2/l2-entry.ts';
import { setRefcountAt } from '../qcow2/refcounts.ts';
import { writeU32, writeU64 } from '../util/bytes.ts';
import type { PlannedTable } from './create-clusters.ts';
import type { DataRun, ImageLayout } from './create-layout.ts';

/** What the bytes of tables depend on. */
export interface TableFormat {
  /** Bytes. */
  clusterSize: number;
  /** Refcounts have 2^refcountOrder bits. */
  refcountOrder: number;
  /** Bytes of an L2 entry. */
  l2EntrySize: 8 | 16;
}

/** A place in a file and what goes there. */
interface Piece {
  offset: number;
  bytes: Uint8Array;
}

/**
 * Writes all tables of a new image, a table at a time.
 * @returns a generator that yields the bytes of each one
 */
export function* writeTables(
  file: FileDevice,
  layout: ImageLayout,
  format: TableFormat,
): Generator<number> {
  for (const pieces of [
    refcountTables(layout, format),
    refcountBlocks(layout, format),
    l1Table(layout, format),
    l2Tables(layout, format),
  ]) {
    for (const { offset, bytes } of pieces) {
      file.write(bytes, offset);
      yield bytes.length;
    }
  }
}

/** Those given up come first: what took their place is written over them. */
function* refcountTables({ clusters }: ImageLayout, format: TableFormat): Generator<Piece> {
  const encode = ({ start, blocks }: PlannedTable): Piece => {
    const bytes = new Uint8Array(blocks.length * 8);
    blocks.forEach((block, index) => writeU64(bytes, index * 8, block * format.clusterSize));
    return { offset: start * format.clusterSize, bytes };
  };
  for (const table of clusters.retiredTables) yield encode(table);
  yield encode(clusters.table);
}

function* refcountBlocks({ clusters }: ImageLayout, format: TableFormat): Generator<Piece> {
  const { clusterSize, refcountOrder } = format;
  for (const [index, block] of clusters.table.blocks.entries()) {
    if (block === 0) continue;
    const bytes = new Uint8Array(clusterSize);
    for (const [start, end] of clusters.usedRuns(index)) {
      for (let at = start; at < end; at++) setRefcountAt(bytes, at, refcountOrder, 1);
    }
    yield { offset: block * clusterSize, bytes };
  }
}

function* l1Table(layout: ImageLayout, { clusterSize }: TableFormat): Generator<Piece> {
  if (layout.l1Size === 0) return;
  const bytes = new Uint8Array(layout.l1Size * 8);
  for (const [index, table] of layout.l2Tables) writeEntry(bytes, index * 8, table * clusterSize);
  yield { offset: layout.l1Table * clusterSize, bytes };
}

function* l2Tables(layout: ImageLayout, format: TableFormat): Generator<Piece> {
  const { clusterSize, l2EntrySize } = format;
  const entries = clusterSize / l2EntrySize;
  const runs = layout.data[Symbol.iterator]();
  let run = nextRun(runs);
  // Both are in the order of the disk.
  for (const [index, table] of layout.l2Tables) {
    const bytes = new Uint8Array(clusterSize);
    const first = index * entries;
    while (run !== undefined && run.guest < first + entries) {
      const { guest, host, count } = run;
      const end = Math.min(guest + count, first + entries);
      for (let at = Math.max(guest, first); at < end; at++) {
        const offset = (host + at - guest) * clusterSize;
        writeEntry(bytes, (at - first) * l2EntrySize, offset);
      }
      if (end < guest + count) break;
      run = nextRun(runs);
    }
    yield { offset: table * clusterSize, bytes };
  }
}

function nextRun(runs: Iterator<DataRun, unknown>): DataRun | undefined {
  const next = runs.next();
  return next.done === true ? undefined : next.value;
}

function writeEntry(bytes: Uint8Array, at: number, hostOffset: number): void {
  writeU32(bytes, at, entryHigh(hostOffset, EntryFlag.COPIED));
  writeU32(bytes, at + 4, entryLow(hostOffset));
}
