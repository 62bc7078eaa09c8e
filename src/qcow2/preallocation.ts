/**
 * Giving parts of a disk their host clusters before anything is written to them.
 *
 * Clusters that have space already keep it, and what the disk reads as does not change: only what
 * reads as zeroes may be preallocated. Space goes to the file first, as for guest writes, and the
 * L2 entries follow with the commit.
 */

import type { HostFile } from '../device/block-device.ts';
import { EntryFlag, entryOffset } from '../format/qcow2/l2-entry.ts';
import { alignDown } from '../util/bytes.ts';
import { ALL_SUBCLUSTERS } from './disk-writer.ts';
import type { WriteEngine } from './image-writer.ts';
import { setEntry } from './l2-editor.ts';

/** How much of the space is there in advance. */
export type PreallocationMode =
  /** Its place in the file, which may be a hole. */
  | 'metadata'
  /** The host filesystem has reserved it. */
  | 'falloc'
  /** Zeroes were written to it. */
  | 'full';

/** A part of the disk, and how to preallocate it. */
export interface PreallocationRequest {
  offset: number;
  length: number;
  mode: PreallocationMode;
}

const ZEROES = new Uint8Array(1024 * 1024);

/**
 * Gives every cluster of a range its space, the last of the disk whole. The range must read as
 * zeroes where it has none.
 *
 * @throws {Qcow2Error} `HOST`, `TOO_LARGE`, `CORRUPT`; what was done before stays
 */
export function preallocate(engine: WriteEngine, request: PreallocationRequest): void {
  const { header, editor, committer } = engine;
  const { clusterSize, l2Entries } = header;
  const end = request.offset + request.length;
  for (let guest = alignDown(request.offset, clusterSize); guest < end;) {
    const cluster = guest / clusterSize;
    const l1Index = Math.floor(cluster / l2Entries);
    const l2Index = cluster - l1Index * l2Entries;
    const table = editor.writableTable(l1Index);
    const wanted = Math.ceil((end - guest) / clusterSize);
    const isFree = !hasSpace(engine, table, l2Index);
    const inSlice = editor.sliceEntries - (l2Index % editor.sliceEntries);
    let count = 1;
    while (count < Math.min(wanted, inSlice) && hasSpace(engine, table, l2Index + count) !== isFree)
      count++;
    guest +=
      (isFree ? fill(engine, { table, l2Index, guest, count }, request.mode) : count) * clusterSize;
    if (committer.isDue) committer.flush();
  }
}

/** Entries of one slice, all without space. */
interface EntryRun {
  table: number;
  l2Index: number;
  guest: number;
  count: number;
}

function hasSpace({ editor, header }: WriteEngine, table: number, l2Index: number): boolean {
  const { words, firstIndex } = editor.read(table, l2Index);
  const at = (l2Index - firstIndex) * (header.l2EntrySize / 4);
  const high = words[at]!;
  const isThere = (high & (EntryFlag.COMPRESSED | EntryFlag.COPIED)) !== 0;
  return isThere || entryOffset(high, words[at + 1]!) !== 0;
}

/** Gives the first entries of a run space in one piece; returns how many. */
function fill(engine: WriteEngine, run: EntryRun, mode: PreallocationMode): number {
  const { header, allocator, dataFile, metadata, committer } = engine;
  const { clusterSize, hasExternalDataFile } = header;
  const space = hasExternalDataFile
    ? { offset: run.guest, count: run.count }
    : allocator.allocateRun(run.count);
  try {
    const length = space.count * clusterSize;
    if (hasExternalDataFile) allocator.keepData(space.offset, length);
    else metadata.checkClear(space.offset, length, 'guest data');
    makeZero(dataFile, { offset: space.offset, length }, mode);
    committer.noteNewData();
    setEntries(engine, run, { space, keepsZero: mode === 'metadata' });
  } catch (error) {
    if (!hasExternalDataFile) allocator.release(space);
    throw error;
  }
  return space.count;
}

function makeZero(
  file: HostFile,
  { offset, length }: { offset: number; length: number },
  mode: PreallocationMode,
): void {
  if (mode !== 'full') {
    file.writeZeroes(offset, length, { mayUnmap: mode === 'metadata' });
    return;
  }
  for (let done = 0; done < length; done += ZEROES.length) {
    file.write(ZEROES.subarray(0, Math.min(ZEROES.length, length - done)), offset + done);
  }
}

function setEntries(
  { header, editor }: WriteEngine,
  { table, l2Index }: EntryRun,
  { space, keepsZero }: { space: { offset: number; count: number }; keepsZero: boolean },
): void {
  const { words, firstIndex } = editor.modify(table, l2Index);
  for (let index = 0; index < space.count; index++) {
    const at = (l2Index - firstIndex + index) * (header.l2EntrySize / 4);
    const offset = space.offset + index * header.clusterSize;
    // A flag that says "zeroes" is as good as the zeroes, and better than a hole.
    const low = keepsZero && !header.hasExtendedL2 ? words[at + 1]! : 0;
    setEntry(words, at, { offset, high: EntryFlag.COPIED, low });
    // As in QEMU, subclusters stay unallocated where nothing would show through them.
    if (header.hasExtendedL2 && !keepsZero && words[at + 2] !== 0) {
      words[at + 2] = 0;
      words[at + 3] = ALL_SUBCLUSTERS;
    }
  }
}
