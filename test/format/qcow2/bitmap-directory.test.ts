import fc from 'fast-check';
import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import {
  decodeBitmapDirectory,
  encodeBitmapDirectory,
} from '../../../src/format/qcow2/bitmap-directory.ts';
import type { BitmapEntry } from '../../../src/format/qcow2/bitmap-directory.ts';
import { decodeHeader } from '../../../src/format/qcow2/header.ts';

const CLUSTER_SIZE = 65_536;

const entries: fc.Arbitrary<BitmapEntry> = fc.record({
  name: fc
    .string({ unit: 'grapheme', minLength: 1, maxLength: 100 })
    .filter((name) => !name.includes('\0') && Buffer.byteLength(name) <= 1023),
  granularity: fc.integer({ min: 9, max: 31 }).map((bits) => 2 ** bits),
  flags: fc.integer({ min: 0, max: 7 }),
  tableOffset: fc.integer({ min: 1, max: 2 ** 36 }).map((cluster) => cluster * CLUSTER_SIZE),
  tableSize: fc.integer({ min: 1, max: 2 ** 22 }),
  extraData: fc.uint8Array({ maxLength: 50 }),
  offset: fc.constant(0),
});

describe('the bitmap directory', () => {
  it('is decoded as it was encoded', () => {
    const directories = fc.uniqueArray(entries, { selector: ({ name }) => name, maxLength: 6 });
    fc.assert(
      fc.property(directories, (directory) => {
        const bytes = encodeBitmapDirectory(directory);
        const { length: count } = directory;
        const decoded = decodeBitmapDirectory({
          bytes,
          offset: 0,
          count,
          clusterSize: CLUSTER_SIZE,
        });
        expect(decoded.map((entry) => ({ ...entry, offset: 0 }))).toEqual(directory);
      }),
    );
  });

  it.each(['bitmaps', 'bitmap-in-use', 'bitmap-all-ones', 'bitmaps-autoclear-unset'])(
    'is the bytes that QEMU wrote: %s',
    (image) => {
      const file = readFileSync(`images/features/${image}.qcow2`);
      const { clusterSize, extensions } = decodeHeader(file);
      const { count, directoryOffset: offset, directorySize } = extensions.bitmaps!;
      const bytes = file.subarray(offset, offset + directorySize);
      const directory = decodeBitmapDirectory({ bytes, offset, count, clusterSize });
      expect(directory).toHaveLength(count);
      expect(Buffer.from(encodeBitmapDirectory(directory))).toEqual(bytes);
    },
  );

  it('keeps a name that is not UTF-8', () => {
    const [entry] = fc.sample(entries, 1);
    const bytes = encodeBitmapDirectory([{ ...entry!, nameBytes: Uint8Array.of(0xe9, 0x41) }]);
    const decoded = decodeBitmapDirectory({
      bytes,
      offset: 0,
      count: 1,
      clusterSize: CLUSTER_SIZE,
    });
    expect(Buffer.from(encodeBitmapDirectory(decoded)).equals(bytes)).toBe(true);
  });
});
