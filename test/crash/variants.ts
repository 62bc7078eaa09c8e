/** The kinds of images that crashes are tried on: every feature, and those that meet each other. */

import { imageVariant } from '../support/image-variants.ts';
import type { ImageVariant } from '../support/image-variants.ts';
import type { Random } from '../support/random.ts';

const KiB = 1024;

/** Clusters so small that tables fill, refcount blocks come and go, and the L1 table grows. */
const SMALL = { clusterSize: 512, size: 160 * KiB };
/** Each L2 table covers 2 MiB. */
const MEDIUM = { clusterSize: 4 * KiB, size: 512 * KiB };
const LARGE = { clusterSize: 64 * KiB, size: 2048 * KiB };
const EXTENDED = { extendedL2: true, clusterSize: 16 * KiB, size: 512 * KiB };

/** One variant a feature. */
export const CRASH_VARIANTS: readonly ImageVariant[] = [
  imageVariant('plain, 64 KiB clusters', LARGE),
  imageVariant('plain, 4 KiB clusters', MEDIUM),
  imageVariant('plain, 512 byte clusters', SMALL),
  imageVariant('version 2', { ...MEDIUM, version: 2 }),
  imageVariant('version 2 with a backing file', {
    ...MEDIUM,
    version: 2,
    backing: { format: 'raw', size: 300 * KiB },
  }),
  imageVariant('1-bit refcounts', { ...SMALL, refcountBits: 1 }),
  imageVariant('2-bit refcounts', { ...SMALL, refcountBits: 2 }),
  imageVariant('8-bit refcounts', { ...MEDIUM, refcountBits: 8 }),
  imageVariant('32-bit refcounts', { ...SMALL, refcountBits: 32 }),
  imageVariant('64-bit refcounts, a refcount table that grows', {
    clusterSize: 512,
    size: 2304 * KiB,
    refcountBits: 64,
    // The first table reaches 2 MiB.
    filled: 1980 * KiB,
  }),
  imageVariant('extended L2', EXTENDED),
  imageVariant('extended L2 with a backing file', {
    ...EXTENDED,
    backing: { format: 'raw', size: 400 * KiB },
  }),
  imageVariant('lazy refcounts', { ...MEDIUM, lazyRefcounts: true }),
  imageVariant('lazy refcounts, 512 byte clusters', { ...SMALL, lazyRefcounts: true }),
  imageVariant('zstd', { ...MEDIUM, compression: 'zstd' }),
  imageVariant('raw backing file', { ...LARGE, backing: { format: 'raw', size: 1500 * KiB } }),
  imageVariant('longer qcow2 backing file', {
    ...MEDIUM,
    backing: { format: 'qcow2', size: 900 * KiB },
  }),
  imageVariant('external data file', { ...MEDIUM, dataFile: 'plain' }),
  imageVariant('raw external data file', { ...MEDIUM, dataFile: 'raw' }),
  imageVariant('external data file, extended L2', { ...EXTENDED, dataFile: 'plain' }),
  imageVariant('preallocated metadata', { ...MEDIUM, preallocation: 'metadata' }),
  imageVariant('next to no cache, all discards passed on', {
    ...SMALL,
    cacheBytes: 1024,
    passesDiscards: true,
  }),
  imageVariant('bitmaps', { ...MEDIUM, hasBitmaps: true }),
  imageVariant('bitmaps, 512 byte clusters', { ...SMALL, hasBitmaps: true }),
];

const WIDE = [16, 16, 32, 64];

/** A variant of which everything is random. */
export function randomVariant(random: Random): ImageVariant {
  const extendedL2 = random.oneIn(4);
  const version = extendedL2 || !random.oneIn(6) ? 3 : 2;
  const clusterSize = random.pick(extendedL2 ? [16, 32, 64] : [0.5, 0.5, 1, 4, 16, 64]) * KiB;
  const size = Math.ceil((clusterSize * (8 + random.below(200))) / 512) * 512;
  const tail = random.pick([0, 0, 512, 3584]);
  const dataFiles = ['none', 'none', 'none', 'plain', 'raw'] as const;
  const dataFile = version === 3 ? random.pick(dataFiles) : 'none';
  const wantsBacking = dataFile !== 'raw' && random.oneIn(3);
  return imageVariant('random', {
    clusterSize,
    size: Math.min(size, 2048 * KiB) + tail,
    version,
    // Large clusters hold so many narrow counts that checking them takes long.
    refcountBits:
      version === 2 ? 16 : random.pick(clusterSize > 8192 ? WIDE : [1, 2, 4, 8, ...WIDE]),
    extendedL2,
    lazyRefcounts: version === 3 && random.oneIn(5),
    compression: version === 3 && random.oneIn(3) ? 'zstd' : 'zlib',
    dataFile,
    backing: wantsBacking
      ? { format: random.pick(['raw', 'qcow2']), size: (1 + random.below(4000)) * 512 }
      : undefined,
    hasBitmaps: version === 3 && random.oneIn(6),
    preallocation: wantsBacking ? 'off' : random.pick(['off', 'off', 'off', 'metadata', 'full']),
    cacheBytes: random.pick([undefined, undefined, 1024, 16_384]),
    passesDiscards: random.pick([undefined, undefined, true, false]),
  });
}
