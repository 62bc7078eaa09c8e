/** Reads the fields of one on-disk structure; errors name the structure, the field and where it is. */

import { Qcow2Error } from '../../errors.ts';
import type { ErrorCode } from '../../errors.ts';
import { readU16, readU32, readU64, readU64BigInt } from '../../util/bytes.ts';

/** Big-endian fields of `bytes`, which stand at `base` in the file. */
export class FieldReader {
  readonly bytes: Uint8Array;
  /** The structure's name in the specification. */
  readonly structure: string;
  /** Offset of `bytes[0]` in the file. */
  readonly base: number;

  constructor(bytes: Uint8Array, structure: string, base: number) {
    this.bytes = bytes;
    this.structure = structure;
    this.base = base;
  }

  u16(offset: number): number {
    return readU16(this.bytes, offset);
  }

  u32(offset: number): number {
    return readU32(this.bytes, offset);
  }

  /** @throws {Qcow2Error} `TOO_LARGE` above 2^53 */
  u64(offset: number, field: string): number {
    try {
      return readU64(this.bytes, offset, field);
    } catch (error) {
      throw error instanceof Qcow2Error ? this.error(error.code, offset, error.problem) : error;
    }
  }

  u64BigInt(offset: number): bigint {
    return readU64BigInt(this.bytes, offset);
  }

  /** UTF-8 text without its trailing NULs. */
  text(offset: number, length: number): string {
    const text = Buffer.from(this.bytes.buffer, this.bytes.byteOffset + offset, length);
    const end = text.indexOf(0);
    return text.toString('utf8', 0, end < 0 ? length : end);
  }

  /** The same with a copy of its bytes, and whether the text says them exactly. */
  exactText(offset: number, length: number): { text: string; bytes: Uint8Array; isExact: boolean } {
    const text = this.text(offset, length);
    const bytes = Uint8Array.from(this.bytes.subarray(offset, offset + length));
    return { text, bytes, isExact: Buffer.from(text).equals(bytes) };
  }

  /** An error about the field at `offset`. */
  error(code: ErrorCode, offset: number, problem: string, hint?: string): Qcow2Error {
    const { structure, base } = this;
    return new Qcow2Error(code, problem, { structure, offset: base + offset, hint });
  }
}
