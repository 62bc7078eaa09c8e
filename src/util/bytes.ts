/**
 * Big-endian integers in byte arrays, as qcow2 and NBD lay them out.
 *
 * 64-bit values are read as two halves into one `number`. Above `Number.MAX_SAFE_INTEGER` they
 * are an error that names the field, so that no offset is ever silently rounded.
 */

import { Qcow2Error } from '../errors.ts';

/** 2^32: multiplies the high half of a 64-bit value. */
export const TWO_32 = 0x1_0000_0000;

/** Unsigned 16-bit big-endian integer at `offset`. */
export function readU16(bytes: Uint8Array, offset: number): number {
  return (bytes[offset]! << 8) | bytes[offset + 1]!;
}

/** Unsigned 32-bit big-endian integer at `offset`. */
export function readU32(bytes: Uint8Array, offset: number): number {
  return (
    ((bytes[offset]! << 24) |
      (bytes[offset + 1]! << 16) |
      (bytes[offset + 2]! << 8) |
      bytes[offset + 3]!) >>>
    0
  );
}

/** Unsigned 64-bit big-endian integer at `offset`, exact. */
export function readU64BigInt(bytes: Uint8Array, offset: number): bigint {
  return (BigInt(readU32(bytes, offset)) << 32n) | BigInt(readU32(bytes, offset + 4));
}

/**
 * Unsigned 64-bit big-endian integer at `offset`, as a `number`.
 *
 * @param field name of the field, for the error
 * @throws {Qcow2Error} `TOO_LARGE` above `Number.MAX_SAFE_INTEGER`
 */
export function readU64(bytes: Uint8Array, offset: number, field: string): number {
  const value = readU32(bytes, offset) * TWO_32 + readU32(bytes, offset + 4);
  if (value > Number.MAX_SAFE_INTEGER) {
    throw new Qcow2Error(
      'TOO_LARGE',
      `${field} is 0x${readU64BigInt(bytes, offset).toString(16)}, above 2^53`,
    );
  }
  return value;
}

/** Writes `value` as an unsigned 16-bit big-endian integer. */
export function writeU16(bytes: Uint8Array, offset: number, value: number): void {
  bytes[offset] = value >>> 8;
  bytes[offset + 1] = value;
}

/** Writes `value` as an unsigned 32-bit big-endian integer. */
export function writeU32(bytes: Uint8Array, offset: number, value: number): void {
  bytes[offset] = value >>> 24;
  bytes[offset + 1] = value >>> 16;
  bytes[offset + 2] = value >>> 8;
  bytes[offset + 3] = value;
}

/** Writes a non-negative safe integer as an unsigned 64-bit big-endian integer. */
export function writeU64(bytes: Uint8Array, offset: number, value: number): void {
  writeU32(bytes, offset, Math.floor(value / TWO_32));
  writeU32(bytes, offset + 4, value % TWO_32);
}

/** Writes the low 64 bits of `value` as an unsigned 64-bit big-endian integer. */
export function writeU64BigInt(bytes: Uint8Array, offset: number, value: bigint): void {
  writeU32(bytes, offset, Number((value >> 32n) & 0xffff_ffffn));
  writeU32(bytes, offset + 4, Number(value & 0xffff_ffffn));
}

/** `value` rounded up to a multiple of `alignment`; exact for all safe integers. */
export function alignUp(value: number, alignment: number): number {
  const rest = value % alignment;
  return rest === 0 ? value : value + (alignment - rest);
}

/** `value` rounded down to a multiple of `alignment`. */
export function alignDown(value: number, alignment: number): number {
  return value - (value % alignment);
}

const ZEROES = Buffer.alloc(64 * 1024);

/**
 * Whether all of `bytes` is zero. Looks at both ends first, because most data shows itself there,
 * then leaves the comparison to `memcmp`.
 */
export function isAllZero(bytes: Uint8Array): boolean {
  const { length } = bytes;
  if (length === 0) return true;
  if (bytes[0] !== 0 || bytes[length - 1] !== 0 || bytes[length >>> 1] !== 0) return false;
  for (let start = 0; start < length; start += ZEROES.length) {
    const end = Math.min(start + ZEROES.length, length);
    if (ZEROES.compare(bytes, start, end, 0, end - start) !== 0) return false;
  }
  return true;
}
