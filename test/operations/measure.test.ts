import { statSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import { MemoryDevice } from '../../src/device/memory.ts';
import { createImage } from '../../src/operations/create.ts';
import type { CreateOptions } from '../../src/operations/create.ts';
import { measureImage } from '../../src/operations/measure.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';

const KiB = 1024;
const MiB = 1024 * KiB;

const path = join(sharedTemporaryDirectory(), 'image');

it.each<CreateOptions>([
  { size: 100 * MiB },
  { size: 3 * MiB, clusterSize: 512 },
  { size: 40 * MiB, clusterSize: 4 * KiB, refcountBits: 1 },
  { size: 300 * MiB, clusterSize: 2 * MiB },
  { size: 64 * MiB, clusterSize: 16 * KiB, extendedL2: true },
])('an image with all clusters allocated fits into the measured size: %j', (options) => {
  createImage(path, { ...options, preallocation: 'metadata' });
  const { size } = statSync(path);
  const { fullyAllocated, required } = measureImage(options.size ?? 0, options);
  expect(size).toBeLessThanOrEqual(fullyAllocated);
  expect(size).toBeGreaterThan(fullyAllocated * 0.97);
  expect(required).toBe(fullyAllocated - (options.size ?? 0));
});

it('an image with some data fits into the measured size', () => {
  const source = new MemoryDevice(new Uint8Array(10 * MiB));
  createImage(path, { size: source.size });
  using image = openImage(path, { writable: true });
  const data = new Uint8Array(100).fill(1);
  // A file in memory has no holes: what is written to the image decides.
  for (const offset of [0, 5 * MiB - 50, 9 * MiB]) image.write(data, offset);
  image.flush();
  const { required } = measureImage(image);
  expect(required - measureImage(source.size).required).toBe(4 * 64 * KiB);
  expect(statSync(path).size).toBeLessThanOrEqual(required);
  const all = measureImage(source);
  expect(all.required).toBe(all.fullyAllocated);
});

it('with a backing file, all of the source may have to be stored', () => {
  createImage(path, { size: 10 * MiB });
  using image = openImage(path);
  const { required, fullyAllocated } = measureImage(image, { backingFile: 'base' });
  expect(required).toBe(fullyAllocated);
});

it.each([-1, 0.5, NaN, 2 ** 53])('a size of %d bytes is refused', (size) => {
  expect(() => measureImage(size)).toThrow(/a disk cannot have/);
});

it('a disk whose L1 table would be too large is refused', () => {
  expect(() => measureImage(2 ** 40, { clusterSize: 512 })).toThrow(/too large an L1 table/);
});
