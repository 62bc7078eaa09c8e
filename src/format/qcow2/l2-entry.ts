/**
 * L1 and L2 entries (specification: "Cluster mapping").
 *
 * An entry is taken apart in its two 32-bit halves, because bit operations on numbers have 32
 * bits. The high half holds flags and the offset's upper 24 bits, the low half the rest.
 */

import { assert } from '../../util/assert.ts';
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

/**
 * The high half of an L1 or standard L2 entry.
 *
 * @param hostOffset a multiple of 512 below 2^53; 0 for none
 * @param flags see {@link EntryFlag}
 */
export function entryHigh(hostOffset: number, flags = 0): number {
  assert(hostOffset % 512 === 0 && Number.isSafeInteger(hostOffset), 'an entry holds an offset');
  return (Math.floor(hostOffset / TWO_32) | flags) >>> 0;
}

/** The low half of that entry; `flags` is 0 or {@link READS_ZERO}. */
export function entryLow(hostOffset: number, flags = 0): number {
  return ((hostOffset % TWO_32) | flags) >>> 0;
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

/** A compressed cluster's entry in its halves; COPIED is never set. */
export interface CompressedEntry {
  high: number;
  low: number;
}

/**
 * Encodes a compressed cluster's entry, as {@link compressedLocation} decodes it.
 *
 * @param location offset and length in bytes of the compressed data, which may be followed by bytes
 * that are not part of it up to the end of their last 512-byte sector
 */
export function compressedEntry(
  location: CompressedLocation,
  clusterBits: number,
): CompressedEntry {
  const { offset, length } = location;
  const splitBit = 62 - (clusterBits - 8) - 32;
  const additionalSectors = Math.floor((offset + length - 1) / 512) - Math.floor(offset / 512);
  const offsetHigh = Math.floor(offset / TWO_32);
  assert(length > 0 && offsetHigh < 2 ** splitBit, 'compressed data is within reach of its entry');
  assert(additionalSectors < 2 ** (30 - splitBit), 'compressed data is smaller than two clusters');
  return {
    high: (EntryFlag.COMPRESSED | (additionalSectors * 2 ** splitBit) | offsetHigh) >>> 0,
    low: (offset % TWO_32) >>> 0,
  };
}

/** Host offsets of compressed data are below this, because the entry's sector count takes bits. */
export function compressedOffsetLimit(clusterBits: number): number {
  return 2 ** (62 - (clusterBits - 8));
}
