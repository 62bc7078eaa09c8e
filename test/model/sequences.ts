/** Random images and what is done to them, as fast-check makes and shrinks them. */

import fc from 'fast-check';
import { alignDown } from '../../src/util/bytes.ts';
import type { DiskModel } from '../support/disk-model.ts';
import type { GuestOperation } from '../support/guest-operations.ts';
import { imageVariant, variantTraits } from '../support/image-variants.ts';
import type { ImageVariant } from '../support/image-variants.ts';

/**
 * Something to be done, before it is known to what: the numbers are fitted to the disk by
 * {@link fitStep}, so that steps before it can be left out.
 */
export interface Step {
  kind: GuestOperation['kind'];
  /** In bytes of the disk, or the number of a snapshot. */
  position: number;
  length: number;
  /** What begins and ends at multiples of this. */
  unit: 'byte' | 'sector' | 'cluster';
  flag: boolean;
}

/** An image and what is done to it. */
export interface Sequence {
  variant: ImageVariant;
  steps: Step[];
}

const KiB = 1024;
const MAX_DISK_BYTES = 4096 * KiB;
const MAX_WRITE_BYTES = 512 * KiB;

function variants(): fc.Arbitrary<ImageVariant> {
  return fc
    .record({
      sectors: fc.oneof(
        fc.integer({ min: 1, max: 2048 }),
        fc.integer({ min: 1, max: 48 }).map((count) => count * 128),
      ),
      clusterBits: fc.constantFrom(16, 9, 12, 14, 10, 17, 21),
      version: fc.constantFrom(3, 3, 3, 2),
      refcountBits: fc.constantFrom(16, 16, 1, 2, 4, 8, 32, 64),
      extendedL2: fc.constantFrom(false, false, true),
      lazyRefcounts: fc.constantFrom(false, false, false, true),
      compression: fc.constantFrom('zlib', 'zstd'),
      dataFile: fc.constantFrom('none', 'none', 'none', 'plain', 'raw'),
      backing: fc.option(
        fc.record({
          format: fc.constantFrom('raw', 'qcow2'),
          size: fc.integer({ min: 1, max: 3000 }).map((count) => count * 512),
        }),
      ),
      hasBitmaps: fc.constantFrom(false, false, false, false, true),
      preallocation: fc.constantFrom('off', 'off', 'off', 'metadata', 'full'),
      cacheBytes: fc.constantFrom(undefined, undefined, 1024, 16_384),
      passesDiscards: fc.constantFrom(undefined, undefined, true, false),
    } as const)
    .map(({ sectors, clusterBits, backing: wantedBacking, ...wanted }) => {
      const isNew = wanted.version === 3;
      const extendedL2 = wanted.extendedL2 && isNew;
      const dataFile = isNew ? wanted.dataFile : 'none';
      // QEMU refuses a raw data file that is not all of the disk.
      const backing = dataFile === 'raw' ? undefined : (wantedBacking ?? undefined);
      return imageVariant('random', {
        ...wanted,
        size: sectors * 512,
        clusterSize: 2 ** (extendedL2 ? Math.max(14, clusterBits) : clusterBits),
        refcountBits: isNew ? wanted.refcountBits : 16,
        extendedL2,
        lazyRefcounts: wanted.lazyRefcounts && isNew,
        compression: isNew ? wanted.compression : 'zlib',
        dataFile,
        backing,
        preallocation: backing === undefined ? wanted.preallocation : 'off',
        hasBitmaps: wanted.hasBitmaps && isNew,
      });
    });
}

function steps(): fc.Arbitrary<Step[]> {
  const kinds: [weight: number, kind: Step['kind']][] = [
    ...([
      [12, 'write'],
      [4, 'compress'],
      [4, 'zero'],
      [4, 'discard'],
    ] as const),
    ...([
      [3, 'flush'],
      [2, 'reopen'],
      [3, 'snapshot'],
      [2, 'apply'],
    ] as const),
    ...([
      [2, 'delete'],
      [3, 'resize'],
      [1, 'commit'],
    ] as const),
  ] as [number, Step['kind']][];
  const step = fc.record({
    kind: fc.oneof(...kinds.map(([weight, kind]) => ({ weight, arbitrary: fc.constant(kind) }))),
    position: fc.oneof(fc.nat(MAX_DISK_BYTES), fc.nat(200 * KiB)),
    length: fc.oneof(fc.nat(MAX_WRITE_BYTES), fc.nat(8 * KiB), fc.nat(100 * KiB)),
    unit: fc.constantFrom('cluster', 'sector', 'byte'),
    flag: fc.boolean(),
  } as const);
  return fc.array(step, { minLength: 1, maxLength: 40, size: 'max' });
}

/** An image, and up to 40 steps. */
export function sequences(): fc.Arbitrary<Sequence> {
  return fc.record({ variant: variants(), steps: steps() });
}

/** What a step means for an image that holds what the model holds, or nothing. */
export function fitStep(
  step: Step,
  variant: ImageVariant,
  model: DiskModel,
): GuestOperation | undefined {
  const { kind, flag } = step;
  const { disk, snapshots } = model;
  const traits = variantTraits(variant);
  switch (kind) {
    case 'write':
      return { kind, ...fitRange(step, disk.length, variant), isNoise: flag };
    case 'zero':
      return { kind, ...fitRange(step, disk.length, variant), mayUnmap: flag };
    case 'discard':
      return { kind, ...fitRange(step, disk.length, variant) };
    case 'compress':
      if (!traits.hasCompression) return undefined;
      return {
        kind,
        ...fitRange({ ...step, unit: 'cluster' }, disk.length, variant),
        isNoise: flag,
      };
    case 'preallocate': {
      const range = fitRange(step, disk.length, variant);
      return model.isZero(range) ? { kind, ...range, mode: flag ? 'metadata' : 'full' } : undefined;
    }
    case 'flush':
    case 'reopen':
      return { kind };
    case 'snapshot':
      if (snapshots.length >= traits.maxSnapshots) return undefined;
      return { kind, name: nameFor(snapshots.map(({ name }) => name)) };
    case 'apply':
    case 'delete': {
      if (kind === 'apply' && !traits.canApplySnapshots) return undefined;
      const chosen = snapshots[step.position % Math.max(1, snapshots.length)];
      return chosen === undefined ? undefined : { kind, name: chosen.name };
    }
    case 'resize': {
      if (snapshots.length > 0 && !traits.canResizeWithSnapshots) return undefined;
      const change = flag ? step.length : step.position - disk.length;
      const size = alignDown(disk.length + change, unitBytes(step, variant, 512));
      return { kind, size: Math.max(512, Math.min(MAX_DISK_BYTES, size)) };
    }
    case 'commit':
      // What snapshots read as would change with their backing file.
      return model.backing === undefined || snapshots.length > 0 ? undefined : { kind };
  }
}

/** A name that is not taken. */
function nameFor(taken: readonly string[]): string {
  for (let number = 0; ; number++) {
    const name = `snap-${number}`;
    if (!taken.includes(name)) return name;
  }
}

function unitBytes({ unit }: Step, { clusterSize }: ImageVariant, least: number): number {
  return Math.max(least, { byte: 1, sector: 512, cluster: clusterSize }[unit]);
}

function fitRange(
  step: Step,
  size: number,
  variant: ImageVariant,
): { offset: number; length: number } {
  const unit = unitBytes(step, variant, 1);
  const offset = alignDown(step.position % size, unit);
  const wanted = alignDown(step.length, unit) + unit;
  return { offset, length: Math.min(wanted, size - offset) };
}
