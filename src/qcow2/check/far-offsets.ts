/**
 * Offsets above 2^53 in damaged headers and bitmap directories.
 *
 * Numbers do not hold them exactly, and images that have one are not opened for reading. A check
 * goes on all the same, because it can tell what else is wrong: it takes such an offset for one
 * that is past the end of any file, and keeps its low bits, which tell whether it is aligned.
 */

import type { BlockDevice } from '../../device/block-device.ts';
import { AutoclearFeature } from '../../format/qcow2/features.ts';
import { ExtensionType } from '../../format/qcow2/extensions.ts';
import {
  decodeHeader,
  firstClusterSize,
  HeaderField,
  V2_HEADER_BYTES,
  V3_HEADER_BYTES,
} from '../../format/qcow2/header.ts';
import type { Qcow2Header } from '../../format/qcow2/header.ts';
import { alignUp, readU32, readU64BigInt, writeU32 } from '../../util/bytes.ts';

/** The high half of an offset just below 2^53. */
const FAR_HIGH = 0x001f_ffff;

/** A type of extension that is not one of the specification's. */
const HIDDEN_TYPE = 0x1dea_f00d;

const TABLE_FIELDS = [
  HeaderField.L1_TABLE_OFFSET,
  HeaderField.REFCOUNT_TABLE_OFFSET,
  HeaderField.SNAPSHOTS_OFFSET,
] as const;

/**
 * Reads a header as the engine does, but allows tables to be past 2^53, and anything in a bitmaps
 * extension that is not to be trusted.
 * @throws {Qcow2Error} for any other damage
 */
export function readDamagedHeader(file: BlockDevice): Qcow2Header {
  const start = new Uint8Array(Math.min(file.size, 24));
  file.read(start, 0);
  const firstCluster = new Uint8Array(Math.min(file.size, firstClusterSize(start)));
  file.read(firstCluster, 0);
  if (firstCluster.length >= V3_HEADER_BYTES) {
    for (const at of TABLE_FIELDS) bringNear(firstCluster, at);
    hideStaleBitmaps(firstCluster);
  }
  return decodeHeader(firstCluster);
}

/** Makes a bitmaps extension without its autoclear bit one of a type that nobody knows. */
function hideStaleBitmaps(bytes: Uint8Array): void {
  const isVersion3 = readU32(bytes, HeaderField.VERSION) >= 3;
  const autoclear = isVersion3 ? readU64BigInt(bytes, HeaderField.AUTOCLEAR_FEATURES) : 0n;
  if ((autoclear & AutoclearFeature.BITMAPS) !== 0n) return;
  let at = isVersion3 ? readU32(bytes, HeaderField.HEADER_LENGTH) : V2_HEADER_BYTES;
  while (at + 8 <= bytes.length) {
    const type = readU32(bytes, at);
    const length = readU32(bytes, at + 4);
    if (type === ExtensionType.END) return;
    if (type === ExtensionType.BITMAPS && length === 24) writeU32(bytes, at, HIDDEN_TYPE);
    at += 8 + alignUp(length, 8);
  }
}

/**
 * Makes an offset between 2^53 and 2^63 one that a number holds; beyond, nothing can be read.
 * @returns the offset as it was, if it was changed
 */
export function bringNear(bytes: Uint8Array, at: number): bigint | undefined {
  const high = readU32(bytes, at);
  if (high <= FAR_HIGH || high >= 0x8000_0000) return undefined;
  const exact = readU64BigInt(bytes, at);
  writeU32(bytes, at, FAR_HIGH);
  return exact;
}

/** An offset of the header in hexadecimal, exactly as the file has it. */
export function hexHeaderField(file: BlockDevice, field: (typeof TABLE_FIELDS)[number]): string {
  const bytes = new Uint8Array(8);
  file.read(bytes, field);
  return readU64BigInt(bytes, 0).toString(16);
}

/** Whether {@link readDamagedHeader} has hidden a bitmaps extension. */
export function hasHiddenBitmaps({ extensions }: Qcow2Header): boolean {
  return extensions.unknown.some(({ type }) => type === HIDDEN_TYPE);
}

/** Whether QEMU refuses to open an image for what its autoclear bits promise. */
export function promisesRawDataFileWithoutOne(header: Qcow2Header): boolean {
  const isRaw = (header.autoclearFeatures & AutoclearFeature.RAW_EXTERNAL_DATA) !== 0n;
  return isRaw && !header.hasExternalDataFile;
}
