/** FAT12, FAT16 and FAT32 (Microsoft's fatgen103): boot sector, and the label in the root directory. */

import { dosSerial, isPowerOfTwo, optionalSize, sizeOf } from './reader.ts';
import type { Reader, Structure } from './reader.ts';
import type { Filesystem } from './types.ts';

/** Clusters from which on a FAT has the next wider entries. */
const FAT16_CLUSTERS = 4085;
const FAT32_CLUSTERS = 65_525;
const MAX_FAT32_CLUSTERS = 0x0fff_fff6;

const ENTRY_BYTES = 32;
const ATTRIBUTES_OFFSET = 11;
const ATTRIBUTE_VOLUME_LABEL = 0x08;
const ATTRIBUTE_DIRECTORY = 0x10;
/** What marks an entry as a part of a long name. */
const ATTRIBUTES_OF_LONG_NAME = 0x0f;
const DELETED = 0xe5;
/** Bytes of the root directory that are searched: the label is its first entry with all makers. */
const MAX_DIRECTORY_BYTES = 64 * 1024;
const NO_NAME = 'NO NAME';

/** The parameters of a volume, from its boot sector. */
interface Volume {
  boot: Structure;
  sectorBytes: number;
  sectors: number;
  /** Bits of an entry. */
  width: 12 | 16 | 32;
  /** Where the root directory begins, and how much of it is looked at, in bytes. */
  root: { offset: number; length: number };
}

/** Recognises FAT by its parameters: there is no signature that all of its makers write. */
export function recognizeFat(reader: Reader): Filesystem | undefined {
  const boot = reader.at(0, 512);
  const volume = boot === undefined ? undefined : parseVolume(boot);
  if (volume === undefined) return undefined;
  const { sectorBytes, sectors, width } = volume;
  const extended = width === 32 ? 66 : 38;
  // 0x29: serial number, label and type follow; 0x28: only the serial number does.
  const signature = volume.boot.u8(extended);
  const serial = volume.boot.u32(extended + 1);
  const hasSerial = (signature === 0x28 || signature === 0x29) && serial !== 0;
  const bootLabel = signature === 0x29 ? volume.boot.text(extended + 5, 11) : '';
  const label = rootLabel(reader, volume) ?? (bootLabel === NO_NAME ? '' : bootLabel);
  return {
    type: 'vfat',
    usage: 'filesystem',
    version: `FAT${width}`,
    label,
    uuid: hasSerial ? dosSerial(serial) : '',
    ...optionalSize(sizeOf(sectors, sectorBytes)),
  };
}

function parseVolume(boot: Structure): Volume | undefined {
  const sectorBytes = boot.u16(11);
  const sectorsPerCluster = boot.u8(13);
  const reserved = boot.u16(14);
  const fats = boot.u8(16);
  const media = boot.u8(21);
  const isPlausible =
    boot.u16(510) === 0xaa55 &&
    (boot.u8(0) === 0xeb || boot.u8(0) === 0xe9) &&
    isPowerOfTwo(sectorBytes, { from: 512, to: 4096 }) &&
    isPowerOfTwo(sectorsPerCluster, { from: 1, to: 128 }) &&
    reserved > 0 &&
    (fats === 1 || fats === 2) &&
    (media === 0xf0 || media >= 0xf8);
  // Others put their names where FAT has the maker's.
  const isOther = /^(?:NTFS {4}|EXFAT {3}|-FVE-FS-)/.test(boot.latin1(3, 8));
  if (!isPlausible || isOther) return undefined;
  const fatSectors = boot.u16(22) || boot.u32(36);
  const sectors = boot.u16(19) || boot.u32(32);
  const rootSectors = Math.ceil((boot.u16(17) * ENTRY_BYTES) / sectorBytes);
  const dataSector = reserved + fats * fatSectors + rootSectors;
  const clusters = Math.floor((sectors - dataSector) / sectorsPerCluster);
  if (fatSectors === 0 || clusters < 1 || clusters > MAX_FAT32_CLUSTERS) return undefined;
  // FAT32 is told by its empty field too: small volumes of it exist, against the rule.
  const isWide = clusters >= FAT32_CLUSTERS || boot.u16(22) === 0;
  const [rootSector, rootLength] = isWide
    ? [dataSector + (boot.u32(44) - 2) * sectorsPerCluster, sectorsPerCluster]
    : [dataSector - rootSectors, rootSectors];
  const root = {
    offset: rootSector * sectorBytes,
    length: Math.min(rootLength * sectorBytes, MAX_DIRECTORY_BYTES),
  };
  const width = isWide ? 32 : clusters >= FAT16_CLUSTERS ? 16 : 12;
  return { boot, sectorBytes, sectors, width, root };
}

/** The label in the root directory; undefined if it has none. */
function rootLabel(reader: Reader, { root }: Volume): string | undefined {
  const directory = reader.at(root.offset, root.length);
  if (directory === undefined) return undefined;
  for (let entry = 0; entry + ENTRY_BYTES <= root.length; entry += ENTRY_BYTES) {
    const first = directory.u8(entry);
    if (first === 0) return undefined;
    const attributes = directory.u8(entry + ATTRIBUTES_OFFSET);
    const isLabel =
      first !== DELETED &&
      (attributes & ATTRIBUTES_OF_LONG_NAME) !== ATTRIBUTES_OF_LONG_NAME &&
      (attributes & (ATTRIBUTE_VOLUME_LABEL | ATTRIBUTE_DIRECTORY)) === ATTRIBUTE_VOLUME_LABEL;
    if (isLabel) return directory.text(entry, 11);
  }
  return undefined;
}
