/** The header as bytes (specification: "Header"), laid out as QEMU does for a new image. */

import { COMPRESSION_TYPES } from '../../compression/codec.ts';
import { Qcow2Error } from '../../errors.ts';
import { MAX_BACKING_NAME_BYTES } from '../../limits.ts';
import { readU32, readU64, writeU32, writeU64, writeU64BigInt } from '../../util/bytes.ts';
import { encodeExtensions, extensionList } from './extensions-encode.ts';
import { splitExtensions } from './extensions.ts';
import type { RawExtension } from './extensions.ts';
import {
  CRYPT_METHODS,
  decodeHeader,
  HeaderField,
  QCOW2_MAGIC,
  V3_HEADER_BYTES,
} from './header.ts';
import type { Qcow2Header } from './header.ts';

/** Length of the header that QEMU writes in version 3: compression type and padding included. */
export const QEMU_HEADER_BYTES = 112;

/** A field of the header that changes in place: its offset and its length in bytes. */
const CHANGEABLE_FIELDS = {
  size: [HeaderField.SIZE, 8],
  l1Size: [HeaderField.L1_SIZE, 4],
  l1TableOffset: [HeaderField.L1_TABLE_OFFSET, 8],
  refcountTableOffset: [HeaderField.REFCOUNT_TABLE_OFFSET, 8],
  refcountTableClusters: [HeaderField.REFCOUNT_TABLE_CLUSTERS, 4],
  snapshotCount: [HeaderField.NB_SNAPSHOTS, 4],
  snapshotsOffset: [HeaderField.SNAPSHOTS_OFFSET, 8],
  incompatibleFeatures: [HeaderField.INCOMPATIBLE_FEATURES, 8],
  compatibleFeatures: [HeaderField.COMPATIBLE_FEATURES, 8],
  autoclearFeatures: [HeaderField.AUTOCLEAR_FEATURES, 8],
  refcountOrder: [HeaderField.REFCOUNT_ORDER, 4],
} as const satisfies Partial<Record<keyof Qcow2Header, readonly [number, 4 | 8]>>;

/** Fields of a header that can change while the image is open; all within its first 104 bytes. */
export type HeaderFields = Pick<Qcow2Header, keyof typeof CHANGEABLE_FIELDS>;

/** Stores fields in the bytes of a header, as far as these go: version 2 ends at byte 72. */
export function encodeHeaderFields(bytes: Uint8Array, fields: Partial<HeaderFields>): void {
  for (const [name, [offset, length]] of Object.entries(CHANGEABLE_FIELDS)) {
    const value = fields[name as keyof HeaderFields];
    if (value === undefined || offset >= bytes.length) continue;
    if (typeof value === 'bigint') writeU64BigInt(bytes, offset, value);
    else if (length === 8) writeU64(bytes, offset, value);
    else writeU32(bytes, offset, value);
  }
}

/** The parts of a first cluster. */
export interface FirstCluster {
  /** The header's own bytes; where the backing file's name is, is filled in. */
  header: Uint8Array;
  extensions: readonly RawExtension[];
  /** Bytes of the backing file's name; empty for none. */
  backingName: Uint8Array;
}

/**
 * Takes a first cluster apart.
 * @returns its parts, none of them a copy, and the offset behind the last of them
 * @throws {Qcow2Error} what `decodeHeader` throws
 */
export function splitFirstCluster(cluster: Uint8Array): FirstCluster & { end: number } {
  const { clusterSize, headerLength } = decodeHeader(cluster);
  const nameOffset = readU64(cluster, HeaderField.BACKING_FILE_OFFSET, 'backing_file_offset');
  const nameLength = nameOffset === 0 ? 0 : readU32(cluster, HeaderField.BACKING_FILE_SIZE);
  const { extensions, end } = splitExtensions({
    firstCluster: cluster,
    start: headerLength,
    end: nameOffset === 0 ? clusterSize : nameOffset,
    clusterSize,
  });
  return {
    header: cluster.subarray(0, headerLength),
    extensions,
    backingName: cluster.subarray(nameOffset, nameOffset + nameLength),
    end: Math.max(end, nameOffset + nameLength),
  };
}

/** Puts the parts of a first cluster together: header, extensions, backing file's name. */
export function joinFirstCluster({ header, extensions, backingName }: FirstCluster): Uint8Array {
  const list = encodeExtensions(extensions);
  const nameOffset = header.length + list.length;
  const bytes = new Uint8Array(nameOffset + backingName.length);
  bytes.set(header);
  bytes.set(list, header.length);
  bytes.set(backingName, nameOffset);
  writeU64(bytes, HeaderField.BACKING_FILE_OFFSET, backingName.length > 0 ? nameOffset : 0);
  writeU32(bytes, HeaderField.BACKING_FILE_SIZE, backingName.length);
  return bytes;
}

/**
 * Encodes a header with its extensions and the backing file's name, up to the end of the latter.
 * A header of version 3 has `headerLength` bytes ({@link QEMU_HEADER_BYTES} in QEMU's images).
 * @throws {Qcow2Error} `TOO_LARGE` if that is more than a cluster
 */
export function encodeHeader(header: Qcow2Header): Uint8Array {
  const bytes = new Uint8Array(header.headerLength);
  writeU32(bytes, HeaderField.MAGIC, QCOW2_MAGIC);
  writeU32(bytes, HeaderField.VERSION, header.version);
  writeU32(bytes, HeaderField.CLUSTER_BITS, header.clusterBits);
  writeU32(bytes, HeaderField.CRYPT_METHOD, CRYPT_METHODS.indexOf(header.encryption));
  encodeHeaderFields(bytes, header);
  if (header.version === 3) writeU32(bytes, HeaderField.HEADER_LENGTH, header.headerLength);
  if (header.headerLength > V3_HEADER_BYTES) {
    bytes[HeaderField.COMPRESSION_TYPE] = COMPRESSION_TYPES.indexOf(header.compressionType);
  }
  const backingName = encodeBackingName(header.backingFile ?? '');
  const extensions = extensionList(header.extensions);
  const firstCluster = joinFirstCluster({ header: bytes, extensions, backingName });
  checkFits(firstCluster.length, header.clusterSize);
  return firstCluster;
}

/** @throws {Qcow2Error} `TOO_LARGE` above 1023 bytes */
export function encodeBackingName(name: string): Uint8Array {
  const bytes = Buffer.from(name);
  if (bytes.length <= MAX_BACKING_NAME_BYTES) return bytes;
  throw new Qcow2Error(
    'TOO_LARGE',
    `a backing file name of ${bytes.length} bytes is longer than ${MAX_BACKING_NAME_BYTES}`,
    { structure: 'header', hint: 'use a shorter path, perhaps a relative one' },
  );
}

/**
 * Checks that the header with all that follows it fits into the first cluster.
 * @throws {Qcow2Error} `TOO_LARGE`
 */
export function checkFits(lengthBytes: number, clusterSize: number): void {
  if (lengthBytes <= clusterSize) return;
  throw new Qcow2Error(
    'TOO_LARGE',
    `header, extensions and backing file name need ${lengthBytes} bytes, more than the first ` +
      `cluster's ${clusterSize}`,
    { structure: 'header', hint: 'use shorter file names or larger clusters' },
  );
}
