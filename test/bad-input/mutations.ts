/** What is done to each field and each structure of a built image. */

import type { BuiltImage, Field } from '../support/image-builder.ts';
import { getField, setField } from '../support/image-patch.ts';

/** A change to an image, by name. */
export interface Mutation {
  name: string;
  /** The changed file. */
  bytes: Buffer;
}

/** A generator of 32-bit numbers from a seed (xorshift). */
export function randomNumbers(seed: number): () => number {
  let state = seed >>> 0 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>>= 0);
  };
}

/** 0, 1, all ones, the limit, one more, the value's neighbours, one bit flipped, and two random ones. */
function valuesFor(field: Field, current: bigint, random: () => number): Map<bigint, string> {
  const ones = (1n << BigInt(8 * field.size)) - 1n;
  const any = (): bigint => ((BigInt(random()) << 32n) | BigInt(random())) & ones;
  const values: [string, bigint][] = [
    ['0', 0n],
    ['1', 1n],
    ['all ones', ones],
    ['its limit', field.limit],
    ['its limit + 1', field.limit + 1n],
    ['its value + 1', current + 1n],
    ['its value with a bit flipped', current ^ (1n << BigInt(random() % (8 * field.size)))],
    ['a random value', any()],
    ['a random value below its limit', field.limit === 0n ? 0n : any() % field.limit],
  ];
  const distinct = new Map<bigint, string>();
  for (const [name, value] of values) {
    if (value >= 0n && value <= ones && value !== current && !distinct.has(value)) {
      distinct.set(value, name);
    }
  }
  return distinct;
}

/** Every field of every structure, set to the values that break readers. */
export function* fieldMutations(image: BuiltImage, seed: number): Generator<Mutation> {
  const random = randomNumbers(seed);
  for (const { fields } of image.structures) {
    for (const field of fields) {
      const current = getField(image.bytes, field);
      for (const [value, name] of valuesFor(field, current, random)) {
        const bytes = Buffer.from(image.bytes);
        setField(bytes, field, value);
        yield { name: `${field.name} = ${name} (0x${value.toString(16)})`, bytes };
      }
    }
  }
}

/** The file cut at the edges of every structure, and a byte before and after them. */
export function* truncations(image: BuiltImage): Generator<Mutation> {
  const lengths = new Map<number, string>();
  for (const { name, offset, length } of image.structures) {
    for (const [edge, at] of [
      ['start', offset],
      ['end', offset + length],
    ] as const) {
      for (const shift of [-1, 0, 1]) {
        const cut = at + shift;
        if (cut < 0 || cut >= image.bytes.length || lengths.has(cut)) continue;
        const where =
          shift === 0 ? 'at' : `${Math.abs(shift)} byte ${shift < 0 ? 'before' : 'after'}`;
        lengths.set(cut, `cut ${where} the ${edge} of ${name} (${cut} bytes)`);
      }
    }
  }
  for (const [length, name] of lengths) yield { name, bytes: image.bytes.subarray(0, length) };
}
