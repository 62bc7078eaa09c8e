/** Header extensions (specification: "Header extensions"): type, length, data padded to 8 bytes. */

import {
  MAX_BACKING_FORMAT_BYTES,
  MAX_BITMAP_DIRECTORY_BYTES,
  MAX_BITMAPS,
  MAX_DATA_FILE_NAME_BYTES,
} from '../../limits.ts';
import { alignUp } from '../../util/bytes.ts';
import { FEATURE_TYPES } from './features.ts';
import type { FeatureName } from './features.ts';
import { FieldReader } from './field-reader.ts';

/** Type numbers of the extensions. */
export const ExtensionType = {
  END: 0,
  BACKING_FORMAT: 0xe2792aca,
  FEATURE_NAMES: 0x6803f857,
  BITMAPS: 0x23852875,
  ENCRYPTION_HEADER: 0x0537be77,
  EXTERNAL_DATA_FILE: 0x44415441,
} as const;

const FEATURE_ROW_BYTES = 48;
const BITMAPS_EXTENSION_BYTES = 24;
const ENCRYPTION_EXTENSION_BYTES = 16;

/** Where the bitmap directory is (specification: "Bitmaps extension"). */
export interface BitmapsExtension {
  count: number;
  /** Bytes. */
  directorySize: number;
  /** Host offset, a multiple of the cluster size. */
  directoryOffset: number;
}

/** Where the encryption header is (specification: "Full disk encryption header pointer"). */
export interface EncryptionHeaderPointer {
  offset: number;
  /** Bytes. */
  length: number;
}

/** An extension as its bytes. */
export interface RawExtension {
  /** See {@link ExtensionType}. */
  type: number;
  /** Without the padding. */
  data: Uint8Array;
}

/** Everything that an image's header extensions say. */
export interface HeaderExtensions {
  backingFormat: string | undefined;
  externalDataFile: string | undefined;
  bitmaps: BitmapsExtension | undefined;
  encryptionHeader: EncryptionHeaderPointer | undefined;
  featureNames: FeatureName[];
  /** Those that are not understood here, kept as they are. */
  unknown: RawExtension[];
}

/** What the extensions lie in. */
export interface ExtensionArea {
  /** The first cluster of the image, or as much of it as the file has. */
  firstCluster: Uint8Array;
  /** Where the extensions start: the header's length. */
  start: number;
  /** Where they end at the latest: the backing file's name or the end of the cluster. */
  end: number;
  /** Bytes of a cluster. */
  clusterSize: number;
}

/** The extensions of an area, not decoded. */
export interface ExtensionList {
  /** In the order of the image; their data are parts of the first cluster, not copies. */
  extensions: (RawExtension & { dataOffset: number })[];
  /** Where the list ends: after the end marker, or where there was no room for one. */
  end: number;
}

/**
 * Takes the extensions apart up to the end marker.
 * @throws {Qcow2Error} `CORRUPT`, if one does not fit
 */
export function splitExtensions({ firstCluster, start, ...area }: ExtensionArea): ExtensionList {
  const extensions: ExtensionList['extensions'] = [];
  const end = Math.min(area.end, firstCluster.length);
  const reader = new FieldReader(firstCluster, 'header extension', 0);
  let at = start;
  while (at + 8 <= end) {
    const type = reader.u32(at);
    const length = reader.u32(at + 4);
    const dataOffset = at + 8;
    if (type === ExtensionType.END) return { extensions, end: dataOffset };
    if (length > end - dataOffset) {
      throw reader.error(
        'CORRUPT',
        at,
        `extension 0x${type.toString(16)} of ${length} bytes does not fit before offset ${end}`,
      );
    }
    const data = firstCluster.subarray(dataOffset, dataOffset + length);
    extensions.push({ type, data, dataOffset });
    at = dataOffset + alignUp(length, 8);
  }
  return { extensions, end: Math.min(at, end) };
}

/**
 * Decodes the extensions up to the end marker.
 * @throws {Qcow2Error} `CORRUPT` or `TOO_LARGE`, naming the extension
 */
export function decodeExtensions(area: ExtensionArea): HeaderExtensions {
  const extensions: HeaderExtensions = {
    backingFormat: undefined,
    externalDataFile: undefined,
    bitmaps: undefined,
    encryptionHeader: undefined,
    featureNames: [],
    unknown: [],
  };
  for (const { type, data, dataOffset } of splitExtensions(area).extensions) {
    const reader = new FieldReader(data, extensionName(type), dataOffset);
    decodeExtension(extensions, type, reader, area);
  }
  return extensions;
}

function extensionName(type: number): string {
  const known = Object.entries(ExtensionType).find(([, value]) => value === type);
  const name = known?.[0].toLowerCase().replaceAll('_', ' ');
  return name === undefined ? 'header extension' : `${name} extension`;
}

function decodeExtension(
  extensions: HeaderExtensions,
  type: number,
  reader: FieldReader,
  area: ExtensionArea,
): void {
  const { length } = reader.bytes;
  switch (type) {
    case ExtensionType.BACKING_FORMAT:
      checkLength(reader, length <= MAX_BACKING_FORMAT_BYTES);
      extensions.backingFormat = reader.text(0, length);
      break;
    case ExtensionType.EXTERNAL_DATA_FILE:
      checkLength(reader, length <= MAX_DATA_FILE_NAME_BYTES);
      extensions.externalDataFile = reader.text(0, length);
      break;
    case ExtensionType.FEATURE_NAMES:
      extensions.featureNames = decodeFeatureNames(reader);
      break;
    case ExtensionType.BITMAPS:
      checkLength(reader, length === BITMAPS_EXTENSION_BYTES);
      extensions.bitmaps = decodeBitmapsExtension(reader, area.clusterSize);
      break;
    case ExtensionType.ENCRYPTION_HEADER:
      checkLength(reader, length === ENCRYPTION_EXTENSION_BYTES);
      extensions.encryptionHeader = {
        offset: reader.u64(0, 'encryption header offset'),
        length: reader.u64(8, 'encryption header length'),
      };
      break;
    default:
      extensions.unknown.push({ type, data: Uint8Array.from(reader.bytes) });
  }
}

function checkLength(reader: FieldReader, isValid: boolean): void {
  if (isValid) return;
  throw reader.error('CORRUPT', -4, `its length cannot be ${reader.bytes.length} bytes`);
}

function decodeFeatureNames(reader: FieldReader): FeatureName[] {
  const names: FeatureName[] = [];
  const { bytes } = reader;
  for (let row = 0; row + FEATURE_ROW_BYTES <= bytes.length; row += FEATURE_ROW_BYTES) {
    const type = FEATURE_TYPES[bytes[row]!];
    const bit = bytes[row + 1]!;
    // Rows of a kind that is not known name nothing that we could report.
    if (type !== undefined && bit < 64) names.push({ type, bit, name: reader.text(row + 2, 46) });
  }
  return names;
}

function decodeBitmapsExtension(reader: FieldReader, clusterSize: number): BitmapsExtension {
  const count = reader.u32(0);
  const directorySize = reader.u64(8, 'bitmap directory size');
  const directoryOffset = reader.u64(16, 'bitmap directory offset');
  if (reader.u32(4) !== 0) throw reader.error('CORRUPT', 4, 'its reserved field is not zero');
  if (count === 0) throw reader.error('CORRUPT', 0, 'it says that there are no bitmaps');
  if (count > MAX_BITMAPS) {
    throw reader.error('TOO_LARGE', 0, `${count} bitmaps are more than ${MAX_BITMAPS}`);
  }
  if (directorySize > MAX_BITMAP_DIRECTORY_BYTES) {
    throw reader.error('TOO_LARGE', 8, `a bitmap directory of ${directorySize} bytes is too large`);
  }
  if (directoryOffset === 0 || directoryOffset % clusterSize !== 0) {
    throw reader.error('CORRUPT', 16, `the directory's offset ${directoryOffset} is not aligned`);
  }
  return { count, directorySize, directoryOffset };
}
