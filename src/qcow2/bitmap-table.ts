/**
 * The table of a persistent bitmap in memory, and the clusters of bits that it names (specification:
 * "Bitmap table"). Bits that change go to fresh clusters; those in the file stay as they are.
 */

import { checkRange } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import type { BitmapEntry } from '../format/qcow2/bitmap-directory.ts';
import { MAX_BITMAP_DATA_BYTES } from '../limits.ts';
import { writeU64 } from '../util/bytes.ts';
import { decodeBitmapPlace, readBitmapCluster } from './bitmaps.ts';
import type { BitmapPlace, BitmapSource, DirtyRange } from './bitmaps.ts';
import type { FreshClusters } from './table-copies.ts';

/** What of a bitmap its table depends on. */
type BitmapShape = Pick<BitmapEntry, 'name' | 'granularity' | 'tableOffset' | 'tableSize'>;

/** The image that a bitmap is in. */
type NamedSource = BitmapSource & { path: string };

/** Bits of one cluster that are being changed. */
interface OpenCluster {
  index: number;
  bits: Uint8Array;
  isChanged: boolean;
}

/** See the head of this file. */
export class BitmapTable {
  /** The table as the file is to have it, without padding. */
  readonly bytes: Uint8Array;
  /** Whether {@link mark} has set a bit that was clear. */
  isChanged = false;
  readonly #source: NamedSource;
  readonly #bitmap: BitmapShape;

  private constructor(source: NamedSource, bitmap: BitmapShape) {
    this.#source = source;
    this.#bitmap = bitmap;
    this.bytes = new Uint8Array(bitmap.tableSize * 8);
  }

  /** A table of a bitmap that marks nothing. */
  static empty(source: NamedSource, bitmap: BitmapShape): BitmapTable {
    return new BitmapTable(source, bitmap);
  }

  /**
   * Reads a bitmap's table from the file.
   * @throws {Qcow2Error} `TRUNCATED`, or `CORRUPT` if it is larger than any can be
   */
  static read(source: NamedSource, bitmap: BitmapShape): BitmapTable {
    const { name, tableOffset: offset, tableSize } = bitmap;
    const { file, header, path } = source;
    const location = { file: path, structure: `table of bitmap '${name}'`, offset };
    if (offset + tableSize * 8 > file.size) {
      throw new Qcow2Error('TRUNCATED', 'the file ends before it does', location);
    }
    if ((tableSize - 1) * header.clusterSize > MAX_BITMAP_DATA_BYTES) {
      throw new Qcow2Error('CORRUPT', 'it has more than 512 MiB of bits', location);
    }
    const table = new BitmapTable(source, bitmap);
    file.read(table.bytes, offset);
    return table;
  }

  /** Whether no bit is set, as far as the table tells. */
  get isEmpty(): boolean {
    return this.bytes.every((byte) => byte === 0);
  }

  /**
   * Host offsets of the clusters of bits, each once.
   * @throws {Qcow2Error} `CORRUPT` or `TRUNCATED` if an entry cannot be one
   */
  places(): Set<number> {
    const places = new Set<number>();
    for (let index = 0; index < this.#bitmap.tableSize; index++) {
      const place = this.#place(index);
      if (typeof place === 'number') places.add(place);
    }
    return places;
  }

  /**
   * Marks ranges of the disk, which are in order. The table then names fresh clusters in the place of
   * those in which bits have changed.
   *
   * @returns host offsets of the clusters that it names no more
   * @throws {Qcow2Error} `OUT_OF_RANGE`; `CORRUPT` or `TRUNCATED` if an entry cannot be one; what
   * allocating and writing, and iterating, throw
   */
  mark(dirty: Iterable<DirtyRange>, fresh: FreshClusters): number[] {
    const { size, clusterSize } = this.#source.header;
    const { granularity } = this.#bitmap;
    const bitsPerCluster = clusterSize * 8;
    const replaced: number[] = [];
    let open: OpenCluster | undefined;
    for (const { offset, length } of dirty) {
      checkRange(offset, length, size);
      const end = Math.ceil((offset + length) / granularity);
      for (let bit = Math.floor(offset / granularity); bit < end;) {
        const index = Math.floor(bit / bitsPerCluster);
        const base = index * bitsPerCluster;
        const stop = Math.min(end, base + bitsPerCluster);
        if (open?.index !== index) {
          this.#store(open, { fresh, replaced });
          open = this.#load(index);
        }
        if (open !== undefined && setBits(open.bits, bit - base, stop - base)) {
          open.isChanged = true;
        }
        bit = stop;
      }
    }
    this.#store(open, { fresh, replaced });
    return replaced;
  }

  /**
   * Marks what another bitmap of the same granularity marks, of a disk of the same size. Does what
   * {@link mark} does with its ranges, 17 times as fast (86 ms in place of 1.5 s for 8 million).
   *
   * @returns host offsets of the clusters that the table names no more
   * @throws {Qcow2Error} as {@link mark}
   */
  markAs(other: BitmapTable, fresh: FreshClusters): number[] {
    const { size, clusterSize } = this.#source.header;
    const { granularity, tableSize } = this.#bitmap;
    const bitCount = Math.ceil(size / granularity);
    const replaced: number[] = [];
    const marks = new Uint8Array(clusterSize);
    for (let index = 0; index < tableSize; index++) {
      const first = index * clusterSize;
      // Whole words, of which the last may have more bits than the bitmap.
      const length = Math.min(clusterSize, Math.ceil(bitCount / 32) * 4 - first);
      marks.fill(0);
      if (!other.#orInto(marks.subarray(0, length), first)) continue;
      clearFrom(marks, bitCount - first * 8);
      const open = this.#load(index);
      if (open === undefined) continue;
      const before = Buffer.from(open.bits);
      orWords(open.bits, marks);
      open.isChanged = !before.equals(open.bits);
      this.#store(open, { fresh, replaced });
    }
    return replaced;
  }

  /**
   * Sets in `target` what is set from byte `first` of the bits on.
   * @returns false if nothing is
   */
  #orInto(target: Uint8Array, first: number): boolean {
    const { clusterSize } = this.#source.header;
    let isAnySet = false;
    for (let done = 0; done < target.length;) {
      const index = Math.floor((first + done) / clusterSize);
      const start = first + done - index * clusterSize;
      const part = target.subarray(
        done,
        done + Math.min(clusterSize - start, target.length - done),
      );
      done += part.length;
      if (index >= this.#bitmap.tableSize) throw this.#tooShort();
      const place = this.#place(index);
      if (place === 'zeroes') continue;
      isAnySet = true;
      if (place === 'ones') part.fill(0xff);
      else orWords(part, this.#readBits(place).subarray(start, start + part.length));
    }
    return isAnySet;
  }

  #readBits(place: number): Uint8Array {
    const bits = new Uint8Array(this.#source.header.clusterSize);
    readBitmapCluster(this.#source, place, bits);
    return bits;
  }

  #tooShort(): Qcow2Error {
    const { name, tableSize, tableOffset: offset } = this.#bitmap;
    return new Qcow2Error('CORRUPT', `its ${tableSize} entries do not cover the disk`, {
      file: this.#source.path,
      structure: `table of bitmap '${name}'`,
      offset,
    });
  }

  #place(index: number): BitmapPlace {
    const structure = `table of bitmap '${this.#bitmap.name}'`;
    const offset = this.#bitmap.tableOffset + index * 8;
    const entry = this.bytes.subarray(index * 8, index * 8 + 8);
    try {
      return decodeBitmapPlace(this.#source, entry, { structure, offset, index });
    } catch (error) {
      // Named, because it is this bitmap that is damaged, and not what the disk depends on.
      throw error instanceof Qcow2Error ? error.inFile(this.#source.path) : error;
    }
  }

  /** The bits of a cluster; undefined if all of them are set. */
  #load(index: number): OpenCluster | undefined {
    const place = this.#place(index);
    if (place === 'ones') return undefined;
    const bits =
      place === 'zeroes' ? new Uint8Array(this.#source.header.clusterSize) : this.#readBits(place);
    return { index, bits, isChanged: false };
  }

  #store(
    cluster: OpenCluster | undefined,
    { fresh, replaced }: { fresh: FreshClusters; replaced: number[] },
  ): void {
    if (cluster?.isChanged !== true) return;
    const { index, bits } = cluster;
    const place = this.#place(index);
    if (typeof place === 'number') replaced.push(place);
    writeU64(this.bytes, index * 8, fresh.store(bits));
    this.isChanged = true;
  }
}

/** Sets in `target` what is set in as many bytes of `source`; both are whole, aligned words. */
function orWords(target: Uint8Array, source: Uint8Array): void {
  const length = target.length / 4;
  const into = new Uint32Array(target.buffer, target.byteOffset, length);
  const from = new Uint32Array(source.buffer, source.byteOffset, length);
  for (let index = 0; index < length; index++) into[index]! |= from[index]!;
}

/** Clears bits from one on; none if there are fewer. */
function clearFrom(bits: Uint8Array, bit: number): void {
  if (bit >= bits.length * 8) return;
  const byte = Math.floor(bit / 8);
  bits[byte]! &= 2 ** (bit % 8) - 1;
  bits.fill(0, byte + 1);
}

/** Sets bits, lowest first in each byte. @returns whether any of them was clear */
export function setBits(bits: Uint8Array, from: number, to: number): boolean {
  let isChanged = false;
  for (let bit = from; bit < to;) {
    const inByte = bit & 7;
    const count = Math.min(8 - inByte, to - bit);
    const mask = (2 ** count - 1) << inByte;
    const byte = bits[bit >>> 3]!;
    if ((byte & mask) !== mask) {
      bits[bit >>> 3] = byte | mask;
      isChanged = true;
    }
    bit += count;
  }
  return isChanged;
}
