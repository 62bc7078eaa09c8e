/** Header extensions as bytes (specification: "Header extensions"), laid out as QEMU does. */

import { alignUp, writeU32, writeU64 } from '../../util/bytes.ts';
import { ExtensionType } from './extensions.ts';
import type { BitmapsExtension, HeaderExtensions, RawExtension } from './extensions.ts';
import { FEATURE_TYPES } from './features.ts';
import type { FeatureName } from './features.ts';

const FEATURE_ROW_BYTES = 48;
const FEATURE_NAME_BYTES = 46;

/** The feature name table that QEMU writes into images of version 3. */
export const FEATURE_NAMES: readonly FeatureName[] = [
  { type: 'incompatible', bit: 0, name: 'dirty bit' },
  { type: 'incompatible', bit: 1, name: 'corrupt bit' },
  { type: 'incompatible', bit: 2, name: 'external data file' },
  { type: 'incompatible', bit: 3, name: 'compression type' },
  { type: 'incompatible', bit: 4, name: 'extended L2 entries' },
  { type: 'compatible', bit: 0, name: 'lazy refcounts' },
  { type: 'autoclear', bit: 0, name: 'bitmaps' },
  { type: 'autoclear', bit: 1, name: 'raw external data' },
];

/** Whether QEMU writes {@link FEATURE_NAMES}: smaller clusters leave too little room for names. */
export function hasFeatureNames(version: 2 | 3, clusterSize: number): boolean {
  return version === 3 && clusterSize >= 8192;
}

/** The order in which QEMU writes the extensions that it knows; unknown ones follow. */
const QEMU_ORDER: readonly number[] = [
  ExtensionType.BACKING_FORMAT,
  ExtensionType.EXTERNAL_DATA_FILE,
  ExtensionType.ENCRYPTION_HEADER,
  ExtensionType.FEATURE_NAMES,
  ExtensionType.BITMAPS,
];

/** Encodes what header extensions say, an extension each, in QEMU's order. */
export function extensionList(extensions: HeaderExtensions): RawExtension[] {
  const { backingFormat, externalDataFile, encryptionHeader, featureNames, bitmaps } = extensions;
  const list: RawExtension[] = [];
  const add = (type: number, data: Uint8Array): number => list.push({ type, data });
  if (backingFormat !== undefined) add(ExtensionType.BACKING_FORMAT, Buffer.from(backingFormat));
  if (externalDataFile !== undefined) {
    add(ExtensionType.EXTERNAL_DATA_FILE, Buffer.from(externalDataFile));
  }
  if (encryptionHeader !== undefined) {
    const data = new Uint8Array(16);
    writeU64(data, 0, encryptionHeader.offset);
    writeU64(data, 8, encryptionHeader.length);
    add(ExtensionType.ENCRYPTION_HEADER, data);
  }
  if (featureNames.length > 0) add(ExtensionType.FEATURE_NAMES, encodeFeatureNames(featureNames));
  if (bitmaps !== undefined) add(ExtensionType.BITMAPS, encodeBitmapsExtension(bitmaps));
  return [...list, ...extensions.unknown];
}

/** Data of the bitmaps extension. */
export function encodeBitmapsExtension(bitmaps: BitmapsExtension): Uint8Array {
  const data = new Uint8Array(24);
  writeU32(data, 0, bitmaps.count);
  writeU64(data, 8, bitmaps.directorySize);
  writeU64(data, 16, bitmaps.directoryOffset);
  return data;
}

/** Data of a feature name table; names are cut at 46 bytes. */
export function encodeFeatureNames(names: readonly FeatureName[]): Uint8Array {
  const data = new Uint8Array(names.length * FEATURE_ROW_BYTES);
  names.forEach(({ type, bit, name }, index) => {
    const row = index * FEATURE_ROW_BYTES;
    data[row] = FEATURE_TYPES.indexOf(type);
    data[row + 1] = bit;
    data.set(Buffer.from(name).subarray(0, FEATURE_NAME_BYTES), row + 2);
  });
  return data;
}

/**
 * A list with the extension of `type` replaced, taken out (`data` undefined), or put where QEMU
 * would have it. All others stay where they are.
 */
export function withExtension(
  list: readonly RawExtension[],
  type: number,
  data: Uint8Array | undefined,
): RawExtension[] {
  const replaced = data === undefined ? [] : [{ type, data }];
  const at = list.findIndex((extension) => extension.type === type);
  if (at >= 0) return list.toSpliced(at, 1, ...replaced);
  const rank = QEMU_ORDER.indexOf(type);
  const before = list.findIndex((extension) => {
    const other = QEMU_ORDER.indexOf(extension.type);
    return other < 0 || other > rank;
  });
  return list.toSpliced(before < 0 ? list.length : before, 0, ...replaced);
}

/** The bytes of a list of extensions, with the end marker. */
export function encodeExtensions(list: readonly RawExtension[]): Uint8Array {
  const length = list.reduce((sum, { data }) => sum + 8 + alignUp(data.length, 8), 8);
  const bytes = new Uint8Array(length);
  let at = 0;
  for (const { type, data } of list) {
    writeU32(bytes, at, type);
    writeU32(bytes, at + 4, data.length);
    bytes.set(data, at + 8);
    at += 8 + alignUp(data.length, 8);
  }
  return bytes;
}
