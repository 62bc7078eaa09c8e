/** The header (specification: "Header"): the first bytes of every image, versions 2 and 3. */

import { COMPRESSION_TYPES } from '../../compression/codec.ts';
import type { CompressionType } from '../../compression/codec.ts';
import { Qcow2Error } from '../../errors.ts';
import {
  MAX_BACKING_NAME_BYTES,
  MAX_CLUSTER_BITS,
  MAX_L1_BYTES,
  MAX_REFCOUNT_ORDER,
  MAX_REFCOUNT_TABLE_BYTES,
  MAX_SNAPSHOTS,
  MIN_CLUSTER_BITS,
  MIN_CLUSTER_BITS_EXTENDED_L2,
} from '../../limits.ts';
import { readU32 } from '../../util/bytes.ts';
import { decodeExtensions } from './extensions.ts';
import type { HeaderExtensions } from './extensions.ts';
import {
  AutoclearFeature,
  CompatibleFeature,
  describeFeatures,
  IncompatibleFeature,
  KNOWN_INCOMPATIBLE,
  UNFINISHED_FEATURE,
} from './features.ts';
import { FieldReader } from './field-reader.ts';

/** `QFI\xfb` */
export const QCOW2_MAGIC = 0x514649fb;

/** Header lengths by version; from version 3 on the length is a field. */
export const V2_HEADER_BYTES = 72;
export const V3_HEADER_BYTES = 104;

/** Offsets of the header's fields. */
export const HeaderField = {
  MAGIC: 0,
  VERSION: 4,
  BACKING_FILE_OFFSET: 8,
  BACKING_FILE_SIZE: 16,
  CLUSTER_BITS: 20,
  SIZE: 24,
  CRYPT_METHOD: 32,
  L1_SIZE: 36,
  L1_TABLE_OFFSET: 40,
  REFCOUNT_TABLE_OFFSET: 48,
  REFCOUNT_TABLE_CLUSTERS: 56,
  NB_SNAPSHOTS: 60,
  SNAPSHOTS_OFFSET: 64,
  INCOMPATIBLE_FEATURES: 72,
  COMPATIBLE_FEATURES: 80,
  AUTOCLEAR_FEATURES: 88,
  REFCOUNT_ORDER: 96,
  HEADER_LENGTH: 100,
  COMPRESSION_TYPE: 104,
} as const;

/** Names of the encryption methods by number. */
export const CRYPT_METHODS = ['none', 'AES', 'LUKS'] as const;

/** A header, decoded and checked. */
export interface Qcow2Header {
  /** Version of the format. */
  version: 2 | 3;
  /** Clusters have 2^clusterBits bytes; 9 to 21. */
  clusterBits: number;
  /** Bytes. */
  clusterSize: number;
  /** Disk size in bytes, a multiple of 512 (QEMU rounds the field down). */
  size: number;
  /** How guest data is encrypted. */
  encryption: (typeof CRYPT_METHODS)[number];
  /** Entries of the active L1 table. */
  l1Size: number;
  /** Entries that the disk size needs; those after it describe VM state. */
  l1SizeNeeded: number;
  /** Host offset of the active L1 table in bytes. */
  l1TableOffset: number;
  /** Host offset of the refcount table in bytes. */
  refcountTableOffset: number;
  /** Clusters that the refcount table occupies. */
  refcountTableClusters: number;
  /** Refcounts have 2^refcountOrder bits. */
  refcountOrder: number;
  /** Internal snapshots in the snapshot table. */
  snapshotCount: number;
  /** Host offset of the snapshot table in bytes. */
  snapshotsOffset: number;
  /** Feature bits that a reader must know. */
  incompatibleFeatures: bigint;
  /** Feature bits that a reader may ignore. */
  compatibleFeatures: bigint;
  /** Feature bits that a writer clears unless it maintains what they promise. */
  autoclearFeatures: bigint;
  /** Refcounts may be stale. */
  isDirty: boolean;
  /** A structure is damaged; the image must not be written. */
  isCorrupt: boolean;
  /** Refcounts may be updated late. */
  hasLazyRefcounts: boolean;
  /** L2 entries describe subclusters. */
  hasExtendedL2: boolean;
  /** Guest data is in the external data file. */
  hasExternalDataFile: boolean;
  /** The external data file reads as a raw image. */
  isDataFileRaw: boolean;
  /** The bitmaps extension can be trusted. */
  areBitmapsValid: boolean;
  /** How compressed clusters are compressed. */
  compressionType: CompressionType;
  /** Bytes of the header without its extensions. */
  headerLength: number;
  /** Bytes of one L2 entry: 8, or 16 with extended L2 entries. */
  l2EntrySize: 8 | 16;
  /** Entries of an L2 table. */
  l2Entries: number;
  /** Name of the backing file as the image has it. */
  backingFile: string | undefined;
  /** What the header extensions say. */
  extensions: HeaderExtensions;
}

/** Whether `bytes`, the start of a file, begin as a qcow2 image of any version does. */
export function isQcow2(bytes: Uint8Array): boolean {
  return (
    bytes.length >= 8 &&
    readU32(bytes, HeaderField.MAGIC) === QCOW2_MAGIC &&
    readU32(bytes, HeaderField.VERSION) >= 2
  );
}

/**
 * The size of the first cluster as the header gives it, to know how much to read for
 * {@link decodeHeader}; the smallest cluster if the field is out of bounds.
 */
export function firstClusterSize(bytes: Uint8Array): number {
  const clusterBits = bytes.length < 24 ? 0 : readU32(bytes, HeaderField.CLUSTER_BITS);
  const isValid = clusterBits >= MIN_CLUSTER_BITS && clusterBits <= MAX_CLUSTER_BITS;
  return 2 ** (isValid ? clusterBits : MIN_CLUSTER_BITS);
}

/**
 * Decodes and checks the header, its extensions and the backing file's name.
 *
 * @param firstCluster the image's first cluster, or all of the file where it is shorter
 * @throws {Qcow2Error} `NOT_THIS_FORMAT`, `UNSUPPORTED`, `CORRUPT` or `TOO_LARGE`
 */
export function decodeHeader(firstCluster: Uint8Array): Qcow2Header {
  const reader = new FieldReader(firstCluster, 'header', 0);
  const version = decodeVersion(reader);
  const clusterBits = reader.u32(HeaderField.CLUSTER_BITS);
  if (clusterBits < MIN_CLUSTER_BITS || clusterBits > MAX_CLUSTER_BITS) {
    throw reader.error(
      'CORRUPT',
      HeaderField.CLUSTER_BITS,
      `cluster_bits is ${clusterBits}, not ${MIN_CLUSTER_BITS} to ${MAX_CLUSTER_BITS}`,
    );
  }
  const clusterSize = 2 ** clusterBits;
  const headerLength = decodeHeaderLength(reader, version, clusterSize);
  const backing = decodeBackingName(reader, clusterSize);
  const extensions = decodeExtensions({
    firstCluster,
    start: headerLength,
    end: backing?.offset ?? clusterSize,
    clusterSize,
  });
  const features = decodeFeatures(reader, version, extensions);
  const { hasExtendedL2 } = features;
  if (hasExtendedL2 && clusterBits < MIN_CLUSTER_BITS_EXTENDED_L2) {
    throw reader.error(
      'CORRUPT',
      HeaderField.CLUSTER_BITS,
      `extended L2 entries need clusters of 16 KiB or more, not ${clusterSize} bytes`,
    );
  }
  const l2EntrySize = hasExtendedL2 ? 16 : 8;
  const l2Entries = clusterSize / l2EntrySize;
  const sizeField = reader.u64(HeaderField.SIZE, 'size');
  const size = sizeField - (sizeField % 512);
  return {
    version,
    clusterBits,
    clusterSize,
    size,
    encryption: decodeEncryption(reader),
    ...decodeTables(reader, { clusterSize, l2Entries, size }),
    refcountOrder: decodeRefcountOrder(reader, version),
    ...features,
    compressionType: decodeCompressionType(reader, headerLength, features.incompatibleFeatures),
    headerLength,
    l2EntrySize,
    l2Entries,
    backingFile: backing?.name,
    extensions,
  };
}

function decodeVersion(reader: FieldReader): 2 | 3 {
  const { bytes } = reader;
  if (bytes.length < 8 || reader.u32(HeaderField.MAGIC) !== QCOW2_MAGIC) {
    throw reader.error('NOT_THIS_FORMAT', HeaderField.MAGIC, 'it is not a qcow2 image');
  }
  const version = reader.u32(HeaderField.VERSION);
  if (version !== 2 && version !== 3) {
    throw reader.error(
      'UNSUPPORTED',
      HeaderField.VERSION,
      `version ${version} is not known; 2 and 3 are`,
    );
  }
  const length = version === 2 ? V2_HEADER_BYTES : V3_HEADER_BYTES;
  if (bytes.length < length) {
    throw reader.error(
      'TRUNCATED',
      bytes.length,
      `the file ends before the header's ${length} bytes`,
    );
  }
  return version;
}

function decodeHeaderLength(reader: FieldReader, version: 2 | 3, clusterSize: number): number {
  if (version === 2) return V2_HEADER_BYTES;
  const length = reader.u32(HeaderField.HEADER_LENGTH);
  if (length < V3_HEADER_BYTES || length > clusterSize || length % 8 !== 0) {
    throw reader.error(
      'CORRUPT',
      HeaderField.HEADER_LENGTH,
      `header_length is ${length}, not a multiple of 8 from ${V3_HEADER_BYTES} to ${clusterSize}`,
    );
  }
  if (length > reader.bytes.length) {
    throw reader.error('TRUNCATED', reader.bytes.length, `the file ends inside the header`);
  }
  return length;
}

function decodeBackingName(
  reader: FieldReader,
  clusterSize: number,
): { offset: number; name: string } | undefined {
  const offset = reader.u64(HeaderField.BACKING_FILE_OFFSET, 'backing_file_offset');
  if (offset === 0) return undefined;
  const length = reader.u32(HeaderField.BACKING_FILE_SIZE);
  if (offset > clusterSize) {
    throw reader.error(
      'CORRUPT',
      HeaderField.BACKING_FILE_OFFSET,
      `the backing file name at offset ${offset} is outside the first cluster`,
    );
  }
  if (length > Math.min(MAX_BACKING_NAME_BYTES, clusterSize - offset)) {
    throw reader.error(
      'TOO_LARGE',
      HeaderField.BACKING_FILE_SIZE,
      `a backing file name of ${length} bytes does not fit into the first cluster`,
    );
  }
  if (offset + length > reader.bytes.length) {
    throw reader.error('TRUNCATED', offset, 'the file ends inside the backing file name');
  }
  // A name of no bytes is no backing file.
  return { offset, name: reader.text(offset, length) };
}

function decodeFeatures(reader: FieldReader, version: 2 | 3, { featureNames }: HeaderExtensions) {
  const field = (offset: number): bigint => (version === 2 ? 0n : reader.u64BigInt(offset));
  const incompatibleFeatures = field(HeaderField.INCOMPATIBLE_FEATURES);
  const compatibleFeatures = field(HeaderField.COMPATIBLE_FEATURES);
  const autoclearFeatures = field(HeaderField.AUTOCLEAR_FEATURES);
  const unknown = incompatibleFeatures & ~KNOWN_INCOMPATIBLE;
  if (unknown === UNFINISHED_FEATURE) {
    throw reader.error(
      'UNSUPPORTED',
      HeaderField.INCOMPATIBLE_FEATURES,
      'it is not finished: what was making it was killed, or is still at it',
    );
  }
  if (unknown !== 0n) {
    const described = describeFeatures(unknown, 'incompatible', featureNames);
    throw reader.error(
      'UNSUPPORTED',
      HeaderField.INCOMPATIBLE_FEATURES,
      `it needs a feature that is not known here: ${described}`,
    );
  }
  const words = { incompatibleFeatures, compatibleFeatures, autoclearFeatures };
  return { ...words, ...featureFlags(words) };
}

/** The three feature fields of a header; all zero in version 2. */
export type FeatureWords = Pick<
  Qcow2Header,
  'incompatibleFeatures' | 'compatibleFeatures' | 'autoclearFeatures'
>;

/** The fields of a header that tell what its feature bits say. */
export type FeatureFlags = Pick<
  Qcow2Header,
  | 'isDirty'
  | 'isCorrupt'
  | 'hasLazyRefcounts'
  | 'hasExtendedL2'
  | 'hasExternalDataFile'
  | 'isDataFileRaw'
  | 'areBitmapsValid'
>;

/** What the feature bits say. */
export function featureFlags(words: FeatureWords): FeatureFlags {
  const { incompatibleFeatures, compatibleFeatures, autoclearFeatures } = words;
  const has = (features: bigint, bit: bigint): boolean => (features & bit) !== 0n;
  const hasExternalDataFile = has(incompatibleFeatures, IncompatibleFeature.EXTERNAL_DATA_FILE);
  return {
    isDirty: has(incompatibleFeatures, IncompatibleFeature.DIRTY),
    isCorrupt: has(incompatibleFeatures, IncompatibleFeature.CORRUPT),
    hasLazyRefcounts: has(compatibleFeatures, CompatibleFeature.LAZY_REFCOUNTS),
    hasExtendedL2: has(incompatibleFeatures, IncompatibleFeature.EXTENDED_L2),
    hasExternalDataFile,
    isDataFileRaw:
      hasExternalDataFile && has(autoclearFeatures, AutoclearFeature.RAW_EXTERNAL_DATA),
    areBitmapsValid: has(autoclearFeatures, AutoclearFeature.BITMAPS),
  };
}

function decodeCompressionType(
  reader: FieldReader,
  headerLength: number,
  incompatibleFeatures: bigint,
): CompressionType {
  const number = headerLength > V3_HEADER_BYTES ? reader.bytes[HeaderField.COMPRESSION_TYPE]! : 0;
  const type = COMPRESSION_TYPES[number];
  if (type === undefined) {
    throw reader.error(
      'UNSUPPORTED',
      HeaderField.COMPRESSION_TYPE,
      `compression type ${number} is not known; ${COMPRESSION_TYPES.join(' and ')} are`,
    );
  }
  const isFlagged = (incompatibleFeatures & IncompatibleFeature.COMPRESSION_TYPE) !== 0n;
  if (isFlagged !== (number !== 0)) {
    throw reader.error(
      'CORRUPT',
      HeaderField.COMPRESSION_TYPE,
      `compression type ${number} (${type}) contradicts incompatible feature bit 3`,
    );
  }
  return type;
}

function decodeRefcountOrder(reader: FieldReader, version: 2 | 3): number {
  if (version === 2) return 4;
  const order = reader.u32(HeaderField.REFCOUNT_ORDER);
  if (order > MAX_REFCOUNT_ORDER) {
    throw reader.error(
      'CORRUPT',
      HeaderField.REFCOUNT_ORDER,
      `refcount_order is ${order}, above ${MAX_REFCOUNT_ORDER} (64 bits)`,
    );
  }
  return order;
}

function decodeEncryption(reader: FieldReader): Qcow2Header['encryption'] {
  const method = reader.u32(HeaderField.CRYPT_METHOD);
  const name = CRYPT_METHODS[method];
  if (name === undefined) {
    throw reader.error(
      'UNSUPPORTED',
      HeaderField.CRYPT_METHOD,
      `encryption method ${method} is not known`,
    );
  }
  return name;
}

/** What the bounds of the tables depend on. */
type Geometry = Pick<Qcow2Header, 'clusterSize' | 'l2Entries' | 'size'>;

/** Entries of the L1 table that a disk of `size` bytes needs. */
export function l1EntriesFor(
  size: number,
  { clusterSize, l2Entries }: Pick<Qcow2Header, 'clusterSize' | 'l2Entries'>,
): number {
  return Math.ceil(size / (clusterSize * l2Entries));
}

function decodeTables(reader: FieldReader, { clusterSize, l2Entries, size }: Geometry) {
  const tableOffset = (field: number, name: string): number => {
    const offset = reader.u64(field, name);
    if (offset % clusterSize !== 0) {
      throw reader.error(
        'CORRUPT',
        field,
        `${name} ${offset} is not a multiple of the cluster size`,
      );
    }
    return offset;
  };
  const l1Size = reader.u32(HeaderField.L1_SIZE);
  if (l1Size > MAX_L1_BYTES / 8) {
    throw reader.error(
      'TOO_LARGE',
      HeaderField.L1_SIZE,
      `an L1 table of ${l1Size} entries is too large`,
    );
  }
  const l1SizeNeeded = l1EntriesFor(size, { clusterSize, l2Entries });
  if (l1SizeNeeded > MAX_L1_BYTES / 8) {
    throw reader.error(
      'TOO_LARGE',
      HeaderField.SIZE,
      `a disk of ${size} bytes needs too large an L1 table`,
    );
  }
  if (l1Size < l1SizeNeeded) {
    throw reader.error(
      'CORRUPT',
      HeaderField.L1_SIZE,
      `an L1 table of ${l1Size} entries is too small for the disk, which needs ${l1SizeNeeded}`,
    );
  }
  const refcountTableClusters = reader.u32(HeaderField.REFCOUNT_TABLE_CLUSTERS);
  if (refcountTableClusters * clusterSize > MAX_REFCOUNT_TABLE_BYTES) {
    throw reader.error(
      'TOO_LARGE',
      HeaderField.REFCOUNT_TABLE_CLUSTERS,
      `a refcount table of ${refcountTableClusters} clusters is too large`,
    );
  }
  const snapshotCount = reader.u32(HeaderField.NB_SNAPSHOTS);
  if (snapshotCount > MAX_SNAPSHOTS) {
    throw reader.error(
      'TOO_LARGE',
      HeaderField.NB_SNAPSHOTS,
      `${snapshotCount} snapshots are more than ${MAX_SNAPSHOTS}`,
    );
  }
  return {
    l1Size,
    l1SizeNeeded,
    l1TableOffset: tableOffset(HeaderField.L1_TABLE_OFFSET, 'l1_table_offset'),
    refcountTableOffset: tableOffset(HeaderField.REFCOUNT_TABLE_OFFSET, 'refcount_table_offset'),
    refcountTableClusters,
    snapshotCount,
    snapshotsOffset: tableOffset(HeaderField.SNAPSHOTS_OFFSET, 'snapshots_offset'),
  };
}

/** An error for data that cannot be read because it is encrypted. */
export function encryptedError(method: Qcow2Header['encryption']): Qcow2Error {
  return new Qcow2Error(
    'UNSUPPORTED',
    `its data is encrypted (${method}), which is not read here`,
    {
      structure: 'header',
      offset: HeaderField.CRYPT_METHOD,
    },
  );
}
