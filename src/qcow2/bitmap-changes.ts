/**
 * Adding, removing, clearing, enabling, disabling and merging persistent bitmaps (specification:
 * "Bitmaps").
 *
 * Each takes effect in one instant. New bits, new tables and a new directory go to fresh clusters.
 * Once these and their counts are durable, the header goes over to the new directory, and only when
 * that is durable are the old clusters given up. Before the header changes, a crash leaks the new
 * clusters, and after it the old ones. So there is no instant at which a bitmap is neither what it
 * was nor what it is to be, and none has to be marked as in use meanwhile.
 *
 * Inconsistent bitmaps can only be removed. What they are to lose is what nobody can trust, their
 * tables included: clusters that a damaged table names stay counted, as leaks that a check finds.
 */

import { Qcow2Error } from '../errors.ts';
import { BitmapFlag, encodeBitmapDirectory } from '../format/qcow2/bitmap-directory.ts';
import type { BitmapEntry } from '../format/qcow2/bitmap-directory.ts';
import { AutoclearFeature } from '../format/qcow2/features.ts';
import {
  MAX_BITMAP_DATA_BYTES,
  MAX_BITMAP_DIRECTORY_BYTES,
  MAX_BITMAP_GRANULARITY_BITS,
  MAX_BITMAP_NAME_BYTES,
  MAX_BITMAPS,
  MIN_BITMAP_GRANULARITY_BITS,
} from '../limits.ts';
import { BitmapTable } from './bitmap-table.ts';
import { readBitmapDirectory } from './bitmaps.ts';
import type { BitmapInfo, BitmapSource, DirtyRange } from './bitmaps.ts';
import type { WriteEngine } from './image-writer.ts';
import { FreshClusters } from './table-copies.ts';

/** A bitmap that an image is to get. */
export interface NewBitmap {
  /** 1 to 1023 bytes, of no other bitmap of the image. */
  name: string;
  /** Bytes of the disk that one bit stands for; a power of two. */
  granularity: number;
  /** Whether writes to the disk are recorded in it from now on. */
  isEnabled: boolean;
  /** What it marks, in order. */
  dirty: Iterable<DirtyRange>;
}

/** What is to become of the bitmaps of an image. */
export type BitmapChange =
  | { action: 'add'; bitmaps: readonly NewBitmap[] }
  | { action: 'remove' | 'clear' | 'enable' | 'disable'; name: string }
  /** Marks ranges of the disk, which are in order, in addition to those that are marked. */
  | { action: 'mark'; name: string; dirty: Iterable<DirtyRange> }
  /** Marks what another bitmap marks, of a disk of the same size. */
  | { action: 'merge'; name: string; source: MergeSource };

/** A bitmap whose marks are merged into another. */
export interface MergeSource {
  /** Bytes of the disk that one bit stands for. */
  granularity: number;
  /** What it marks, in order. */
  ranges(): Iterable<DirtyRange>;
  /** Its table. */
  table(): BitmapTable;
}

const GRANULARITIES = '512 bytes to 2 GiB, a power of two';
/** QEMU's bounds for the default. */
const MIN_DEFAULT_GRANULARITY = 4096;
const MAX_DEFAULT_GRANULARITY = 65_536;

/** The granularity of new bitmaps where none is asked for, in bytes: QEMU's. */
export function defaultGranularity({ clusterSize }: { clusterSize: number }): number {
  return Math.min(MAX_DEFAULT_GRANULARITY, Math.max(MIN_DEFAULT_GRANULARITY, clusterSize));
}

/** The bitmaps that can be changed: none where a program that does not know them has written. */
function knownBitmaps(source: BitmapSource): BitmapInfo[] {
  return source.header.areBitmapsValid ? readBitmapDirectory(source) : [];
}

/**
 * Checks that a change is possible, without changing anything.
 *
 * @returns whether there is anything to do
 * @throws {Qcow2Error} `NOT_FOUND`; `INVALID_OPTION` for a name or granularity that cannot be, or a
 * name that is taken; `UNSUPPORTED` for an image of version 2, a disk of no bytes, or a bitmap that
 * is inconsistent or not understood; `TOO_LARGE`; what reading the directory throws
 */
export function checkBitmapChange(source: BitmapSource, change: BitmapChange): boolean {
  const bitmaps = knownBitmaps(source);
  if (change.action === 'add') {
    checkNewBitmaps(source, bitmaps, change.bitmaps);
    return change.bitmaps.length > 0;
  }
  const bitmap = bitmaps.find(({ name }) => name === change.name);
  if (bitmap === undefined) {
    const names = bitmaps.slice(0, 5).map(({ name }) => `'${name}'`);
    const hint = names.length === 0 ? 'the image has no bitmaps' : `it has ${names.join(', ')}`;
    throw new Qcow2Error('NOT_FOUND', `there is no bitmap '${change.name}'`, { hint });
  }
  if (change.action === 'remove') return true;
  checkUsable(bitmap, source);
  if (change.action === 'enable') return !bitmap.isEnabled;
  if (change.action === 'disable') return bitmap.isEnabled;
  return true;
}

function checkNewBitmaps(
  { header }: BitmapSource,
  present: readonly BitmapInfo[],
  added: readonly NewBitmap[],
): void {
  if (added.length === 0) return;
  if (header.version < 3) {
    throw new Qcow2Error('UNSUPPORTED', 'an image of version 2 cannot have bitmaps', {
      hint: 'bitmaps need compat=1.1',
    });
  }
  if (header.size === 0) {
    throw new Qcow2Error('UNSUPPORTED', 'a disk of no bytes cannot have bitmaps');
  }
  const names = new Set(present.map(({ name }) => name));
  for (const { name, granularity } of added) {
    const length = Buffer.byteLength(name);
    if (length === 0 || length > MAX_BITMAP_NAME_BYTES || name.includes('\0')) {
      throw new Qcow2Error(
        'INVALID_OPTION',
        `a bitmap's name has 1 to ${MAX_BITMAP_NAME_BYTES} bytes, not ${length}`,
      );
    }
    if (names.has(name)) {
      throw new Qcow2Error('INVALID_OPTION', `there is a bitmap '${name}' already`);
    }
    names.add(name);
    const bits = Math.log2(granularity);
    const isInBounds = bits >= MIN_BITMAP_GRANULARITY_BITS && bits <= MAX_BITMAP_GRANULARITY_BITS;
    if (!Number.isInteger(bits) || !isInBounds) {
      throw new Qcow2Error(
        'INVALID_OPTION',
        `the granularity of a bitmap is ${GRANULARITIES}, not ${granularity}`,
      );
    }
    if (Math.ceil(Math.ceil(header.size / granularity) / 8) > MAX_BITMAP_DATA_BYTES) {
      throw new Qcow2Error('TOO_LARGE', 'it would have more than 512 MiB of bits', {
        structure: `bitmap '${name}'`,
        hint: 'take a larger granularity',
      });
    }
  }
  if (names.size > MAX_BITMAPS) {
    throw new Qcow2Error('TOO_LARGE', `an image has at most ${MAX_BITMAPS} bitmaps`);
  }
}

/** Whether its bits may be relied on, and are all there. */
function checkUsable(bitmap: BitmapInfo, { header }: BitmapSource): void {
  const { name, offset, flags, extraData, tableSize, granularity, isInconsistent } = bitmap;
  const fail = (problem: string, hint?: string): never => {
    throw new Qcow2Error('UNSUPPORTED', problem, { structure: `bitmap '${name}'`, offset, hint });
  };
  if (isInconsistent) fail('it is inconsistent, and can only be removed', 'add it anew after that');
  if (extraData.length > 0 && (flags & BitmapFlag.EXTRA_DATA_COMPATIBLE) === 0) {
    fail('it has extra data that is not understood here, and can only be removed');
  }
  const bitCount = Math.ceil(header.size / granularity);
  if (tableSize !== Math.max(1, Math.ceil(bitCount / 8 / header.clusterSize))) {
    fail(`its table of ${tableSize} entries does not fit the disk; it can only be removed`);
  }
}

/** What a change has made, and what that takes the place of. */
interface Replacement {
  fresh: FreshClusters;
  old: OldClusters;
}

/** Host offsets of clusters that nothing refers to once the header has changed. */
type OldClusters = Set<number>;

/**
 * Makes a change that {@link checkBitmapChange} has found possible, durably. Everything before it
 * must have been committed, and the engine is good for nothing else after it.
 *
 * @throws {Qcow2Error} `HOST`, or what allocating throws; whether the change was made is then told by
 * the header; `CORRUPT`, naming the file, if the bitmap's table is damaged
 */
export function changeBitmaps(engine: WriteEngine, change: BitmapChange): void {
  const replacement: Replacement = { fresh: new FreshClusters(engine), old: new Set() };
  const oldDirectory = directoryOf(engine);
  try {
    const bitmaps = knownBitmaps(engine);
    const entries = changedEntries(engine, { bitmaps, change, replacement });
    if (entries !== undefined) replaceDirectory(engine, entries, replacement);
  } catch (error) {
    // Once the header names them, they are in use, although that may not be durable.
    const isNamed = directoryOf(engine) !== oldDirectory;
    if (!isNamed) replacement.fresh.release();
    throw error;
  }
}

/** Host offset of the directory, unless it is one that is not valid: others may be in its place. */
function directoryOf({ header }: BitmapSource): number | undefined {
  return header.areBitmapsValid ? header.extensions.bitmaps?.directoryOffset : undefined;
}

/** The entries of the new directory; undefined if nothing changes. */
function changedEntries(
  engine: WriteEngine,
  {
    bitmaps,
    change,
    replacement,
  }: { bitmaps: readonly BitmapInfo[]; change: BitmapChange; replacement: Replacement },
): BitmapEntry[] | undefined {
  if (change.action === 'add') {
    const added = change.bitmaps.map((bitmap) => storeNew(engine, bitmap, replacement));
    return [...bitmaps, ...added];
  }
  const old = bitmaps.find(({ name }) => name === change.name)!;
  const put = (changed: BitmapEntry): BitmapEntry[] =>
    bitmaps.map((bitmap) => (bitmap === old ? changed : bitmap));
  switch (change.action) {
    case 'remove':
      freeBitmap(engine, old, replacement.old);
      return bitmaps.filter((bitmap) => bitmap !== old);
    case 'enable':
      return put({ ...old, flags: old.flags | BitmapFlag.AUTO });
    case 'disable':
      return put({ ...old, flags: old.flags & ~BitmapFlag.AUTO });
    case 'clear': {
      const isEmpty = BitmapTable.read(engine, old).isEmpty;
      if (isEmpty) return undefined;
      freeBitmap(engine, old, replacement.old);
      return put(storeTable(BitmapTable.empty(engine, old), old, replacement));
    }
    case 'mark':
    case 'merge': {
      const table = BitmapTable.read(engine, old);
      const replaced = markIn(table, old, { change, fresh: replacement.fresh });
      if (!table.isChanged) return undefined;
      for (const offset of replaced) freeData(engine, offset, replacement.old);
      freeTable(engine, old, replacement.old);
      return put(storeTable(table, old, replacement));
    }
  }
}

function markIn(
  table: BitmapTable,
  { granularity }: BitmapInfo,
  { change, fresh }: { change: BitmapChange & { action: 'mark' | 'merge' }; fresh: FreshClusters },
): number[] {
  if (change.action === 'mark') return table.mark(change.dirty, fresh);
  const { source } = change;
  const isAlike = source.granularity === granularity;
  return isAlike ? table.markAs(source.table(), fresh) : table.mark(source.ranges(), fresh);
}

function storeNew(
  engine: WriteEngine,
  { name, granularity, isEnabled, dirty }: NewBitmap,
  replacement: Replacement,
): BitmapEntry {
  const { size, clusterSize } = engine.header;
  const entry: BitmapEntry = {
    name,
    granularity,
    flags: isEnabled ? BitmapFlag.AUTO : 0,
    tableOffset: 0,
    tableSize: Math.ceil(Math.ceil(size / granularity) / 8 / clusterSize),
    extraData: new Uint8Array(0),
    offset: 0,
  };
  const table = BitmapTable.empty(engine, entry);
  table.mark(dirty, replacement.fresh);
  return storeTable(table, entry, replacement);
}

function storeTable(table: BitmapTable, entry: BitmapEntry, { fresh }: Replacement): BitmapEntry {
  return { ...entry, tableOffset: fresh.store(table.bytes) };
}

/**
 * Host offsets of the clusters that all bitmaps of an image have, with their directory: those that
 * are free when the header names that no more. Where a table is damaged, its bits are left out.
 * @throws {Qcow2Error} what reading the directory throws; `HOST`
 */
export function allBitmapClusters(engine: WriteEngine): ReadonlySet<number> {
  const old: OldClusters = new Set();
  for (const bitmap of knownBitmaps(engine)) freeBitmap(engine, bitmap, old);
  freeDirectory(engine, old);
  return old;
}

/** Gives up a bitmap's clusters; those of bits only if its table says in good order where they are. */
function freeBitmap(engine: WriteEngine, bitmap: BitmapInfo, old: OldClusters): void {
  freeTable(engine, bitmap, old);
  try {
    for (const offset of BitmapTable.read(engine, bitmap).places()) {
      freeData(engine, offset, old);
    }
  } catch (error) {
    const isDamage =
      error instanceof Qcow2Error && (error.code === 'CORRUPT' || error.code === 'TRUNCATED');
    if (!isDamage) throw error;
  }
}

function freeTable(engine: WriteEngine, bitmap: BitmapInfo, old: OldClusters): void {
  freeRange(engine, { offset: bitmap.tableOffset, length: bitmap.tableSize * 8 }, old);
}

/** Gives up a cluster of bits, unless it is known to be something else. */
function freeData(engine: WriteEngine, offset: number, old: OldClusters): void {
  const { clusterSize } = engine.header;
  try {
    engine.metadata.checkClear(offset, clusterSize, 'bitmap data');
  } catch {
    return;
  }
  freeRange(engine, { offset, length: clusterSize }, old);
}

function freeDirectory(engine: WriteEngine, old: OldClusters): void {
  const { areBitmapsValid, extensions } = engine.header;
  // The clusters of others may hold anything by now.
  if (!areBitmapsValid || extensions.bitmaps === undefined) return;
  const { directoryOffset: offset, directorySize: length } = extensions.bitmaps;
  freeRange(engine, { offset, length }, old);
}

/** Gives up clusters, each once and only if it is counted: damaged bitmaps may name any. */
function freeRange(
  { header, refcounts }: WriteEngine,
  { offset, length }: { offset: number; length: number },
  old: OldClusters,
): void {
  const { clusterSize } = header;
  for (let at = offset; at < offset + length; at += clusterSize) {
    if (refcounts.get(at / clusterSize) > 0) old.add(at);
  }
}

/** Goes over to a new directory, and gives up the old one with what only that referred to. */
function replaceDirectory(
  engine: WriteEngine,
  entries: readonly BitmapEntry[],
  { fresh, old }: Replacement,
): void {
  const { header, headerWriter, committer, allocator } = engine;
  const { autoclearFeatures: features } = header;
  const bytes = encodeBitmapDirectory(entries);
  if (bytes.length > MAX_BITMAP_DIRECTORY_BYTES) {
    throw new Qcow2Error('TOO_LARGE', 'there is no room for it in the bitmap directory');
  }
  freeDirectory(engine, old);
  const bitmaps =
    entries.length === 0
      ? null
      : { count: entries.length, directorySize: bytes.length, directoryOffset: fresh.store(bytes) };
  committer.noteNewData();
  committer.commitAll();
  const autoclearFeatures =
    bitmaps === null ? features & ~AutoclearFeature.BITMAPS : features | AutoclearFeature.BITMAPS;
  headerWriter.rewrite({ bitmaps, fields: { autoclearFeatures } });
  for (const offset of old) allocator.free({ offset, count: 1 });
}
