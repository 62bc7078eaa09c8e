/** Changes built images by the names of their fields. */

import { closeSync, ftruncateSync, openSync, writeSync } from 'node:fs';
import type { BuiltImage, Field } from './image-builder.ts';

/** The field of a name. */
export function fieldOf(image: BuiltImage, name: string): Field {
  for (const { fields } of image.structures) {
    const found = fields.find((field) => field.name === name);
    if (found !== undefined) return found;
  }
  throw new Error(`the image has no field ${name}`);
}

/** Stores an unsigned big-endian value in a field. */
export function setField(bytes: Buffer, { offset, size }: Field, value: bigint): void {
  for (let index = 0; index < size; index++) {
    bytes[offset + index] = Number((value >> BigInt(8 * (size - 1 - index))) & 0xffn);
  }
}

/** The unsigned big-endian value of a field. */
export function getField(bytes: Buffer, { offset, size }: Field): bigint {
  return BigInt(`0x${bytes.subarray(offset, offset + size).toString('hex')}`);
}

/** A copy of the image's bytes with some fields set. */
export function withFields(image: BuiltImage, values: Record<string, number | bigint>): Buffer {
  const bytes = Buffer.from(image.bytes);
  for (const [name, value] of Object.entries(values)) {
    setField(bytes, fieldOf(image, name), BigInt(value));
  }
  return bytes;
}

/** Pieces of a file, by offset; what lies between them is a hole. */
export interface SparseFile {
  pieces: [offset: number, bytes: Uint8Array][];
  /** Bytes of the whole file. */
  size: number;
}

/** Writes a file with holes. */
export function writeSparse(path: string, { pieces, size }: SparseFile): void {
  const fd = openSync(path, 'w');
  try {
    for (const [offset, bytes] of pieces) writeSync(fd, bytes, 0, bytes.length, offset);
    ftruncateSync(fd, size);
  } finally {
    closeSync(fd);
  }
}
