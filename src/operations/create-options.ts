/** What a new image can be: qemu-img's creation options, and which of them go together. */

import type { CompressionType } from '../compression/codec.ts';
import { Qcow2Error } from '../errors.ts';
import { hasFeatureNames, FEATURE_NAMES } from '../format/qcow2/extensions-encode.ts';
import {
  AutoclearFeature,
  CompatibleFeature,
  IncompatibleFeature,
} from '../format/qcow2/features.ts';
import { encodeHeader, QEMU_HEADER_BYTES } from '../format/qcow2/header-encode.ts';
import { featureFlags, l1EntriesFor, V2_HEADER_BYTES } from '../format/qcow2/header.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import {
  MAX_CLUSTER_BITS,
  MAX_DATA_FILE_NAME_BYTES,
  MAX_L1_BYTES,
  MAX_REFCOUNT_ORDER,
  MIN_CLUSTER_BITS,
  MIN_CLUSTER_BITS_EXTENDED_L2,
} from '../limits.ts';
import type { PREALLOCATION_MODES } from './resize.ts';

/** Whether space is set aside for the disk: none, entries for it, or the space itself. */
export type Preallocation = (typeof PREALLOCATION_MODES)[number];

/** The version of the format by the names of its compatibility levels. */
export const COMPAT_LEVELS = { '0.10': 2, v2: 2, '1.1': 3, v3: 3 } as const;

/** One of {@link COMPAT_LEVELS}. */
export type CompatLevel = keyof typeof COMPAT_LEVELS;

/** The options that only a qcow2 image has, by QEMU's names and with its defaults. */
export interface Qcow2CreateOptions {
  /** Version of the format (default 1.1, which is version 3). */
  compat?: CompatLevel | undefined;
  /** Bytes: a power of two, 512 to 2 MiB (default 64 KiB). */
  clusterSize?: number | undefined;
  /** Bits of a refcount: a power of two, 1 to 64 (default 16). */
  refcountBits?: number | undefined;
  /** Let refcounts be written late (default false). */
  lazyRefcounts?: boolean | undefined;
  /** L2 entries that describe subclusters (default false). */
  extendedL2?: boolean | undefined;
  /** How clusters will be compressed (default zlib). */
  compressionType?: CompressionType | undefined;
  /** Name of the file for the guest's data, from the image's directory; it is made anew. */
  dataFile?: string | undefined;
  /** Keep the data file readable as a raw image (default false). */
  dataFileRaw?: boolean | undefined;
  /** Name of the backing file, from the image's directory. */
  backingFile?: string | undefined;
  /** Format of the backing file; required with one. */
  backingFormat?: string | undefined;
}

const DEFAULT_CLUSTER_SIZE = 65_536;
const DEFAULT_REFCOUNT_BITS = 16;

/** The options that say how large the parts of an image are. */
export type GeometryOptions = Pick<
  Qcow2CreateOptions,
  'compat' | 'clusterSize' | 'refcountBits' | 'extendedL2'
>;

/** How large the parts of an image are. */
export interface Geometry {
  /** Version of the format. */
  version: 2 | 3;
  /** Bytes. */
  clusterSize: number;
  /** Refcounts have 2^refcountOrder bits. */
  refcountOrder: number;
  /** Bytes of an L2 entry: 8, or 16 with extended L2 entries. */
  l2EntrySize: 8 | 16;
}

/**
 * How large the parts of an image with these options are.
 * @throws {Qcow2Error} `INVALID_OPTION` for values that cannot be, or not together
 */
export function geometryOf(options: GeometryOptions): Geometry {
  const { compat = '1.1', refcountBits = DEFAULT_REFCOUNT_BITS, extendedL2 = false } = options;
  const { clusterSize = DEFAULT_CLUSTER_SIZE } = options;
  const refcountOrder = Math.log2(refcountBits);
  checkClusterSize(clusterSize);
  if (extendedL2) checkExtendedL2(compat, clusterSize);
  checkRefcounts(refcountOrder);
  if (refcountBits !== DEFAULT_REFCOUNT_BITS) {
    needsVersion3(compat, 'a refcount width other than 16 bits');
  }
  const version = COMPAT_LEVELS[compat];
  return { version, clusterSize, refcountOrder, l2EntrySize: extendedL2 ? 16 : 8 };
}

/**
 * The header that a new image with these options has, with no tables in it yet.
 *
 * @param size bytes, a multiple of 512
 * @throws {Qcow2Error} `INVALID_OPTION` for values that cannot be, or not together; `TOO_LARGE` for
 * a disk or names that are too large
 */
export function newHeader(
  options: Qcow2CreateOptions,
  { size, preallocation }: { size: number; preallocation: Preallocation },
): Qcow2Header {
  const { version, clusterSize, refcountOrder, l2EntrySize } = geometryOf(options);
  checkBacking(options, preallocation);
  checkVersion(options, version);
  checkDataFile(options);
  const l2Entries = clusterSize / l2EntrySize;
  const l1Size = l1EntriesFor(size, { clusterSize, l2Entries });
  checkL1Size(size, l1Size);
  const features = featuresOf(options);
  const header: Qcow2Header = {
    version,
    clusterBits: Math.log2(clusterSize),
    clusterSize,
    size,
    encryption: 'none',
    l1Size,
    l1SizeNeeded: l1Size,
    l1TableOffset: 0,
    refcountTableOffset: 0,
    refcountTableClusters: 0,
    refcountOrder,
    snapshotCount: 0,
    snapshotsOffset: 0,
    ...features,
    ...featureFlags(features),
    compressionType: options.compressionType ?? 'zlib',
    headerLength: version === 2 ? V2_HEADER_BYTES : QEMU_HEADER_BYTES,
    l2EntrySize,
    l2Entries,
    backingFile: options.backingFile,
    extensions: {
      backingFormat: options.backingFormat,
      externalDataFile: options.dataFile,
      bitmaps: undefined,
      encryptionHeader: undefined,
      featureNames: hasFeatureNames(version, clusterSize) ? [...FEATURE_NAMES] : [],
      unknown: [],
    },
  };
  // So that names that do not fit are known before anything is touched.
  encodeHeader(header);
  return header;
}

function invalid(problem: string, hint?: string): Qcow2Error {
  return new Qcow2Error('INVALID_OPTION', problem, { hint });
}

function checkClusterSize(clusterSize: number): void {
  const bits = Math.log2(clusterSize);
  if (Number.isInteger(bits) && bits >= MIN_CLUSTER_BITS && bits <= MAX_CLUSTER_BITS) return;
  throw invalid(`the cluster size must be a power of two from 512 to 2M, not ${clusterSize}`);
}

function checkExtendedL2(compat: CompatLevel, clusterSize: number): void {
  needsVersion3(compat, 'extended L2 entries');
  if (clusterSize < 2 ** MIN_CLUSTER_BITS_EXTENDED_L2) {
    throw invalid(`extended L2 entries need clusters of 16k or more, not ${clusterSize} bytes`);
  }
}

function checkBacking(options: Qcow2CreateOptions, preallocation: Preallocation): void {
  const { backingFile, backingFormat, extendedL2 } = options;
  if (backingFile === undefined) {
    if (backingFormat === undefined) return;
    throw invalid('a backing format is given without a backing file');
  }
  if (backingFile === '') throw invalid('the name of the backing file is empty');
  if (backingFormat === undefined) throw withoutFormat(backingFile);
  if (preallocation !== 'off' && extendedL2 !== true) {
    throw invalid(
      'with a backing file, preallocation would hide it',
      'use it with extended_l2=on, or leave out one of them',
    );
  }
}

/** An error for a backing file whose format was not said: guessing it would be unsafe. */
function withoutFormat(backingFile: string): Qcow2Error {
  return invalid(`the format of the backing file '${backingFile}' is not given`, 'add -F FORMAT');
}

function checkRefcounts(refcountOrder: number): void {
  if (Number.isInteger(refcountOrder) && refcountOrder <= MAX_REFCOUNT_ORDER && refcountOrder >= 0)
    return;
  throw invalid('the refcount width must be 1, 2, 4, 8, 16, 32 or 64 bits');
}

function checkVersion(options: Qcow2CreateOptions, version: 2 | 3): void {
  if (version === 3) return;
  const { compat, lazyRefcounts, dataFile, compressionType } = options;
  if (lazyRefcounts === true) needsVersion3(compat, 'lazy refcounts');
  if (dataFile !== undefined) needsVersion3(compat, 'an external data file');
  if ((compressionType ?? 'zlib') !== 'zlib') {
    needsVersion3(compat, 'a compression type other than zlib');
  }
}

function needsVersion3(compat: CompatLevel = '1.1', what: string): void {
  if (COMPAT_LEVELS[compat] === 3) return;
  throw invalid(`compat=${compat} does not allow ${what}`, 'use compat=1.1');
}

function checkDataFile({ dataFile, dataFileRaw, backingFile }: Qcow2CreateOptions): void {
  if (dataFile === undefined) {
    if (dataFileRaw === true) throw invalid('data_file_raw=on is given without a data_file');
    return;
  }
  if (dataFile === '') throw invalid('the name of the data file is empty');
  if (dataFileRaw === true && backingFile !== undefined) {
    throw invalid(
      'a raw data file holds all of the disk: there cannot be a backing file behind it',
    );
  }
  if (Buffer.byteLength(dataFile) > MAX_DATA_FILE_NAME_BYTES) {
    throw new Qcow2Error('TOO_LARGE', 'the name of the data file is too long');
  }
}

/**
 * Checks that the L1 table of a disk of `size` bytes is not too large.
 * @throws {Qcow2Error} `TOO_LARGE`
 */
export function checkL1Size(size: number, l1Size: number): void {
  if (l1Size <= MAX_L1_BYTES / 8) return;
  throw new Qcow2Error('TOO_LARGE', `a disk of ${size} bytes needs too large an L1 table`, {
    hint: 'an image with larger clusters can have a larger disk',
  });
}

function featuresOf(options: Qcow2CreateOptions) {
  const bits = (...chosen: [isSet: boolean, bit: bigint][]): bigint =>
    chosen.reduce((word, [isSet, bit]) => (isSet ? word | bit : word), 0n);
  const { extendedL2, dataFile, dataFileRaw, compressionType = 'zlib', lazyRefcounts } = options;
  return {
    incompatibleFeatures: bits(
      [dataFile !== undefined, IncompatibleFeature.EXTERNAL_DATA_FILE],
      [compressionType !== 'zlib', IncompatibleFeature.COMPRESSION_TYPE],
      [extendedL2 === true, IncompatibleFeature.EXTENDED_L2],
    ),
    compatibleFeatures: bits([lazyRefcounts === true, CompatibleFeature.LAZY_REFCOUNTS]),
    autoclearFeatures: bits([dataFileRaw === true, AutoclearFeature.RAW_EXTERNAL_DATA]),
  };
}
