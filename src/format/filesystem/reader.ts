/**
 * Bytes of a device as the recognizers want them: what lies outside, or cannot be read, is not
 * there, and a few small reads serve all of them.
 */

import type { BlockDevice } from '../../device/block-device.ts';
import { Qcow2Error } from '../../errors.ts';

/** Bytes of a block that is kept; most superblocks lie in the first one. */
const BLOCK_BYTES = 4096;
/** Blocks that are kept. */
const MAX_BLOCKS = 64;
/** Bytes of the largest structure that is read at once. */
const MAX_STRUCTURE_BYTES = 256 * 1024;

/** A device to be looked at. */
export class Reader {
  /** Bytes of the device. */
  readonly size: number;
  readonly #device: BlockDevice;
  readonly #blocks = new Map<number, Uint8Array>();

  constructor(device: BlockDevice) {
    this.#device = device;
    this.size = device.size;
  }

  /**
   * The structure of `length` bytes at `offset`.
   * @returns undefined if it does not lie within the device, or cannot be read
   */
  at(offset: number, length: number): Structure | undefined {
    // Written so that NaN fails too: offsets are computed from what the device says.
    if (!(offset >= 0 && length > 0 && offset + length <= this.size)) return undefined;
    if (!Number.isSafeInteger(offset) || length > MAX_STRUCTURE_BYTES) return undefined;
    const start = offset % BLOCK_BYTES;
    if (start + length > BLOCK_BYTES) {
      const bytes = this.#read(offset, length);
      return bytes === undefined ? undefined : new Structure(bytes);
    }
    const block = this.#block(offset - start);
    if (block === undefined) return undefined;
    return new Structure(block.subarray(start, start + length));
  }

  #block(offset: number): Uint8Array | undefined {
    const kept = this.#blocks.get(offset);
    if (kept !== undefined) return kept;
    const block = this.#read(offset, Math.min(BLOCK_BYTES, this.size - offset));
    if (block !== undefined && this.#blocks.size < MAX_BLOCKS) this.#blocks.set(offset, block);
    return block;
  }

  #read(offset: number, length: number): Uint8Array | undefined {
    const bytes = new Uint8Array(length);
    try {
      this.#device.read(bytes, offset);
    } catch (error) {
      if (!(error instanceof Qcow2Error)) throw error;
      return undefined;
    }
    return bytes;
  }
}

/** Bytes with fields in them. Integers are little-endian unless the name says otherwise. */
export class Structure {
  readonly bytes: Uint8Array;
  readonly #view: DataView;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  u8(offset: number): number {
    return this.#view.getUint8(offset);
  }

  u16(offset: number): number {
    return this.#view.getUint16(offset, true);
  }

  u16be(offset: number): number {
    return this.#view.getUint16(offset);
  }

  u32(offset: number): number {
    return this.#view.getUint32(offset, true);
  }

  u32be(offset: number): number {
    return this.#view.getUint32(offset);
  }

  /** Above 2^53 no longer exact: then it is no size or place on any device here. */
  u64(offset: number): number {
    return Number(this.#view.getBigUint64(offset, true));
  }

  u64be(offset: number): number {
    return Number(this.#view.getBigUint64(offset));
  }

  /** All digits of a 64-bit number. */
  u64exact(offset: number, { bigEndian }: { bigEndian: boolean }): bigint {
    return this.#view.getBigUint64(offset, !bigEndian);
  }

  /** Whether the bytes at `offset` are those of `text`, each a character of Latin-1. */
  has(offset: number, text: string): boolean {
    return this.latin1(offset, text.length) === text;
  }

  /** Bytes as characters, unchanged. */
  latin1(offset: number, length: number): string {
    return this.#buffer(offset, length).toString('latin1');
  }

  /** Text in UTF-8 up to the first NUL, without trailing blanks. */
  text(offset: number, length: number): string {
    const bytes = this.#buffer(offset, length);
    const end = bytes.indexOf(0);
    return bytes.toString('utf8', 0, end < 0 ? length : end).trimEnd();
  }

  /** Text in UTF-16 up to the first NUL, without trailing blanks. */
  utf16(offset: number, length: number): string {
    const text = this.#buffer(offset, length).toString('utf16le');
    const end = text.indexOf('\0');
    // Through UTF-8, which turns a surrogate without its other half into U+FFFD.
    return Buffer.from(end < 0 ? text : text.slice(0, end))
      .toString()
      .trimEnd();
  }

  /** Sixteen bytes as a UUID; '' if all are zero. */
  uuid(offset: number): string {
    return formatUuid(this.#buffer(offset, 16));
  }

  #buffer(offset: number, length: number): Buffer {
    const bytes = this.bytes.subarray(offset, offset + length);
    return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }
}

/** Sixteen bytes in the form of a UUID, lower case; '' if all are zero. */
export function formatUuid(bytes: Uint8Array): string {
  const hex = Buffer.from(bytes).toString('hex');
  if (/^0*$/.test(hex)) return '';
  return [0, 8, 12, 16, 20].map((start, i) => hex.slice(start, [8, 12, 16, 20, 32][i])).join('-');
}

/** Whether a number is a power of two within bounds, as block sizes are. */
export function isPowerOfTwo(value: number, { from, to }: { from: number; to: number }): boolean {
  return value >= from && value <= to && Number.isInteger(Math.log2(value));
}

/** A product of two fields as a size in bytes; undefined if it is none that can be. */
export function sizeOf(count: number, unitBytes: number): number | undefined {
  const size = count * unitBytes;
  return Number.isSafeInteger(size) ? size : undefined;
}

/** For a field that is left out of a result where it is not known. */
export function optionalSize(size: number | undefined): { size?: number } {
  return size === undefined ? {} : { size };
}

/** The serial number of a volume as DOS prints it: `1A2B-3C4D`. */
export function dosSerial(serial: number): string {
  const hex = serial.toString(16).toUpperCase().padStart(8, '0');
  return `${hex.slice(0, 4)}-${hex.slice(4)}`;
}
