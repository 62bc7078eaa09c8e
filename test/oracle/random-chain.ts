/** Random backing chains, and what is written to each of their images, as fast-check makes them. */

import fc from 'fast-check';

/** Something that is done to a range of an image, in bytes. */
export interface RangeOperation {
  kind: 'write' | 'zero' | 'unmap' | 'discard';
  offset: number;
  length: number;
  pattern: number;
}

/** Something that is done to an image. */
export type Operation =
  | RangeOperation
  /** A whole cluster. */
  | { kind: 'compress'; cluster: number; pattern: number }
  | { kind: 'snapshot' };

/** A qcow2 image or a raw file of a chain. */
export interface Layer {
  format: 'qcow2' | 'raw';
  /** Bytes. */
  size: number;
  clusterBits: number;
  version: 2 | 3;
  refcountBits: number;
  extendedL2: boolean;
  compression: 'zlib' | 'zstd';
  dataFile: 'none' | 'plain' | 'raw';
  preallocation: 'off' | 'metadata' | 'falloc' | 'full';
  lazyRefcounts: boolean;
  operations: Operation[];
}

/** The base first. Only the base can be raw. */
export type Chain = Layer[];

const SECTOR = 512;
const MAX_SECTORS = (3 * 1024 * 1024) / SECTOR;

function sectors(max: number): fc.Arbitrary<number> {
  // Even numbers of sectors often enough for whole clusters to be hit.
  return fc.oneof(
    fc.integer({ min: 0, max }).map((count) => count * SECTOR),
    fc.integer({ min: 0, max: Math.floor(max / 128) }).map((count) => count * 128 * SECTOR),
  );
}

function operations(): fc.Arbitrary<Operation[]> {
  const pattern = fc.integer({ min: 0, max: 255 });
  const range = fc.record({
    kind: fc.constantFrom('write', 'write', 'write', 'zero', 'unmap', 'discard'),
    offset: sectors(MAX_SECTORS),
    length: sectors(MAX_SECTORS / 4),
    pattern,
  });
  const compress = fc.record({
    kind: fc.constant('compress'),
    cluster: fc.integer({ min: 0, max: 60 }),
    pattern,
  });
  const snapshot = fc.record({ kind: fc.constant('snapshot') });
  return fc.array(
    fc.oneof(
      { weight: 6, arbitrary: range },
      { weight: 3, arbitrary: compress },
      { weight: 1, arbitrary: snapshot },
    ),
    { maxLength: 10 },
  );
}

function layers(): fc.Arbitrary<Layer> {
  return fc.record({
    format: fc.constantFrom('qcow2', 'qcow2', 'raw'),
    size: fc.integer({ min: 1, max: MAX_SECTORS }).map((count) => count * SECTOR),
    clusterBits: fc.integer({ min: 9, max: 21 }),
    version: fc.constantFrom(3, 3, 2),
    refcountBits: fc.constantFrom(16, 16, 1, 2, 4, 8, 32, 64),
    extendedL2: fc.boolean(),
    compression: fc.constantFrom('zlib', 'zstd'),
    dataFile: fc.constantFrom('none', 'none', 'none', 'plain', 'raw'),
    preallocation: fc.constantFrom('off', 'off', 'off', 'metadata', 'falloc', 'full'),
    lazyRefcounts: fc.boolean(),
    operations: operations(),
  });
}

/** Chains of one to four images. What an image cannot have is left out of it when it is made. */
export function chains(): fc.Arbitrary<Chain> {
  return fc.array(layers(), { minLength: 1, maxLength: 4 });
}
