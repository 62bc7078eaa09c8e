/**
 * What a guest did, and from it what may be read after a crash: what was flushed, and of what was
 * done since then each sector old or new, never anything else.
 *
 * Creating and applying snapshots, deleting them and resizing happen as a whole or not at all, so
 * each of them begins a new {@link World}. A crash leaves one of the worlds since the last flush.
 */

import type { Holdings, ModelSnapshot } from '../support/disk-model.ts';
import type { GuestOperation } from '../support/guest-operations.ts';
import { SECTOR_BYTES } from '../support/stamps.ts';

/** Something that was done, and what there was afterwards. */
export interface HistoryEntry {
  operation: GuestOperation;
  /** How many operations the log of the host held before and after. */
  logStart: number;
  logEnd: number;
  after: Holdings;
}

/** What disks may hold. Worlds between which no snapshot was made or applied share it. */
interface Contents {
  /** What was there at first, in whole. */
  base: Buffer;
  /** What else each sector may hold. */
  versions: Map<number, Buffer[]>;
}

/** A state of affairs that a crash may leave. */
export interface World {
  size: number;
  snapshots: readonly ModelSnapshot[];
  contents: Contents;
}

const ZERO_SECTOR = Buffer.alloc(SECTOR_BYTES);

/** A history in order, and what it allows to be read. */
export class GuestHistory {
  readonly entries: HistoryEntry[] = [];
  readonly #initial: Holdings;
  /** The worlds of the last position that was asked for, and the entries that they come from. */
  #cached: { from: number; to: number; worlds: World[] } | undefined;

  constructor(initial: Holdings) {
    this.#initial = initial;
  }

  /** What the disk reads as at first. */
  get initialDisk(): Buffer {
    return this.#initial.disk;
  }

  /** The smallest size that the disk ever had, in bytes. */
  get smallestSize(): number {
    const sizes = this.entries.map(({ after }) => after.disk.length);
    return Math.min(this.initialDisk.length, ...sizes);
  }

  /** Adds what was done next. */
  add(entry: HistoryEntry): void {
    this.entries.push(entry);
    this.#cached = undefined;
  }

  /** What a crash may leave after `position` operations of the host's log, oldest first. */
  worldsAt(position: number): World[] {
    const { entries } = this;
    const flushes = ({ operation, logEnd }: HistoryEntry): boolean =>
      (operation.kind === 'flush' || operation.kind === 'reopen') && logEnd <= position;
    const from = entries.findLastIndex(flushes);
    const to = entries.findLastIndex(({ logStart }) => logStart < position);
    if (this.#cached?.from !== from || this.#cached.to !== to) {
      this.#cached = { from, to, worlds: this.#worlds(from, to) };
    }
    return this.#cached.worlds;
  }

  /** The number of entries that had begun before `position`. */
  begunAt(position: number): number {
    return this.entries.findLastIndex(({ logStart }) => logStart < position) + 1;
  }

  #worlds(from: number, to: number): World[] {
    const after = (index: number): Holdings => this.entries[index]?.after ?? this.#initial;
    const start = after(from);
    let contents: Contents = { base: start.disk, versions: new Map() };
    const worlds: World[] = [{ size: start.disk.length, snapshots: start.snapshots, contents }];
    for (let index = from + 1; index <= to; index++) {
      const { operation } = this.entries[index]!;
      const { disk, snapshots } = after(index);
      switch (operation.kind) {
        case 'snapshot':
        case 'apply':
          contents = { base: disk, versions: new Map() };
          worlds.push({ size: disk.length, snapshots, contents });
          break;
        case 'delete':
          worlds.push({ size: disk.length, snapshots, contents });
          break;
        case 'resize':
          addCut(contents, after(index - 1), disk.length);
          worlds.push({ size: disk.length, snapshots, contents });
          break;
        case 'write':
        case 'compress':
        case 'zero':
        case 'discard':
          addVersions(contents, operation, { from: after(index - 1).disk, to: disk });
          break;
        case 'preallocate':
        case 'flush':
        case 'reopen':
        case 'commit':
          break;
      }
    }
    return worlds;
  }
}

/** While a disk is cut, what is cut off goes first: then it may read as if never written. */
function addCut({ versions }: Contents, { disk, backing }: Holdings, newSize: number): void {
  for (let at = newSize; at < disk.length; at += SECTOR_BYTES) {
    addVersion(versions, at / SECTOR_BYTES, ZERO_SECTOR);
    const behind = backing?.subarray(at, at + SECTOR_BYTES);
    if (behind?.length === SECTOR_BYTES) addVersion(versions, at / SECTOR_BYTES, behind);
  }
}

function addVersions(
  { versions }: Contents,
  { offset, length }: { offset: number; length: number },
  { from, to }: { from: Buffer; to: Buffer },
): void {
  for (let at = offset - (offset % SECTOR_BYTES); at < offset + length; at += SECTOR_BYTES) {
    const next = to.subarray(at, at + SECTOR_BYTES);
    if (!next.equals(from.subarray(at, at + SECTOR_BYTES))) {
      addVersion(versions, at / SECTOR_BYTES, next);
    }
  }
}

function addVersion(versions: Map<number, Buffer[]>, sector: number, bytes: Buffer): void {
  const known = versions.get(sector);
  if (known === undefined) versions.set(sector, [bytes]);
  else known.push(bytes);
}

const CHUNK_BYTES = 16_384;

/** The first sector of a disk that a world does not allow to hold what it holds, or -1. */
export function firstForeignSector({ contents }: World, disk: Buffer): number {
  const { base, versions } = contents;
  for (let start = 0; start < disk.length; start += CHUNK_BYTES) {
    const end = Math.min(start + CHUNK_BYTES, disk.length);
    if (end <= base.length && disk.compare(base, start, end, start, end) === 0) continue;
    for (let at = start; at < end; at += SECTOR_BYTES) {
      const sector = disk.subarray(at, at + SECTOR_BYTES);
      const old = at < base.length ? base.subarray(at, at + SECTOR_BYTES) : ZERO_SECTOR;
      if (sector.equals(old)) continue;
      const known = versions.get(at / SECTOR_BYTES);
      if (known?.some((version) => version.equals(sector)) !== true) return at / SECTOR_BYTES;
    }
  }
  return -1;
}
