/**
 * Gives an image its first persistent bitmaps (specification: "Bitmaps").
 *
 * Bits, tables and the directory go to fresh clusters. Once these and their counts are durable, the
 * header goes over to them in one instant: a crash before it leaks them, and nothing else.
 */

import { Qcow2Error } from '../errors.ts';
import { BitmapFlag, encodeBitmapDirectory } from '../format/qcow2/bitmap-directory.ts';
import type { BitmapEntry } from '../format/qcow2/bitmap-directory.ts';
import { AutoclearFeature } from '../format/qcow2/features.ts';
import { MAX_BITMAP_DATA_BYTES } from '../limits.ts';
import { alignUp, writeU64 } from '../util/bytes.ts';
import type { DirtyRange } from './bitmaps.ts';
import type { WriteContext } from './write-context.ts';

/** A bitmap that an image is to get. */
export interface NewBitmap {
  name: string;
  /** Bytes of the disk that one bit stands for; a power of two. */
  granularity: number;
  /** Whether writes to the disk are recorded in it from now on. */
  isEnabled: boolean;
  /** What it marks, in order. */
  dirty: Iterable<DirtyRange>;
}

/**
 * Stores the first bitmaps of an image, durably.
 *
 * @throws {Qcow2Error} `UNSUPPORTED` for an image of version 2, or one that has bitmaps already;
 * `TOO_LARGE` for bitmaps of too many bits; what allocating and writing throw
 */
export function addFirstBitmaps(context: WriteContext, bitmaps: readonly NewBitmap[]): void {
  const { header, committer, headerWriter, metadata } = context;
  if (bitmaps.length === 0) return;
  if (header.version < 3) {
    throw new Qcow2Error('UNSUPPORTED', 'an image of version 2 cannot have bitmaps', {
      hint: 'bitmaps need compat=1.1',
    });
  }
  if (header.extensions.bitmaps !== undefined) {
    throw new Qcow2Error('UNSUPPORTED', 'it has bitmaps of its own, to which none can be added');
  }
  const entries = bitmaps.map((bitmap) => storeBitmap(context, bitmap));
  const bytes = encodeBitmapDirectory(entries);
  const directory = storeInClusters(context, bytes);
  committer.noteNewData();
  committer.commitAll();
  const extension = {
    count: entries.length,
    directorySize: bytes.length,
    directoryOffset: directory,
  };
  const autoclearFeatures = header.autoclearFeatures | AutoclearFeature.BITMAPS;
  headerWriter.rewrite({ bitmaps: extension, fields: { autoclearFeatures } });
  metadata.add({ offset: directory, length: bytes.length, kind: 'bitmap directory' });
  for (const { tableOffset, tableSize } of entries) {
    metadata.add({ offset: tableOffset, length: tableSize * 8, kind: 'bitmap table' });
  }
}

function storeBitmap(context: WriteContext, bitmap: NewBitmap): BitmapEntry {
  const { header } = context;
  const { name, granularity, isEnabled } = bitmap;
  const bitBytes = Math.ceil(Math.ceil(header.size / granularity) / 8);
  if (bitBytes > MAX_BITMAP_DATA_BYTES) {
    throw new Qcow2Error('TOO_LARGE', 'it would have more than 512 MiB of bits', {
      structure: `bitmap '${name}'`,
    });
  }
  const tableSize = Math.ceil(bitBytes / header.clusterSize);
  const table = new Uint8Array(tableSize * 8);
  storeBits(context, bitmap, table);
  return {
    name,
    granularity,
    flags: isEnabled ? BitmapFlag.AUTO : 0,
    tableOffset: storeInClusters(context, table),
    tableSize,
    extraData: new Uint8Array(0),
    offset: 0,
  };
}

/** Stores the clusters of bits that are not all clear, and enters them into the table. */
function storeBits(
  context: WriteContext,
  { granularity, dirty }: NewBitmap,
  table: Uint8Array,
): void {
  const { clusterSize } = context.header;
  const bits = new Uint8Array(clusterSize);
  let current: number | undefined;
  const store = (): void => {
    if (current === undefined) return;
    writeU64(table, current * 8, storeInClusters(context, bits));
    bits.fill(0);
  };
  for (const { offset, length } of dirty) {
    const end = Math.ceil((offset + length) / granularity);
    for (let bit = Math.floor(offset / granularity); bit < end;) {
      const index = Math.floor(bit / (clusterSize * 8));
      if (index !== current) store();
      current = index;
      const base = index * clusterSize * 8;
      const stop = Math.min(end, base + clusterSize * 8);
      setBits(bits, bit - base, stop - base);
      bit = stop;
    }
  }
  store();
}

function setBits(bits: Uint8Array, from: number, to: number): void {
  for (let bit = from; bit < to;) {
    if (bit % 8 === 0 && to - bit >= 8) {
      const wholeEnd = to - (to % 8);
      bits.fill(0xff, bit / 8, wholeEnd / 8);
      bit = wholeEnd;
    } else {
      bits[bit >>> 3] = bits[bit >>> 3]! | (1 << (bit % 8));
      bit++;
    }
  }
}

/** Writes bytes to fresh clusters. @returns the host offset of the first */
function storeInClusters({ header, allocator, file }: WriteContext, bytes: Uint8Array): number {
  const { clusterSize } = header;
  const padded = new Uint8Array(Math.max(clusterSize, alignUp(bytes.length, clusterSize)));
  padded.set(bytes);
  const offset = allocator.allocateContiguous(padded.length / clusterSize);
  file.write(padded, offset);
  return offset;
}
