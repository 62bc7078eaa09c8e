/**
 * The master boot record: four primary partitions in sector 0, and the chain of extended boot
 * records that hold the logical ones.
 *
 * There is no specification; this follows what Linux reads. Integers are little-endian, sectors
 * 512 bytes, and the cylinder fields are ignored as everybody does.
 */

import { MAX_LOGICAL_PARTITIONS } from '../../limits.ts';
import { mbrTypeName } from './type-names.ts';
import { clampToDevice } from './types.ts';
import type { Partition, WarningList } from './types.ts';

/** Bytes of a sector in an MBR. */
export const MBR_SECTOR_BYTES = 512;
/** Type of the entry that covers a disk with a GPT. */
export const MBR_TYPE_GPT_PROTECTIVE = 0xee;

const ENTRIES_OFFSET = 446;
const ENTRY_BYTES = 16;
const DISK_ID_OFFSET = 440;
const SIGNATURE_OFFSET = 510;
const BOOTABLE = 0x80;
const EXTENDED_TYPES: readonly number[] = [0x05, 0x0f, 0x85];

/** One of the four entries of a boot record. */
export interface MbrEntry {
  bootFlag: number;
  type: number;
  /** First sector, relative to what the entry is in. */
  startSector: number;
  sectors: number;
}

/** A master boot record. */
export interface Mbr {
  /** Disk identifier as `0x` and eight hexadecimal digits. */
  diskId: string;
  /** All four, used or not. */
  entries: MbrEntry[];
}

/** Whether an entry describes anything. */
export function isUsed(entry: MbrEntry): boolean {
  return entry.type !== 0 && entry.sectors !== 0;
}

/**
 * Reads sector 0 as a master boot record.
 *
 * @param sector 512 bytes
 * @returns undefined if it is none: no signature, a boot flag that is neither 0 nor 0x80 (then the
 * entries are code or text of a boot sector), or the boot sector of a FAT, exFAT or NTFS filesystem
 */
export function parseMbr(sector: Uint8Array): Mbr | undefined {
  if (!hasSignature(sector) || isFilesystemBootSector(sector)) return undefined;
  const entries = parseEntries(sector);
  if (entries.some(({ bootFlag }) => bootFlag !== 0 && bootFlag !== BOOTABLE)) return undefined;
  const diskId = viewOf(sector).getUint32(DISK_ID_OFFSET, true);
  return { diskId: `0x${diskId.toString(16).padStart(8, '0')}`, entries };
}

/** What the partitions of an MBR are read from. */
export interface MbrSource {
  /** Bytes of the device. */
  deviceSize: number;
  /** Reads one sector by its number; undefined if that fails. */
  readSector(sector: number): Uint8Array | undefined;
}

/** The partitions of a master boot record, logical ones included. */
export function mbrPartitions(mbr: Mbr, source: MbrSource, warnings: WarningList): Partition[] {
  const partitions: Partition[] = [];
  let extended: MbrEntry | undefined;
  for (const [index, entry] of mbr.entries.entries()) {
    if (!isUsed(entry) || entry.type === MBR_TYPE_GPT_PROTECTIVE) continue;
    const isContainer = EXTENDED_TYPES.includes(entry.type);
    const placed = { number: index + 1, startSector: entry.startSector, isContainer };
    addPartition(partitions, { mbr, entry, ...placed }, source.deviceSize, warnings);
    if (!isContainer) continue;
    if (extended === undefined) extended = entry;
    else warnings.add(`partition ${index + 1} is a second extended partition; it was not followed`);
  }
  if (extended !== undefined) addLogical(partitions, mbr, extended, source, warnings);
  return partitions;
}

interface PlacedEntry {
  mbr: Mbr;
  entry: MbrEntry;
  number: number;
  /** First sector on the device. */
  startSector: number;
  isContainer: boolean;
}

function addPartition(
  partitions: Partition[],
  { mbr, entry, number, startSector, isContainer }: PlacedEntry,
  deviceSize: number,
  warnings: WarningList,
): void {
  const offset = startSector * MBR_SECTOR_BYTES;
  const claimed = entry.sectors * MBR_SECTOR_BYTES;
  const label = `partition ${number}`;
  const length = clampToDevice({ label, offset, length: claimed }, deviceSize, warnings);
  if (length === 0) return;
  const type = hexByte(entry.type);
  partitions.push({
    number,
    offset,
    length,
    type,
    typeName: mbrTypeName(type),
    name: '',
    uuid: `${mbr.diskId.slice(2)}-${hexByte(number)}`,
    bootable: entry.bootFlag === BOOTABLE,
    isContainer,
  });
}

/**
 * Follows the chain of extended boot records. Each holds one logical partition, whose start counts
 * from that record, and a link to the next record, which counts from the extended partition.
 */
function addLogical(
  partitions: Partition[],
  mbr: Mbr,
  extended: MbrEntry,
  source: MbrSource,
  warnings: WarningList,
): void {
  const visited = new Set<number>();
  let number = 5;
  let record = extended.startSector;
  for (;;) {
    const place = `the extended boot record at sector ${record}`;
    if (visited.has(record)) {
      warnings.add(`${place} is linked twice; the chain was cut off there`);
      return;
    }
    if (visited.size >= MAX_LOGICAL_PARTITIONS) {
      warnings.add(`the chain of logical partitions was cut off after ${visited.size} links`);
      return;
    }
    visited.add(record);
    if ((record + 1) * MBR_SECTOR_BYTES > source.deviceSize) {
      warnings.add(`${place} is past the end of the disk`);
      return;
    }
    const sector = source.readSector(record);
    if (sector === undefined || !hasSignature(sector)) {
      warnings.add(`${place} ${sector === undefined ? 'cannot be read' : 'has no signature'}`);
      return;
    }
    const used = parseEntries(sector).filter(isUsed);
    const [logical, ...surplus] = used.filter((entry) => !EXTENDED_TYPES.includes(entry.type));
    if (surplus.length > 0) warnings.add(`${place} holds more than one partition`);
    if (logical !== undefined) {
      const startSector = record + logical.startSector;
      const placed = { mbr, entry: logical, number, startSector, isContainer: false };
      addPartition(partitions, placed, source.deviceSize, warnings);
      number++;
    }
    const link = used.find((entry) => EXTENDED_TYPES.includes(entry.type));
    if (link === undefined) return;
    record = extended.startSector + link.startSector;
  }
}

function parseEntries(sector: Uint8Array): MbrEntry[] {
  const view = viewOf(sector);
  return [0, 1, 2, 3].map((index) => {
    const at = ENTRIES_OFFSET + index * ENTRY_BYTES;
    return {
      bootFlag: view.getUint8(at),
      type: view.getUint8(at + 4),
      startSector: view.getUint32(at + 8, true),
      sectors: view.getUint32(at + 12, true),
    };
  });
}

function hasSignature(sector: Uint8Array): boolean {
  return sector[SIGNATURE_OFFSET] === 0x55 && sector[SIGNATURE_OFFSET + 1] === 0xaa;
}

/**
 * Whether a sector starts a FAT, exFAT or NTFS filesystem. Those carry the signature of an MBR,
 * and where an MBR has its entries they have zeroes, code or messages.
 */
function isFilesystemBootSector(sector: Uint8Array): boolean {
  if (sector[0] !== 0xeb && sector[0] !== 0xe9) return false;
  const systemName = Buffer.from(sector.subarray(3, 11)).toString('latin1');
  if (systemName === 'NTFS    ' || systemName === 'EXFAT   ') return true;
  // The BIOS parameter block of FAT (Microsoft's fatgen103, section 3.1).
  const view = viewOf(sector);
  const bytesPerSector = view.getUint16(11, true);
  const sectorsPerCluster = view.getUint8(13);
  const reservedSectors = view.getUint16(14, true);
  const fats = view.getUint8(16);
  const media = view.getUint8(21);
  return (
    [512, 1024, 2048, 4096].includes(bytesPerSector) &&
    sectorsPerCluster !== 0 &&
    (sectorsPerCluster & (sectorsPerCluster - 1)) === 0 &&
    reservedSectors !== 0 &&
    (fats === 1 || fats === 2) &&
    (media === 0xf0 || media >= 0xf8)
  );
}

function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function hexByte(value: number): string {
  return value.toString(16).padStart(2, '0');
}
