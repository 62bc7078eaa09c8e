/**
 * Damaged images in which data and metadata claim the same cluster: nothing of the metadata is
 * overwritten, the image is marked corrupt, and nothing more is written to it.
 */

import { describe, expect, it } from 'vitest';
import { GrowableMemoryDevice, Qcow2Error, Qcow2Image, readHeader } from '../../src/index.ts';
import { buildImage } from '../support/image-builder.ts';
import type { BuildOptions, BuiltImage } from '../support/image-builder.ts';
import { fieldOf, setField, withFields } from '../support/image-patch.ts';

const CORRUPT_BIT = 2;
const CORRUPT_BYTE = 79;
const COPIED = 1n << 63n;

/** Guest clusters of the built images: each kind of cluster, in this order. */
const GUEST = { data: 0, compressed: 1, zero: 2, unallocated: 3, zeroAllocated: 4, other: 6 };

function build(options: BuildOptions = {}): BuiltImage {
  return buildImage({ clusterBits: 12, withSnapshot: false, withBitmaps: false, ...options });
}

/** Where a structure is. */
function offsetOf({ structures }: BuiltImage, name: string): number {
  const found = structures.find((structure) => structure.name === name);
  if (found === undefined) throw new Error(`the image has no ${name}`);
  return found.offset;
}

/** Sets what the only refcount block says of the cluster at an offset. */
function setRefcount(image: BuiltImage, bytes: Buffer, offset: number, count: number): void {
  const block = offsetOf(image, 'refcount block 0');
  bytes.writeUInt16BE(count, block + (offset / image.clusterSize) * 2);
}

function openInMemory(bytes: Buffer): { file: GrowableMemoryDevice; image: Qcow2Image } {
  const file = new GrowableMemoryDevice(bytes);
  const header = readHeader(file);
  return { file, image: new Qcow2Image({ path: 'memory', file, header, writable: true }) };
}

function errorOf(action: () => unknown): Qcow2Error {
  try {
    action();
  } catch (error) {
    if (error instanceof Qcow2Error) return error;
    throw error;
  }
  throw new Error('nothing was refused');
}

/** Has a change refused, and looks at what is left. */
function refuse(bytes: Buffer, change: (image: Qcow2Image) => void, message: RegExp): void {
  const { file, image } = openInMemory(bytes);
  const error = errorOf(() => change(image));
  expect(error.code).toBe('CORRUPT');
  expect(error.message).toMatch(message);
  const expected = Buffer.from(bytes);
  expected[CORRUPT_BYTE]! |= CORRUPT_BIT;
  expect(Buffer.from(file.bytes.subarray(0, bytes.length)).equals(expected)).toBe(true);
  // Nothing more, whatever it is.
  for (const other of [
    () => image.write(Buffer.alloc(1), image.size - 1),
    () => image.discard(0, image.size),
    () => image.createSnapshot('s'),
    () => image.resize(image.size * 2),
  ]) {
    expect(errorOf(other).code).toBe('CORRUPT');
  }
  const { clusterSize } = image.header;
  image.read(Buffer.alloc(clusterSize), GUEST.other * clusterSize);
  image.close();
  expect(Buffer.from(file.bytes.subarray(0, bytes.length)).equals(expected)).toBe(true);
}

const PLACES: [structure: string, kind: string, options: BuildOptions][] = [
  ['refcount table', 'refcount table', {}],
  ['refcount block 0', 'refcount block', {}],
  ['L1 table', 'L1 table', {}],
  ['L2 table 0', 'L2 table', {}],
  ['snapshot table', 'snapshot table', { withSnapshot: true }],
  ['snapshot L1 table', 'snapshot L1 table', { withSnapshot: true }],
];

describe.each(PLACES)('an L2 entry that points at the %s', (structure, kind, options) => {
  const image = build(options);
  const target = offsetOf(image, structure);
  const bytes = withFields(image, {
    [`L2 entry ${GUEST.data}`]: COPIED | BigInt(target),
  });
  const overlap = new RegExp(
    `^memory: .* \\(at offset ${target}\\): it would overlap the ${kind} `,
  );
  const { clusterSize } = image;

  it.each<[string, (disk: Qcow2Image) => void]>([
    ['overwritten', (disk) => disk.write(Buffer.alloc(10, 1), 100)],
    ['overwritten whole', (disk) => disk.write(Buffer.alloc(clusterSize, 1), 0)],
    ['compressed', (disk) => disk.writeCompressed(Buffer.alloc(clusterSize), 0)],
    ['discarded', (disk) => disk.discard(0, clusterSize)],
    ['unmapped', (disk) => disk.writeZeroes(0, clusterSize, { mayUnmap: true })],
  ])('lets nothing of it be %s', (_name, change) => {
    refuse(bytes, change, overlap);
  });
});

describe.each(PLACES)('a %s that is counted as free', (structure, kind, options) => {
  it('is not given out', () => {
    const image = build(options);
    const target = offsetOf(image, structure);
    const bytes = Buffer.from(image.bytes);
    setRefcount(image, bytes, target, 0);
    const overlap = new RegExp(`it would overlap the ${kind} there; nothing was written`);
    const offset = GUEST.unallocated * image.clusterSize;
    refuse(bytes, (disk) => disk.write(Buffer.alloc(10, 1), offset), overlap);
  });
});

describe('tables that overlap others', () => {
  it.each(['refcount table', 'refcount block 0', 'L1 table'])(
    'are found before anything is written: an L2 table in the %s',
    (structure) => {
      const image = build();
      const bytes = withFields(image, {
        'L1 entry 1': COPIED | BigInt(offsetOf(image, structure)),
      });
      // Even a write that would not touch it.
      refuse(bytes, (disk) => disk.write(Buffer.alloc(10, 1), 0), /it would overlap the .* there/);
    },
  );

  it.each([
    ['refcount table entry 0', 'L1 table'],
    ['l1_table_offset', 'refcount table'],
    ['snapshot l1_table_offset', 'refcount block 0'],
  ])('are found before anything is written: %s leads to the %s', (field, structure) => {
    const image = build({ withSnapshot: true });
    const bytes = Buffer.from(image.bytes);
    setField(bytes, fieldOf(image, field), BigInt(offsetOf(image, structure)));
    const { file, image: disk } = openInMemory(bytes);
    expect(errorOf(() => disk.write(Buffer.alloc(10, 1), 0)).code).toBe('CORRUPT');
    bytes[CORRUPT_BYTE]! |= CORRUPT_BIT;
    expect(Buffer.from(file.bytes).equals(bytes)).toBe(true);
  });
});

describe('entries that cannot be', () => {
  it('are not followed: a cluster that is not aligned', () => {
    const image = build();
    const bytes = withFields(image, { [`L2 entry ${GUEST.data}`]: COPIED | 0x5200n });
    refuse(bytes, (disk) => disk.write(Buffer.alloc(10), 0), /offset 20992 is not aligned/);
  });

  it('are not followed: an L2 table that is not aligned', () => {
    const image = build();
    const bytes = withFields(image, { 'L1 entry 0': COPIED | 0x5200n });
    const { file, image: disk } = openInMemory(bytes);
    const error = errorOf(() => disk.write(Buffer.alloc(10), 0));
    expect([error.code, error.file]).toEqual(['CORRUPT', 'memory']);
    bytes[CORRUPT_BYTE]! |= CORRUPT_BIT;
    expect(Buffer.from(file.bytes).equals(bytes)).toBe(true);
  });

  it('are not given up: a cluster that is counted less often than it is used', () => {
    const image = build();
    const bytes = Buffer.from(image.bytes);
    const data = offsetOf(image, `data of guest cluster ${GUEST.data}`);
    setRefcount(image, bytes, data, 0);
    const { file, image: disk } = openInMemory(bytes);
    disk.discard(0, image.clusterSize);
    const error = errorOf(() => disk.flush());
    expect(error.code).toBe('CORRUPT');
    expect(file.bytes[CORRUPT_BYTE]! & CORRUPT_BIT).toBe(CORRUPT_BIT);
  });
});
