/**
 * L1 and L2 entries (specification: "Cluster mapping").
 *
 * An entry is taken apart in its two 32-bit halves, because bit operations on numbers have 32
 * bits. The high half holds flags and the offset's upper 24 bits, the low half the rest.
 */

import { TWO_32 } from '../../util/bytes.ts';

/** Flag bits of the high half of an entry. */
export const EntryFlag = {
  /** Bit 63: the refcount of what it points to is exactly one. */
  COPIED: 0x8000_0000,
  /** Bit 62: the cluster is compressed. */
  COMPRESSED: 0x4000_0000,
} as const;

/** Bit 0 of the low half: a standard cluster reads as zeroes (version 3). */
export const READS_ZERO = 1;

/** Bits of the halves that hold a host offset: 9 to 55. */
export const OFFSET_MASK_HIGH = 0x00ff_ffff;
export const OFFSET_MASK_LOW = 0xffff_fe00;

/** Reserved bits of the halves of an L1 entry, and of a standard L2 entry. */
export const L1_RESERVED_HIGH = 0x7f00_0000;
export const L1_RESERVED_LOW = 0x0000_01ff;
export const L2_RESERVED_HIGH = 0x3f00_0000;
export const L2_RESERVED_LOW = 0x0000_01fe;

/** The host offset in an L1 or standard L2 entry; 0 means none. Below 2^56. */
export function entryOffset(high: number, low: number): number {
  return (high & OFFSET_MASK_HIGH) * TWO_32 + ((low & OFFSET_MASK_LOW) >>> 0);
}

/** Where a compressed cluster is. */
export interface CompressedLocation {
  /** Host offset in bytes, not aligned. Can be above 2^53 in a damaged image. */
  offset: number;
  /** Bytes that may belong to it: up to the end of its last 512-byte sector. */
  length: number;
}

/**
 * Decodes a compressed cluster's descriptor (specification: "Compressed Clusters Descriptor").
 * The split between offset and sector count lies at bit 62 - (clusterBits - 8), which is always
 * in the high half.
 */
export function compressedLocation(
  high: number,
  low: number,
  clusterBits: number,
): CompressedLocation {
  const splitBit = 62 - (clusterBits - 8) - 32;
  const offset = (high & (2 ** splitBit - 1)) * TWO_32 + (low >>> 0);
  const additionalSectors = (high & 0x3fff_ffff) >>> splitBit;
  return { offset, length: (additionalSectors + 1) * 512 - ((low >>> 0) & 511) };
}
