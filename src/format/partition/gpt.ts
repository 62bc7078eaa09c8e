/**
 * The GUID partition table (UEFI specification, section 5.3): a header and an array of entries,
 * each with a CRC-32, at the start of the disk and again at its end. Integers are little-endian.
 */

import { crc32 } from 'node:zlib';
import { MAX_GPT_ENTRIES, MAX_GPT_ENTRY_BYTES } from '../../limits.ts';
import { gptTypeName } from './type-names.ts';
import { clampToDevice } from './types.ts';
import type { Partition, WarningList } from './types.ts';

const SIGNATURE = 'EFI PART';
const MIN_HEADER_BYTES = 92;
const HEADER_CRC_OFFSET = 16;
const MIN_ENTRY_BYTES = 128;
const NAME_OFFSET = 56;
const NAME_BYTES = 72;
const NO_TYPE = '00000000-0000-0000-0000-000000000000';
/** Attribute bit 2, legacy BIOS bootable. */
const LEGACY_BIOS_BOOTABLE = 4;

/** A header whose own CRC is right. */
export interface GptHeader {
  /** Sector that this header says it is in. */
  myLba: number;
  /** Sector of the other copy. */
  alternateLba: number;
  diskGuid: string;
  /** First sector of the array of entries. */
  entriesLba: number;
  entryCount: number;
  entryBytes: number;
  entriesCrc: number;
}

/** What was found where a header should be: the header, or what is wrong with it. */
export type GptHeaderResult = { header: GptHeader } | { problem: string };

/**
 * Reads a sector as a GPT header and checks its CRC and bounds.
 *
 * @param sector one sector, 512 bytes or more
 * @param lba number of that sector, which the header must name as its own
 */
export function parseGptHeader(sector: Uint8Array, lba: number): GptHeaderResult {
  const view = viewOf(sector);
  if (Buffer.from(sector.subarray(0, 8)).toString('latin1') !== SIGNATURE) {
    return { problem: 'is missing' };
  }
  const headerBytes = view.getUint32(12, true);
  if (headerBytes < MIN_HEADER_BYTES || headerBytes > sector.length) {
    return { problem: `has a header size of ${headerBytes}` };
  }
  const covered = Buffer.from(sector.subarray(0, headerBytes));
  covered.writeUInt32LE(0, HEADER_CRC_OFFSET);
  if (crc32(covered) !== view.getUint32(HEADER_CRC_OFFSET, true)) {
    return { problem: 'has a wrong checksum' };
  }
  const header: GptHeader = {
    myLba: readLba(view, 24),
    alternateLba: readLba(view, 32),
    diskGuid: formatGuid(sector.subarray(56, 72)),
    entriesLba: readLba(view, 72),
    entryCount: view.getUint32(80, true),
    entryBytes: view.getUint32(84, true),
    entriesCrc: view.getUint32(88, true),
  };
  if (header.myLba !== lba) return { problem: `says that it is in sector ${header.myLba}` };
  if (header.entryCount > MAX_GPT_ENTRIES) {
    return { problem: `has ${header.entryCount} entries, more than ${MAX_GPT_ENTRIES}` };
  }
  const { entryBytes } = header;
  if (entryBytes < MIN_ENTRY_BYTES || entryBytes > MAX_GPT_ENTRY_BYTES || entryBytes % 8 !== 0) {
    return { problem: `has entries of ${entryBytes} bytes` };
  }
  return { header };
}

/** A header with its array of entries, both of which have the right CRC. */
export interface Gpt {
  header: GptHeader;
  /** `entryCount` times `entryBytes` bytes. */
  entries: Uint8Array;
}

/** Whether the bytes of an array of entries are those that the header was written for. */
export function entriesMatch(header: GptHeader, entries: Uint8Array): boolean {
  return crc32(entries) === header.entriesCrc;
}

/** The disk that a GPT describes. */
export interface GptDisk {
  /** Bytes of the device. */
  deviceSize: number;
  /** Bytes of a sector. */
  sectorSize: number;
}

/** The partitions of a GPT. */
export function gptPartitions(
  { header, entries }: Gpt,
  { deviceSize, sectorSize }: GptDisk,
  warnings: WarningList,
): Partition[] {
  const partitions: Partition[] = [];
  for (let index = 0; index < header.entryCount; index++) {
    const start = index * header.entryBytes;
    const entry = entries.subarray(start, start + header.entryBytes);
    const type = formatGuid(entry.subarray(0, 16));
    if (type === NO_TYPE) continue;
    const view = viewOf(entry);
    const firstLba = readLba(view, 32);
    const lastLba = readLba(view, 40);
    const label = `partition ${index + 1}`;
    if (lastLba < firstLba) {
      warnings.add(`${label} ends before it starts and was left out`);
      continue;
    }
    const offset = firstLba * sectorSize;
    const claimed = (lastLba - firstLba + 1) * sectorSize;
    const length = clampToDevice({ label, offset, length: claimed }, deviceSize, warnings);
    if (length === 0) continue;
    partitions.push({
      number: index + 1,
      offset,
      length,
      type,
      typeName: gptTypeName(type),
      name: readName(entry.subarray(NAME_OFFSET, NAME_OFFSET + NAME_BYTES)),
      uuid: formatGuid(entry.subarray(16, 32)),
      bootable: (entry[48]! & LEGACY_BIOS_BOOTABLE) !== 0,
      isContainer: false,
    });
  }
  return partitions;
}

/** A GUID in its usual form, upper case. The first three groups are little-endian integers. */
function formatGuid(bytes: Uint8Array): string {
  const view = viewOf(bytes);
  const hex = (value: number, digits: number): string => value.toString(16).padStart(digits, '0');
  const tail = Buffer.from(bytes.subarray(8, 16)).toString('hex');
  return [
    hex(view.getUint32(0, true), 8),
    hex(view.getUint16(4, true), 4),
    hex(view.getUint16(6, true), 4),
    tail.slice(0, 4),
    tail.slice(4),
  ]
    .join('-')
    .toUpperCase();
}

/**
 * A sector number. Above 2^53 it is no longer exact, which does no harm: no device is that large,
 * and all that is done with such a number is to find that out.
 */
function readLba(view: DataView, offset: number): number {
  return Number(view.getBigUint64(offset, true));
}

function readName(bytes: Uint8Array): string {
  const name = Buffer.from(bytes).toString('utf16le');
  const end = name.indexOf('\0');
  // Through UTF-8, which turns a surrogate without its other half into U+FFFD.
  return Buffer.from(end < 0 ? name : name.slice(0, end)).toString();
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
