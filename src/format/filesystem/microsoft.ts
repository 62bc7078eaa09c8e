/** Later filesystems of Windows, told by the name that their boot sector begins with. */

import { dosSerial, isPowerOfTwo, optionalSize, sizeOf } from './reader.ts';
import type { Reader, Structure } from './reader.ts';
import type { Filesystem } from './types.ts';

const MAX_CLUSTER_BYTES = 32 * 1024 * 1024;
/** Bytes of a root directory or file record that are looked at. */
const MAX_SEARCHED_BYTES = 64 * 1024;

/** exFAT (Microsoft's "exFAT file system specification"). */
export function recognizeExfat(reader: Reader): Filesystem | undefined {
  const boot = reader.at(0, 512);
  if (boot?.has(3, 'EXFAT   ') !== true || boot.u16(510) !== 0xaa55) return undefined;
  const sectorBytes = 2 ** boot.u8(108);
  const clusterBytes = sectorBytes * 2 ** boot.u8(109);
  const isSane =
    isPowerOfTwo(sectorBytes, { from: 512, to: 4096 }) &&
    isPowerOfTwo(clusterBytes, { from: 512, to: MAX_CLUSTER_BYTES });
  if (!isSane) return undefined;
  const rootOffset = boot.u32(88) * sectorBytes + (boot.u32(96) - 2) * clusterBytes;
  return {
    type: 'exfat',
    usage: 'filesystem',
    version: `${boot.u8(105)}.${boot.u8(104)}`,
    label: exfatLabel(reader.at(rootOffset, Math.min(clusterBytes, MAX_SEARCHED_BYTES))),
    uuid: dosSerial(boot.u32(100)),
    ...optionalSize(sizeOf(boot.u64(72), sectorBytes)),
  };
}

/** The volume label entry (section 7.3) of a root directory. */
function exfatLabel(directory: Structure | undefined): string {
  if (directory === undefined) return '';
  for (let entry = 0; entry + 32 <= directory.bytes.length; entry += 32) {
    const type = directory.u8(entry);
    if (type === 0) return '';
    if (type === 0x83) return directory.utf16(entry + 2, 2 * Math.min(directory.u8(entry + 1), 11));
  }
  return '';
}

/** Number of the file record of `$Volume`, which has the label. */
const VOLUME_RECORD = 3;
const ATTRIBUTE_VOLUME_NAME = 0x60;
const ATTRIBUTE_END = 0xffff_ffff;
/** Attributes of a file record that are looked at: it has room for no more than some dozens. */
const MAX_ATTRIBUTES = 64;

/** NTFS: the boot sector, and the file record of `$Volume`. */
export function recognizeNtfs(reader: Reader): Filesystem | undefined {
  const boot = reader.at(0, 512);
  if (boot?.has(3, 'NTFS    ') !== true) return undefined;
  const sectorBytes = boot.u16(11);
  // Above 128 it is the negative of a power of two.
  const factor = boot.u8(13);
  const clusterBytes = sectorBytes * (factor > 128 ? 2 ** (256 - factor) : factor);
  const isSane =
    isPowerOfTwo(sectorBytes, { from: 256, to: 4096 }) &&
    isPowerOfTwo(clusterBytes, { from: 256, to: 2 * 1024 * 1024 });
  if (!isSane) return undefined;
  const serial = boot.u64exact(72, { bigEndian: false });
  return {
    type: 'ntfs',
    usage: 'filesystem',
    version: '',
    label: ntfsLabel(reader, boot, clusterBytes),
    uuid: serial.toString(16).toUpperCase().padStart(16, '0'),
    ...optionalSize(sizeOf(boot.u64(40), sectorBytes)),
  };
}

function ntfsLabel(reader: Reader, boot: Structure, clusterBytes: number): string {
  // The same convention as above, in a signed byte.
  const perRecord = boot.u8(64);
  const recordBytes = perRecord > 127 ? 2 ** (256 - perRecord) : perRecord * clusterBytes;
  if (!isPowerOfTwo(recordBytes, { from: 256, to: MAX_SEARCHED_BYTES })) return '';
  const offset = boot.u64(48) * clusterBytes + VOLUME_RECORD * recordBytes;
  const record = reader.at(offset, recordBytes);
  if (record?.has(0, 'FILE') !== true) return '';
  let attribute = record.u16(20);
  for (let count = 0; count < MAX_ATTRIBUTES && attribute + 24 <= recordBytes; count++) {
    const type = record.u32(attribute);
    const length = record.u32(attribute + 4);
    if (type === ATTRIBUTE_END || length < 24) return '';
    if (type === ATTRIBUTE_VOLUME_NAME) {
      const start = attribute + record.u16(attribute + 20);
      const bytes = Math.min(record.u32(attribute + 16), 512);
      return start + bytes <= recordBytes ? record.utf16(start, bytes) : '';
    }
    attribute += length;
  }
  return '';
}

/** ReFS, by its name alone: there is no public description of more. */
export function recognizeRefs(reader: Reader): Filesystem | undefined {
  const boot = reader.at(0, 512);
  if (boot?.has(0, '\0\0\0ReFS\0') !== true) return undefined;
  return { type: 'ReFS', usage: 'filesystem', version: '', label: '', uuid: '' };
}

/** Where BitLocker To Go, which looks like FAT, has the GUID that tells it. */
const TO_GO_GUID_OFFSET = 424;
/** 4967D63B-2E29-4AD8-8399-F6A339E3D001, as it is stored. */
const BITLOCKER_GUID = '\x3b\xd6\x67\x49\x29\x2e\xd8\x4a\x83\x99\xf6\xa3\x39\xe3\xd0\x01';

/** A volume that BitLocker encrypts. */
export function recognizeBitlocker(reader: Reader): Filesystem | undefined {
  const boot = reader.at(0, 512);
  if (boot === undefined) return undefined;
  const isFixed = boot.has(3, '-FVE-FS-');
  const isToGo = boot.has(3, 'MSWIN4.1') && boot.has(TO_GO_GUID_OFFSET, BITLOCKER_GUID);
  if (!isFixed && !isToGo) return undefined;
  return { type: 'BitLocker', usage: 'encrypted', version: '', label: '', uuid: '' };
}
