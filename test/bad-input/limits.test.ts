/**
 * Every bound of `src/limits.ts` that a qcow2 image can reach: at the bound the image is accepted
 * (or refused for another reason), above it it is refused, and neither costs time or memory.
 */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import * as limits from '../../src/limits.ts';
import { buildImage } from '../support/image-builder.ts';
import type { BuildOptions } from '../support/image-builder.ts';
import { withFields, writeSparse } from '../support/image-patch.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { bitmapDirectoryImage, snapshotTableImage } from './crowded-images.ts';
import { judgeConduct } from './judge.ts';
import type { PartReport } from './reader-child.ts';
import { ReaderProcess } from './reader-process.ts';

const MiB = 1024 * 1024;
const small = buildImage();

const directory = sharedTemporaryDirectory();
const path = join(directory, 'limit.qcow2');
let reader: ReaderProcess;

beforeAll(async () => {
  reader = await ReaderProcess.create();
});
afterAll(() => reader.close());
beforeEach(() => {
  writeFileSync(join(directory, 'base.raw'), Buffer.alloc(512, 'base'));
  writeFileSync(join(directory, 'guest.data'), Buffer.alloc(96 * 16_384, 'data'));
});

/** Has the image read, and returns the first error of the parts that read data. */
async function errorOf(): Promise<PartReport['error']> {
  const outcome = await reader.read(path);
  expect(judgeConduct(outcome)).toEqual([]);
  if ('died' in outcome) throw new Error(outcome.died);
  return outcome.parts.find(({ part, error }) => error !== undefined && part !== 'check')?.error;
}

/** Writes an image with some fields set. */
function write(fields: Record<string, number | bigint>, options?: BuildOptions): void {
  const image = options === undefined ? small : buildImage(options);
  writeFileSync(path, withFields(image, fields));
}

/** The small image with a table moved to its end, where it has `tableBytes`. */
function writeWithLongTable(
  fields: Record<string, number | bigint>,
  offsetField: string,
  tableBytes: number,
): void {
  const start = small.bytes.length;
  const bytes = withFields(small, { ...fields, [offsetField]: start });
  const length = Number(withoutRest(tableBytes));
  writeSparse(path, { pieces: [[0, bytes]], size: start + length });
}

function withoutRest(bytes: number): number {
  return Math.min(bytes, 64 * MiB);
}

interface Bound {
  limit: keyof typeof limits;
  /** Writes the image at the bound. */
  at: () => void;
  /** Writes the image just beyond it. */
  above: () => void;
  /** What the refusal's message says. */
  message: RegExp;
  /** What the image at the bound may be refused for. */
  otherwise?: RegExp;
}

/** A name for a file that has exactly `length` bytes. */
const nameOf = (file: string, length: number): string => {
  const slashes = length - file.length;
  return `${'./'.repeat(Math.floor(slashes / 2))}${slashes % 2 === 1 ? '/' : ''}${file}`;
};

const headerBounds: Bound[] = [
  {
    limit: 'MIN_CLUSTER_BITS',
    at: () => write({ cluster_bits: limits.MIN_CLUSTER_BITS }),
    above: () => write({ cluster_bits: limits.MIN_CLUSTER_BITS - 1 }),
    message: /cluster_bits/,
  },
  {
    limit: 'MAX_CLUSTER_BITS',
    at: () =>
      write({}, { clusterBits: 21, guestClusters: 2, withSnapshot: false, withBitmaps: false }),
    above: () => write({ cluster_bits: limits.MAX_CLUSTER_BITS + 1 }),
    message: /cluster_bits/,
  },
  {
    limit: 'MIN_CLUSTER_BITS_EXTENDED_L2',
    at: () => write({}, { extendedL2: true, guestClusters: 18 }),
    above: () => write({ cluster_bits: 13 }, { extendedL2: true, guestClusters: 18 }),
    message: /extended L2/i,
  },
  {
    limit: 'MAX_REFCOUNT_ORDER',
    at: () => write({ refcount_order: limits.MAX_REFCOUNT_ORDER }),
    above: () => write({ refcount_order: limits.MAX_REFCOUNT_ORDER + 1 }),
    message: /refcount_order/,
  },
  {
    limit: 'MAX_L1_BYTES',
    at: () =>
      writeWithLongTable(
        { l1_size: limits.MAX_L1_BYTES / 8 },
        'l1_table_offset',
        limits.MAX_L1_BYTES,
      ),
    above: () =>
      writeWithLongTable(
        { l1_size: limits.MAX_L1_BYTES / 8 + 1 },
        'l1_table_offset',
        limits.MAX_L1_BYTES + 8,
      ),
    message: /L1 table/,
  },
  {
    limit: 'MAX_REFCOUNT_TABLE_BYTES',
    at: () => {
      const clusters = limits.MAX_REFCOUNT_TABLE_BYTES / 512;
      writeWithLongTable({ refcount_table_clusters: clusters }, 'refcount_table_offset', 8 * MiB);
    },
    above: () => {
      const clusters = limits.MAX_REFCOUNT_TABLE_BYTES / 512 + 1;
      writeWithLongTable({ refcount_table_clusters: clusters }, 'refcount_table_offset', 9 * MiB);
    },
    message: /refcount table/,
  },
  {
    limit: 'MAX_DISK_SIZE',
    // 2^53 bytes in clusters of 2 MiB are 16384 L1 entries.
    at: () => writeHugeDisk(2n ** 53n - 512n),
    above: () => writeHugeDisk(2n ** 53n),
    message: /2\^53|size/,
  },
];

/** A disk of `size` bytes in clusters of 2 MiB, to which nothing was written. */
function writeHugeDisk(size: bigint): void {
  const header = withFields(small, {
    ...{ cluster_bits: 21, size, l1_size: 16_384, l1_table_offset: 2 * MiB },
    ...{ refcount_table_offset: 4 * MiB, nb_snapshots: 0, snapshots_offset: 0 },
    ...{ header_length: 112, autoclear_features: 0 },
  }).subarray(0, 112);
  writeSparse(path, { pieces: [[0, header]], size: 8 * MiB });
}

const nameBounds: Bound[] = [
  {
    limit: 'MAX_BACKING_NAME_BYTES',
    at: () =>
      write({}, { clusterBits: 12, backing: { name: nameOf('base.raw', 1023), format: 'raw' } }),
    above: () =>
      write({}, { clusterBits: 12, backing: { name: nameOf('base.raw', 1024), format: 'raw' } }),
    message: /backing file name/,
  },
  {
    limit: 'MAX_BACKING_FORMAT_BYTES',
    at: () => write({}, { backing: { name: 'base.raw', format: 'f'.repeat(15) } }),
    above: () => write({}, { backing: { name: 'base.raw', format: 'f'.repeat(16) } }),
    message: /length cannot be 16 bytes/,
    otherwise: /'f{15}'/,
  },
  {
    limit: 'MAX_DATA_FILE_NAME_BYTES',
    at: () => write({}, withDataFile(longPath(4095))),
    above: () => write({}, withDataFile(longPath(4096))),
    message: /length cannot be 4096 bytes/,
  },
];

/** A path of the data file that has exactly `length` bytes. */
function longPath(length: number): string {
  return `${directory}/${nameOf('guest.data', length - directory.length - 1)}`;
}

function withDataFile(name: string): BuildOptions {
  return {
    clusterBits: 14,
    dataFile: { name, raw: false },
    withSnapshot: false,
    guestClusters: 20,
  };
}

const tableBounds: Bound[] = [
  {
    limit: 'MAX_SNAPSHOTS',
    at: () => writeSparse(path, snapshotTableImage({ count: 65_536 })),
    above: () => writeSparse(path, snapshotTableImage({ count: 65_537 })),
    message: /65537 snapshots/,
  },
  {
    limit: 'MAX_SNAPSHOT_EXTRA_BYTES',
    at: () => writeSparse(path, snapshotTableImage({ count: 2, extraBytes: 1024 })),
    above: () => writeSparse(path, snapshotTableImage({ count: 2, extraBytes: 1025 })),
    message: /1025 bytes of extra data/,
  },
  {
    limit: 'MAX_SNAPSHOT_TABLE_BYTES',
    at: () =>
      writeSparse(path, snapshotTableImage({ count: 1000, extraBytes: 1024, nameBytes: 60_000 })),
    above: () =>
      writeSparse(path, snapshotTableImage({ count: 1200, extraBytes: 1024, nameBytes: 60_000 })),
    message: /snapshot table/,
  },
  {
    limit: 'MAX_BITMAPS',
    at: () => writeSparse(path, bitmapDirectoryImage({ count: 65_535 })),
    above: () => writeSparse(path, bitmapDirectoryImage({ count: 65_536 })),
    message: /65536 bitmaps/,
  },
  {
    limit: 'MAX_BITMAP_DIRECTORY_BYTES',
    at: () => write({ bitmap_directory_size: limits.MAX_BITMAP_DIRECTORY_BYTES }),
    above: () => write({ bitmap_directory_size: limits.MAX_BITMAP_DIRECTORY_BYTES + 8 }),
    message: /bitmap directory of 67108872 bytes/,
    otherwise: /bitmap directory/,
  },
  {
    limit: 'MAX_BITMAP_TABLE_ENTRIES',
    at: () => write({ 'bitmap bits table_size': limits.MAX_BITMAP_TABLE_ENTRIES }),
    above: () => write({ 'bitmap bits table_size': limits.MAX_BITMAP_TABLE_ENTRIES + 1 }),
    message: /table of 4194305 entries/,
    otherwise: /bitmap/,
  },
  {
    limit: 'MIN_BITMAP_GRANULARITY_BITS',
    at: () => write({ 'bitmap bits granularity_bits': 9 }),
    above: () => write({ 'bitmap bits granularity_bits': 8 }),
    message: /granularity_bits is 8/,
  },
  {
    limit: 'MAX_BITMAP_GRANULARITY_BITS',
    at: () => write({ 'bitmap bits granularity_bits': 31 }),
    above: () => write({ 'bitmap bits granularity_bits': 32 }),
    message: /granularity_bits is 32/,
  },
  {
    limit: 'MAX_BITMAP_NAME_BYTES',
    at: () => writeSparse(path, bitmapDirectoryImage({ count: 2, nameBytes: 1023 })),
    above: () => writeSparse(path, bitmapDirectoryImage({ count: 2, nameBytes: 1024 })),
    message: /1024 bytes/,
  },
];

describe.each([...headerBounds, ...nameBounds, ...tableBounds])('$limit', (bound) => {
  it('is accepted at the bound', { timeout: 60_000 }, async () => {
    bound.at();
    const error = await errorOf();
    if (bound.otherwise === undefined) expect(error).toBeUndefined();
    else if (error !== undefined) expect(error.message).toMatch(bound.otherwise);
    expect(error?.code).not.toBe('TOO_LARGE');
  });

  it('is refused beyond it', async () => {
    bound.above();
    const error = await errorOf();
    expect(error?.message).toMatch(bound.message);
  });
});
