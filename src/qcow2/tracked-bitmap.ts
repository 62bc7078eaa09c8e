/**
 * One persistent bitmap of an image that is open for writing (specification: "Bitmaps"): its bits
 * as far as they were touched, and their way back into the file.
 *
 * All of it happens while the bitmap is marked as in use, so that no reader trusts what is in the
 * file. Each write to its structures is still one aligned field or a cluster of bits, so that a
 * crash leaves structures that hold together.
 */

import type { BlockDevice } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import { BitmapEntryField, BitmapFlag } from '../format/qcow2/bitmap-directory.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import { MAX_BITMAP_DATA_BYTES, MAX_BITMAP_TABLE_ENTRIES } from '../limits.ts';
import { assert } from '../util/assert.ts';
import { alignUp, writeU32, writeU64 } from '../util/bytes.ts';
import { setBits } from './bitmap-table.ts';
import { decodeBitmapPlace, readBitmapCluster } from './bitmaps.ts';
import type { BitmapInfo, UnsavedBits } from './bitmaps.ts';

/** The host clusters of the image, as bitmaps need them. */
export interface BitmapSpace {
  /** Host offset of the first of `count` neighbouring clusters that were free; counted once now. */
  allocateContiguous(count: number): number;
  /** Takes clusters back as soon as the change that removed their reference is durable. */
  free(run: { offset: number; count: number }): void;
  /** Returns once all that was written is durable, and the counts of what was allocated. */
  commit(): void;
  /** @throws {Qcow2Error} `CORRUPT` if the range holds metadata */
  checkClear(offset: number, length: number, what: string): void;
  /** Tells that a bitmap table was put somewhere. */
  addTable(offset: number, length: number): void;
  /** Tells that it is no longer there. */
  removeTable(offset: number, length: number): void;
}

/** What a {@link TrackedBitmap} works on. */
export interface TrackedBitmapParts {
  header: Qcow2Header;
  file: BlockDevice;
  space: BitmapSpace;
  /** Called before `bytes` more are kept; may call {@link TrackedBitmap.spill}. */
  reserveMemory: (bytes: number) => void;
}

/** Bits that are in memory. */
interface LoadedCluster {
  /** Undefined if all of them are set, which takes no cluster. */
  bits: Uint8Array | undefined;
  /** Whether they differ from those in the file. */
  isChanged: boolean;
  /** Host offset of those in the file. */
  place: number | undefined;
}

/** The bits of one bitmap: see the head of this file. */
export class TrackedBitmap implements UnsavedBits {
  /** As the directory has it; table and flags change with it. */
  readonly info: BitmapInfo;
  /**
   * What is done with it: nothing, it is marked as in use and kept up to date, or it is given up
   * and stays marked, because it is damaged or has extra data that is not understood.
   */
  state: 'idle' | 'recording' | 'lost';
  /** Whether it is up to date in the file, but for its mark. */
  needsClearing = false;
  readonly #parts: TrackedBitmapParts;
  readonly #bitsPerCluster: number;
  #bitCount: number;
  readonly #loaded = new Map<number, LoadedCluster>();
  /** Clusters that were allocated, by their index in the table, which does not have them yet. */
  readonly #newPlaces = new Map<number, number>();

  constructor(info: BitmapInfo, parts: TrackedBitmapParts) {
    this.info = info;
    this.#parts = parts;
    this.#bitsPerCluster = parts.header.clusterSize * 8;
    this.#bitCount = this.#bitsFor(parts.header.size);
    this.state = info.isInconsistent ? 'lost' : 'idle';
  }

  /** Whether its bits can be kept; otherwise it is worthless as soon as the disk is written. */
  get isUsable(): boolean {
    const { tableOffset, tableSize, extraData, flags } = this.info;
    if (tableOffset + tableSize * 8 > this.#parts.file.size) return false;
    const mayHaveExtra = (flags & BitmapFlag.EXTRA_DATA_COMPATIBLE) !== 0;
    return (
      tableSize === this.#tableSizeFor(this.#bitCount) && (extraData.length === 0 || mayHaveExtra)
    );
  }

  /** Whether it is kept up to date. */
  get isRecording(): boolean {
    return this.state === 'recording';
  }

  /** Writes the flags, with or without the mark that it is in use. */
  writeMark(isInUse: boolean): void {
    const { flags } = this.info;
    const marked = isInUse ? flags | BitmapFlag.IN_USE : flags & ~BitmapFlag.IN_USE;
    this.#writeField(BitmapEntryField.FLAGS, 4, marked);
    this.info.flags = marked;
  }

  /** Sets the bits of a range of the disk. */
  mark(offset: number, length: number): void {
    const { granularity } = this.info;
    const end = Math.min(Math.ceil((offset + length) / granularity), this.#bitCount);
    for (let bit = Math.floor(offset / granularity); bit < end;) {
      const index = Math.floor(bit / this.#bitsPerCluster);
      const base = index * this.#bitsPerCluster;
      const clusterEnd = Math.min(end, base + this.#bitsPerCluster);
      const cluster = this.#load(index);
      if (cluster === undefined) return;
      if (cluster.bits !== undefined && setBits(cluster.bits, bit - base, clusterEnd - base)) {
        cluster.isChanged = true;
      }
      bit = clusterEnd;
    }
  }

  loadUnsaved(index: number, target: Uint8Array): 'ones' | 'bits' | undefined {
    const known = this.#loaded.get(index);
    if (known !== undefined) {
      if (known.bits === undefined) return 'ones';
      target.set(known.bits);
      return 'bits';
    }
    const place = this.#newPlaces.get(index);
    if (place === undefined) return undefined;
    readBitmapCluster(this.#parts, place, target);
    return 'bits';
  }

  /**
   * Writes the bits that changed, in place or to new clusters, and forgets all of them.
   * @returns bytes of memory that are free now
   */
  spill(): number {
    this.writeBits();
    const bytes = this.loadedBytes;
    this.#loaded.clear();
    return bytes;
  }

  /** Bytes of bits in memory. */
  get loadedBytes(): number {
    return this.#loaded.size * this.#parts.header.clusterSize;
  }

  /** Writes the bits that changed, in place or to new clusters that no table has yet. */
  writeBits(): void {
    const { file, space, header } = this.#parts;
    for (const [index, cluster] of this.#loaded) {
      const { bits, isChanged } = cluster;
      if (bits === undefined || !isChanged) continue;
      if (cluster.place === undefined) {
        cluster.place = space.allocateContiguous(1);
        this.#newPlaces.set(index, cluster.place);
      }
      const { place } = cluster;
      if (!this.#unlessDamaged(() => space.checkClear(place, header.clusterSize, 'bitmap data'))) {
        return;
      }
      file.write(bits, place);
      cluster.isChanged = false;
    }
  }

  /** Writes where new clusters are, which are durable by now, into the table. */
  writeTable(): void {
    const { file } = this.#parts;
    const indexes = [...this.#newPlaces.keys()].sort((a, b) => a - b);
    for (let first = 0; first < indexes.length;) {
      let count = 1;
      while (indexes[first + count] === indexes[first]! + count) count++;
      const entries = new Uint8Array(count * 8);
      for (let entry = 0; entry < count; entry++) {
        writeU64(entries, entry * 8, this.#newPlaces.get(indexes[first + entry]!)!);
      }
      file.write(entries, this.info.tableOffset + indexes[first]! * 8);
      first += count;
    }
  }

  /** Tells that the table is durable, so that it is all up to date but for the mark. */
  settle(): void {
    this.#newPlaces.clear();
    this.#loaded.clear();
    this.state = 'idle';
    this.needsClearing = true;
  }

  /** Gives the bitmap up; in the file it stays marked as in use. */
  abandon(): void {
    for (const offset of this.#newPlaces.values()) this.#parts.space.free({ offset, count: 1 });
    this.#newPlaces.clear();
    this.#loaded.clear();
    this.state = 'lost';
  }

  /**
   * Checks that it can cover a disk of another size.
   * @throws {Qcow2Error} `TOO_LARGE`
   */
  checkSize(diskSize: number): void {
    const bitCount = this.#bitsFor(diskSize);
    const isTooLarge = Math.ceil(bitCount / 8) > MAX_BITMAP_DATA_BYTES;
    if (!isTooLarge && this.#tableSizeFor(bitCount) <= MAX_BITMAP_TABLE_ENTRIES) return;
    throw new Qcow2Error('TOO_LARGE', `it cannot cover a disk of ${diskSize} bytes`, {
      structure: `bitmap '${this.info.name}'`,
      hint: 'remove it first',
    });
  }

  /** Makes the table large enough for a disk of another size; it covers the same bits as before. */
  reserve(diskSize: number): void {
    const { info } = this;
    const { file, space, header } = this.#parts;
    const tableSize = this.#tableSizeFor(this.#bitsFor(diskSize));
    if (tableSize <= info.tableSize) return;
    const oldLength = info.tableSize * 8;
    const oldRoom = alignUp(oldLength, header.clusterSize);
    if (tableSize * 8 <= oldRoom) {
      file.write(new Uint8Array(tableSize * 8 - oldLength), info.tableOffset + oldLength);
      file.flush();
    } else {
      const { tableOffset: oldOffset } = info;
      const bytes = new Uint8Array(alignUp(tableSize * 8, header.clusterSize));
      const offset = space.allocateContiguous(bytes.length / header.clusterSize);
      file.read(bytes.subarray(0, oldLength), oldOffset);
      file.write(bytes, offset);
      space.commit();
      // The longer table, with the old size: whatever is cut off by a crash is not there.
      this.#writeField(BitmapEntryField.TABLE_OFFSET, 8, offset);
      info.tableOffset = offset;
      file.flush();
      space.addTable(offset, bytes.length);
      space.removeTable(oldOffset, oldRoom);
      space.free({ offset: oldOffset, count: oldRoom / header.clusterSize });
    }
    this.#writeField(BitmapEntryField.TABLE_SIZE, 4, tableSize);
    info.tableSize = tableSize;
  }

  /** Makes it cover a disk of another size; new bits are clear. */
  setSize(diskSize: number): void {
    const bitCount = this.#bitsFor(diskSize);
    this.#clearFrom(Math.min(bitCount, this.#bitCount));
    this.#bitCount = bitCount;
  }

  /** Cuts off entries of the table that the disk does not need. */
  trimTable(): void {
    const { file, space, header } = this.#parts;
    const { info } = this;
    const tableSize = this.#tableSizeFor(this.#bitCount);
    if (!this.isRecording || tableSize >= info.tableSize) return;
    const unused = [...this.#newPlaces].filter(([index]) => index >= tableSize);
    const freed = unused.map(([, offset]) => offset);
    const entry = new Uint8Array(8);
    for (let index = tableSize; index < info.tableSize; index++) {
      file.read(entry, info.tableOffset + index * 8);
      this.#unlessDamaged(() => {
        const place = this.#decodePlace(entry, index);
        if (typeof place === 'number') freed.push(place);
      });
    }
    if (!this.isRecording) return;
    const oldRoom = alignUp(info.tableSize * 8, header.clusterSize);
    this.#writeField(BitmapEntryField.TABLE_SIZE, 4, tableSize);
    info.tableSize = tableSize;
    file.flush();
    for (const [index] of unused) this.#newPlaces.delete(index);
    for (const index of [...this.#loaded.keys()]) {
      if (index >= tableSize) this.#loaded.delete(index);
    }
    const room = alignUp(tableSize * 8, header.clusterSize);
    if (room < oldRoom) {
      const offset = info.tableOffset + room;
      space.removeTable(offset, oldRoom - room);
      space.free({ offset, count: (oldRoom - room) / header.clusterSize });
    }
    for (const offset of freed) space.free({ offset, count: 1 });
  }

  /** Clears the bits of one cluster from `bit` on; those after it belong to clusters of their own. */
  #clearFrom(bit: number): void {
    const inCluster = bit % this.#bitsPerCluster;
    if (inCluster === 0) return;
    const cluster = this.#load(Math.floor(bit / this.#bitsPerCluster));
    if (cluster === undefined) return;
    cluster.bits ??= new Uint8Array(this.#parts.header.clusterSize).fill(0xff);
    const firstByte = inCluster >>> 3;
    cluster.bits[firstByte]! &= 2 ** (inCluster & 7) - 1;
    cluster.bits.fill(0, firstByte + 1);
    cluster.isChanged = true;
  }

  /** The bits of a cluster; undefined if the bitmap is damaged and was given up. */
  #load(index: number): LoadedCluster | undefined {
    const known = this.#loaded.get(index);
    if (known !== undefined) return known;
    const { header, file, reserveMemory } = this.#parts;
    reserveMemory(header.clusterSize);
    let cluster: LoadedCluster | undefined;
    this.#unlessDamaged(() => {
      const entry = new Uint8Array(8);
      if (!this.#newPlaces.has(index)) file.read(entry, this.info.tableOffset + index * 8);
      const place = this.#newPlaces.get(index) ?? this.#decodePlace(entry, index);
      const bits = place === 'ones' ? undefined : new Uint8Array(header.clusterSize);
      if (typeof place === 'number') readBitmapCluster(this.#parts, place, bits!);
      const at = typeof place === 'number' ? place : undefined;
      cluster = { bits, isChanged: false, place: at };
    });
    if (cluster !== undefined) this.#loaded.set(index, cluster);
    return cluster;
  }

  #decodePlace(entry: Uint8Array, index: number) {
    const structure = `table of bitmap '${this.info.name}'`;
    const offset = this.info.tableOffset + index * 8;
    return decodeBitmapPlace(this.#parts, entry, { structure, offset, index });
  }

  /**
   * Runs what finds out about damage, in which case the bitmap is given up: it stands for nothing,
   * and the disk itself is as good as before.
   */
  #unlessDamaged(action: () => void): boolean {
    try {
      action();
      return true;
    } catch (error) {
      if (!(error instanceof Qcow2Error)) throw error;
      if (error.code !== 'CORRUPT' && error.code !== 'TRUNCATED') throw error;
      this.abandon();
      return false;
    }
  }

  #bitsFor(diskSize: number): number {
    return Math.ceil(diskSize / this.info.granularity);
  }

  #tableSizeFor(bitCount: number): number {
    // The format has no bitmap without a table.
    return Math.max(1, Math.ceil(bitCount / this.#bitsPerCluster));
  }

  #writeField(field: number, length: 4 | 8, value: number): void {
    assert((this.info.offset + field) % length === 0, 'fields of bitmaps are aligned');
    const bytes = new Uint8Array(length);
    if (length === 8) writeU64(bytes, 0, value);
    else writeU32(bytes, 0, value);
    this.#parts.file.write(bytes, this.info.offset + field);
  }
}
