/**
 * Zeroes and discards: changes of L2 entries, with writes only where a part of a cluster has none.
 *
 * As in QEMU, a discarded cluster reads as zeroes afterwards, and never again as the backing file
 * has it: where there is something to discard, it becomes a zero cluster. Version 2 has none, so
 * that there zeroes are written, and what has a backing file cannot be discarded.
 */

import { EntryFlag, entryOffset, READS_ZERO } from '../format/qcow2/l2-entry.ts';
import { alignDown, alignUp } from '../util/bytes.ts';
import { ALL_SUBCLUSTERS, subclusterMask } from './disk-writer.ts';
import type { DiskWriter } from './disk-writer.ts';
import { setEntry } from './l2-editor.ts';
import type { WriteContext } from './write-context.ts';

/** Largest piece of zeroes that is written. */
const ZERO_BYTES = 1024 * 1024;
const SUBCLUSTERS = 32;

/** A part of the disk. */
interface GuestRange {
  offset: number;
  length: number;
}

/** How a range is made to read as zeroes. */
export interface ZeroOptions {
  /** Gives the host space up rather than keeping it for later writes. */
  mayUnmap: boolean;
  /**
   * Has entries of the image itself say so, even where it reads as zeroes already, because there
   * is nothing behind it (default false).
   */
  isExplicit?: boolean | undefined;
}

/** Zeroes and discards parts of the active disk of an image. */
export class ZeroWriter {
  readonly #context: WriteContext;
  readonly #writer: DiskWriter;
  #zeroes: Uint8Array | undefined;

  constructor(context: WriteContext, writer: DiskWriter) {
    this.#context = context;
    this.#writer = writer;
  }

  /**
   * Makes a range read as zeroes.
   *
   * @throws {Qcow2Error} as writing does
   */
  writeZeroes({ offset, length }: GuestRange, how: ZeroOptions): void {
    const { header } = this.#context;
    if (header.version < 3) {
      this.#writeZeroData(offset, length, how);
      return;
    }
    const unit = header.hasExtendedL2 ? header.clusterSize / SUBCLUSTERS : header.clusterSize;
    const end = offset + length;
    const first = alignUp(offset, unit);
    if (first >= end) {
      // Less than what an entry can speak of, and not the start of it.
      this.#writeZeroData(offset, length, how);
      return;
    }
    // The last cluster of the disk need not be whole.
    const isToEnd = end >= header.size;
    const last = isToEnd ? alignUp(end, unit) : Math.max(first, alignDown(end, unit));
    this.#writeZeroData(offset, first - offset, how);
    this.#eachCluster({ first, last, isEach: how.isExplicit }, (guest, inTable) =>
      this.#zero(guest, inTable, how),
    );
    if (last < end) this.#writeZeroData(last, end - last, how);
  }

  /**
   * Gives up the clusters that lie wholly in a range. They read as zeroes afterwards, except where
   * the format cannot say that (version 2 with a backing file), where they stay as they are.
   * @throws {Qcow2Error} as writing does
   */
  discard({ offset, length }: GuestRange): void {
    const { header, backing } = this.#context;
    if (header.version < 3 && backing !== undefined) return;
    const { clusterSize } = header;
    const end = offset + length;
    const first = alignUp(offset, clusterSize);
    const last = end >= header.size ? alignUp(end, clusterSize) : alignDown(end, clusterSize);
    this.#eachCluster({ first, last }, (guest, inTable) => this.#discard(guest, inTable));
  }

  /**
   * Drops the allocations of a range, so that the backing file shows.
   * @throws {Qcow2Error} as writing does
   */
  deallocate({ offset, length }: GuestRange): void {
    const { clusterSize } = this.#context.header;
    const range = { first: alignDown(offset, clusterSize), last: offset + length };
    this.#eachCluster(range, (guest, inTable) => this.#deallocate(guest, inTable));
  }

  /** Calls `change` for the parts of a range that lie in one slice of an L2 table each. */
  #eachCluster(
    { first, last, isEach = false }: { first: number; last: number; isEach?: boolean | undefined },
    change: (guest: number, length: number) => void,
  ): void {
    const { header, editor, committer } = this.#context;
    const sliceBytes = editor.sliceEntries * header.clusterSize;
    const tableBytes = header.l2Entries * header.clusterSize;
    for (let guest = first; guest < last;) {
      // A whole table that is not there is passed over at once.
      const isThere = editor.locate(Math.floor(guest / tableBytes)).offset !== 0;
      const isEmpty = !isEach && !isThere && !this.#isBacked(guest);
      const step = isEmpty ? tableBytes : sliceBytes;
      const end = Math.min(last, guest - (guest % step) + step);
      if (!isEmpty) change(guest, end - guest);
      guest = end;
      if (committer.isDue) committer.flush();
    }
  }

  /** Whether a guest offset that this image does not map can read as anything but zeroes. */
  #isBacked(guest: number): boolean {
    return guest < (this.#context.backing?.size ?? 0);
  }

  /** Writes zeroes to what does not read as zeroes. */
  #writeZeroData(offset: number, length: number, { isExplicit = false }: ZeroOptions): void {
    const { reader, committer } = this.#context;
    for (let done = 0; done < length; done += ZERO_BYTES) {
      const part = Math.min(ZERO_BYTES, length - done);
      if (!isExplicit && reader.readsZero(offset + done, part)) continue;
      this.#zeroes ??= new Uint8Array(ZERO_BYTES);
      this.#writer.write(this.#zeroes.subarray(0, part), offset + done);
      if (committer.isDue) committer.flush();
    }
  }

  #position(guest: number): { l1Index: number; l2Index: number } {
    const { clusterSize, l2Entries } = this.#context.header;
    const cluster = Math.floor(guest / clusterSize);
    const l1Index = Math.floor(cluster / l2Entries);
    return { l1Index, l2Index: cluster - l1Index * l2Entries };
  }

  // ---- Zeroes -------------------------------------------------------------------------------

  /** Zeroes whole clusters, or subclusters, that lie in one slice. */
  #zero(guest: number, length: number, how: ZeroOptions): void {
    const { mayUnmap, isExplicit = false } = how;
    const { header, editor } = this.#context;
    const { clusterSize } = header;
    const { l1Index } = this.#position(guest);
    // Once it is sure that something changes, so that zeroing nothing makes no tables.
    let table: number | undefined;
    const end = guest + length;
    for (let at = guest; at < end;) {
      const next = Math.min(end, alignDown(at, clusterSize) + clusterSize);
      if (isExplicit || !this.#isZeroAlready(at, next - at, mayUnmap)) {
        table ??= editor.writableTable(l1Index);
        if (header.hasExtendedL2) this.#zeroExtended(table, { guest: at, length: next - at }, how);
        else this.#zeroStandard(table, at, mayUnmap);
      }
      at = next;
    }
  }

  /** Whether a part of a cluster reads as zeroes and has no space that could be given up. */
  #isZeroAlready(guest: number, length: number, mayUnmap: boolean): boolean {
    const { reader, editor, header } = this.#context;
    if (!reader.readsZero(guest, length)) return false;
    if (!mayUnmap) return true;
    const { l1Index, l2Index } = this.#position(guest);
    const { offset } = editor.locate(l1Index);
    if (offset === 0) return true;
    const { words, firstIndex } = editor.read(offset, l2Index);
    const at = (l2Index - firstIndex) * (header.l2EntrySize / 4);
    return entryOffset(words[at]!, words[at + 1]!) === 0;
  }

  #zeroStandard(table: number, guest: number, mayUnmap: boolean): void {
    const { editor } = this.#context;
    const { l2Index } = this.#position(guest);
    const slice = editor.modify(table, l2Index);
    const at = 2 * (l2Index - slice.firstIndex);
    const high = slice.words[at]!;
    const low = slice.words[at + 1]!;
    const isUnmapped = mayUnmap || (high & EntryFlag.COMPRESSED) !== 0;
    if (isUnmapped) setEntry(slice.words, at, { offset: 0, high: 0, low: READS_ZERO });
    else slice.words[at + 1] = (low | READS_ZERO) >>> 0;
    if (isUnmapped) editor.freeEntry(high, low, 'request');
    this.#zeroRawData(guest, this.#context.header.clusterSize);
  }

  #zeroExtended(
    table: number,
    { guest, length }: { guest: number; length: number },
    how: ZeroOptions,
  ): void {
    const { editor, header } = this.#context;
    const { clusterSize } = header;
    const { l2Index } = this.#position(guest);
    const inCluster = guest % clusterSize;
    const isWhole = length === clusterSize;
    const slice = editor.modify(table, l2Index);
    const at = 4 * (l2Index - slice.firstIndex);
    const { words } = slice;
    const high = words[at]!;
    const low = words[at + 1]!;
    if ((high & EntryFlag.COMPRESSED) !== 0 && !isWhole) {
      this.#writeZeroData(guest, length, how);
      return;
    }
    const subcluster = clusterSize / SUBCLUSTERS;
    const first = inCluster / subcluster;
    const mask = subclusterMask(first, first + length / subcluster - 1);
    words[at + 2] = (words[at + 2]! | mask) >>> 0;
    words[at + 3] = (words[at + 3]! & ~mask) >>> 0;
    const isUnmapped = isWhole && (how.mayUnmap || (high & EntryFlag.COMPRESSED) !== 0);
    if (isUnmapped) {
      setEntry(words, at, { offset: 0, high: 0, low: 0 });
      editor.freeEntry(high, low, 'request');
    }
    this.#zeroRawData(guest, length);
  }

  /** A raw external data file has to have the zeroes itself. */
  #zeroRawData(guest: number, length: number): void {
    const { header, dataFile, allocator, committer } = this.#context;
    if (!header.isDataFileRaw) return;
    allocator.keepData(guest, length);
    const available = Math.min(length, dataFile.size - guest);
    if (available > 0) dataFile.writeZeroes(guest, available, { mayUnmap: true });
    committer.noteOverwrite();
  }

  // ---- Discarding ---------------------------------------------------------------------------

  #discard(guest: number, length: number): void {
    const { header, backing } = this.#context;
    const range = { guest, length, marksUnallocated: true };
    this.#changeAllocated(range, (words, at, isAllocated) => {
      const keepsNothing = backing === undefined && !isAllocated;
      if (keepsNothing) return false;
      const isExtended = header.hasExtendedL2;
      const low = header.version >= 3 && !isExtended ? READS_ZERO : 0;
      setEntry(words, at, { offset: 0, high: 0, low });
      if (isExtended) {
        words[at + 2] = ALL_SUBCLUSTERS;
        words[at + 3] = 0;
      }
      return true;
    });
  }

  #deallocate(guest: number, length: number): void {
    const { header } = this.#context;
    const range = { guest, length, marksUnallocated: false };
    this.#changeAllocated(range, (words, at) => {
      setEntry(words, at, { offset: 0, high: 0, low: 0 });
      if (header.hasExtendedL2) words.fill(0, at + 2, at + 4);
      return true;
    });
  }

  /** Replaces the entries of whole clusters and gives up what they pointed at. */
  #changeAllocated(
    range: { guest: number; length: number; marksUnallocated: boolean },
    change: (words: Uint32Array, at: number, isAllocated: boolean) => boolean,
  ): void {
    const { header, editor } = this.#context;
    const { guest, length, marksUnallocated } = range;
    const { clusterSize, hasExtendedL2 } = header;
    const entryWords = header.l2EntrySize / 4;
    const { l1Index, l2Index } = this.#position(guest);
    const count = Math.ceil(length / clusterSize);
    const existing = editor.locate(l1Index).offset;
    if (!marksUnallocated || !this.#isBacked(guest)) {
      if (existing === 0) return;
      const slice = editor.read(existing, l2Index);
      const start = (l2Index - slice.firstIndex) * entryWords;
      const entries = slice.words.subarray(start, start + count * entryWords);
      if (entries.every((word) => word === 0)) return;
    }
    const table = editor.writableTable(l1Index);
    const { words, firstIndex } = editor.modify(table, l2Index);
    for (let index = 0; index < count; index++) {
      const at = (l2Index - firstIndex + index) * entryWords;
      const old = Uint32Array.from(words.subarray(at, at + entryWords));
      const high = old[0]!;
      const low = old[1]!;
      const isCompressed = (high & EntryFlag.COMPRESSED) !== 0;
      const hasSpace = isCompressed || entryOffset(high, low) !== 0 || isExternalData(header, high);
      const isPlainZero = hasExtendedL2
        ? old[2] === ALL_SUBCLUSTERS && !hasSpace
        : (low & READS_ZERO) !== 0 && !hasSpace;
      const isUnmapped = !hasSpace && !isPlainZero && (old[2] ?? 0) === 0;
      if (change(words, at, hasSpace || !isUnmapped)) editor.freeEntry(high, low, 'request');
      const clusterGuest = guest + index * clusterSize;
      if (hasSpace) this.#zeroRawData(clusterGuest, clusterSize);
    }
  }
}

function isExternalData(header: WriteContext['header'], high: number): boolean {
  return header.hasExternalDataFile && (high & EntryFlag.COPIED) !== 0;
}
