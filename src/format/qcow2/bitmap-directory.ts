/** The bitmap directory and bitmap tables (specification: "Bitmaps"). */

import {
  MAX_BITMAP_GRANULARITY_BITS,
  MAX_BITMAP_NAME_BYTES,
  MAX_BITMAP_TABLE_ENTRIES,
  MIN_BITMAP_GRANULARITY_BITS,
} from '../../limits.ts';
import { alignUp, writeU16, writeU32, writeU64 } from '../../util/bytes.ts';
import { FieldReader } from './field-reader.ts';

const NO_BYTES = new Uint8Array(0);
/** Bytes of a directory entry before its extra data. */
const ENTRY_BYTES = 24;

/** Offsets of a directory entry's fields. */
export const BitmapEntryField = {
  TABLE_OFFSET: 0,
  TABLE_SIZE: 8,
  FLAGS: 12,
  TYPE: 16,
  GRANULARITY_BITS: 17,
  NAME_SIZE: 18,
  EXTRA_SIZE: 20,
} as const;

/** Flags of a bitmap. */
export const BitmapFlag = {
  /** The bitmap was not saved properly; its content is not to be trusted. */
  IN_USE: 1,
  /** Writes to the disk are to be recorded in it. */
  AUTO: 2,
  /** Extra data that is not understood does not keep one from using the bitmap. */
  EXTRA_DATA_COMPATIBLE: 4,
} as const;

const KNOWN_FLAGS = BitmapFlag.IN_USE | BitmapFlag.AUTO | BitmapFlag.EXTRA_DATA_COMPATIBLE;
const DIRTY_TRACKING_BITMAP = 1;

/** An entry of the bitmap directory. */
export interface BitmapEntry {
  name: string;
  /** Bytes of the disk that one bit stands for; a power of two. */
  granularity: number;
  /** See {@link BitmapFlag}. */
  flags: number;
  tableOffset: number;
  /** Entries of the bitmap table. */
  tableSize: number;
  extraData: Uint8Array;
  /** The name as its bytes, where the text does not say them exactly. */
  nameBytes?: Uint8Array;
  /** Host offset of the entry. */
  offset: number;
}

/** What {@link decodeBitmapDirectory} decodes. */
export interface BitmapDirectory {
  bytes: Uint8Array;
  /** Host offset of the directory. */
  offset: number;
  /** Number of entries that the extension promises. */
  count: number;
  clusterSize: number;
}

/**
 * Decodes all entries of a bitmap directory.
 * @throws {Qcow2Error} `CORRUPT`, `TOO_LARGE` or `UNSUPPORTED`, naming the entry
 */
export function decodeBitmapDirectory(directory: BitmapDirectory): BitmapEntry[] {
  const { bytes, offset, count, clusterSize } = directory;
  const entries: BitmapEntry[] = [];
  const names = new Set<string>();
  let at = 0;
  while (at < bytes.length) {
    const structure = `bitmap directory entry ${entries.length}`;
    const header = new FieldReader(bytes.subarray(at), structure, offset + at);
    const length = entryLength(header);
    const entry = decodeEntry(
      new FieldReader(bytes.subarray(at, at + length), structure, offset + at),
    );
    if (entry.tableOffset === 0 || entry.tableOffset % clusterSize !== 0) {
      throw header.error('CORRUPT', 0, `its table's offset ${entry.tableOffset} is not aligned`);
    }
    if (names.has(entry.name)) {
      throw header.error('CORRUPT', 0, `there is a second bitmap named '${entry.name}'`);
    }
    names.add(entry.name);
    entries.push(entry);
    if (entries.length > count) break;
    at += length;
  }
  if (entries.length !== count || at !== bytes.length) {
    throw new FieldReader(bytes, 'bitmap directory', offset).error(
      'CORRUPT',
      0,
      `its ${bytes.length} bytes do not hold the ${count} bitmaps that the header promises`,
    );
  }
  return entries;
}

function entryLength(reader: FieldReader): number {
  const available = reader.bytes.length;
  if (available < ENTRY_BYTES) {
    throw reader.error('CORRUPT', 0, 'it does not fit into the directory');
  }
  const nameSize = reader.u16(BitmapEntryField.NAME_SIZE);
  const length = alignUp(ENTRY_BYTES + reader.u32(BitmapEntryField.EXTRA_SIZE) + nameSize, 8);
  if (length > available) throw reader.error('CORRUPT', 0, 'it does not fit into the directory');
  return length;
}

function decodeEntry(reader: FieldReader): BitmapEntry {
  const flags = reader.u32(BitmapEntryField.FLAGS);
  if ((flags & ~KNOWN_FLAGS) !== 0) {
    throw reader.error(
      'CORRUPT',
      BitmapEntryField.FLAGS,
      `reserved flags are set (0x${flags.toString(16)})`,
    );
  }
  const type = reader.bytes[BitmapEntryField.TYPE]!;
  if (type !== DIRTY_TRACKING_BITMAP) {
    throw reader.error('UNSUPPORTED', BitmapEntryField.TYPE, `bitmap type ${type} is not known`);
  }
  const granularityBits = reader.bytes[BitmapEntryField.GRANULARITY_BITS]!;
  if (
    granularityBits < MIN_BITMAP_GRANULARITY_BITS ||
    granularityBits > MAX_BITMAP_GRANULARITY_BITS
  ) {
    throw reader.error(
      'CORRUPT',
      BitmapEntryField.GRANULARITY_BITS,
      `granularity_bits is ${granularityBits}, not ${MIN_BITMAP_GRANULARITY_BITS} to ${MAX_BITMAP_GRANULARITY_BITS}`,
    );
  }
  const tableSize = reader.u32(BitmapEntryField.TABLE_SIZE);
  if (tableSize === 0 || tableSize > MAX_BITMAP_TABLE_ENTRIES) {
    throw reader.error(
      'TOO_LARGE',
      BitmapEntryField.TABLE_SIZE,
      `a table of ${tableSize} entries is out of bounds`,
    );
  }
  const nameSize = reader.u16(BitmapEntryField.NAME_SIZE);
  if (nameSize === 0 || nameSize > MAX_BITMAP_NAME_BYTES) {
    throw reader.error(
      'CORRUPT',
      BitmapEntryField.NAME_SIZE,
      `its name cannot have ${nameSize} bytes`,
    );
  }
  const extraSize = reader.u32(BitmapEntryField.EXTRA_SIZE);
  const name = reader.exactText(ENTRY_BYTES + extraSize, nameSize);
  return {
    name: name.text,
    granularity: 2 ** granularityBits,
    flags,
    tableOffset: reader.u64(BitmapEntryField.TABLE_OFFSET, 'bitmap_table_offset'),
    tableSize,
    // Hardly any has some, and there can be 65,535 of them.
    extraData:
      extraSize === 0
        ? NO_BYTES
        : Uint8Array.from(reader.bytes.subarray(ENTRY_BYTES, ENTRY_BYTES + extraSize)),
    ...(name.isExact ? {} : { nameBytes: name.bytes }),
    offset: reader.base,
  };
}

/** Encodes a bitmap directory, each entry padded to 8 bytes. Where they were does not matter. */
export function encodeBitmapDirectory(entries: readonly BitmapEntry[]): Uint8Array {
  return Buffer.concat(entries.map(encodeEntry));
}

function encodeEntry(entry: BitmapEntry): Uint8Array {
  const { extraData } = entry;
  const name = entry.nameBytes ?? Buffer.from(entry.name);
  const nameStart = ENTRY_BYTES + extraData.length;
  const bytes = new Uint8Array(alignUp(nameStart + name.length, 8));
  writeU64(bytes, BitmapEntryField.TABLE_OFFSET, entry.tableOffset);
  writeU32(bytes, BitmapEntryField.TABLE_SIZE, entry.tableSize);
  writeU32(bytes, BitmapEntryField.FLAGS, entry.flags);
  bytes[BitmapEntryField.TYPE] = DIRTY_TRACKING_BITMAP;
  bytes[BitmapEntryField.GRANULARITY_BITS] = Math.log2(entry.granularity);
  writeU16(bytes, BitmapEntryField.NAME_SIZE, name.length);
  writeU32(bytes, BitmapEntryField.EXTRA_SIZE, extraData.length);
  bytes.set(extraData, ENTRY_BYTES);
  bytes.set(name, nameStart);
  return bytes;
}
