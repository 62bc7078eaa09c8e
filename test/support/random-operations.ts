/** Random operations on an image, one after the other, by what the image holds by then. */

import { alignDown } from '../../src/util/bytes.ts';
import type { DiskModel, ModelSnapshot } from './disk-model.ts';
import type { GuestOperation } from './guest-operations.ts';
import { variantTraits } from './image-variants.ts';
import type { ImageVariant } from './image-variants.ts';
import type { Random } from './random.ts';
import { SECTOR_BYTES } from './stamps.ts';

/** Largest range of one operation. */
const MAX_BYTES = 256 * 1024;
/** Largest disk, as a multiple of its size at first. */
const MAX_GROWTH = 1.5;

/** How often each kind of operation comes up, against the others. */
export type OperationWeights = Record<GuestOperation['kind'], number>;

/** Weights to choose from: what matters is often a series of one kind. */
export const WEIGHTS: readonly OperationWeights[] = [
  weights({}),
  weights({ write: 30, flush: 2 }),
  weights({ write: 8, discard: 10, zero: 4 }),
  weights({ snapshot: 5, apply: 3, delete: 4 }),
  weights({ compress: 16 }),
  weights({ resize: 8, discard: 4 }),
  weights({ flush: 16, reopen: 3 }),
  weights({ flush: 0, reopen: 0, write: 20 }),
];

function weights(differences: Partial<OperationWeights>): OperationWeights {
  return {
    ...{ write: 12, compress: 3, zero: 3, discard: 3, preallocate: 2, flush: 5, reopen: 1 },
    ...{ snapshot: 1, apply: 1, delete: 1, resize: 1, commit: 1 },
    ...differences,
  };
}

/** Chooses operations that succeed on an image of a variant. */
export class RandomOperations {
  readonly #variant: ImageVariant;
  readonly #random: Random;
  readonly #choices: GuestOperation['kind'][];
  #snapshots = 0;

  constructor(variant: ImageVariant, random: Random, weights: OperationWeights) {
    this.#variant = variant;
    this.#random = random;
    this.#choices = Object.entries(weights).flatMap(([kind, weight]) =>
      Array<GuestOperation['kind']>(weight).fill(kind as GuestOperation['kind']),
    );
  }

  /** The next operation on an image that holds what the model holds. */
  next(model: DiskModel): GuestOperation {
    for (;;) {
      const operation = this.#try(this.#random.pick(this.#choices), model);
      if (operation !== undefined) return operation;
    }
  }

  /** An operation of a kind, if it makes sense now. */
  #try(kind: GuestOperation['kind'], model: DiskModel): GuestOperation | undefined {
    const random = this.#random;
    const traits = variantTraits(this.#variant);
    const { snapshots, disk } = model;
    switch (kind) {
      case 'write':
        return { kind, ...this.#range(disk.length), isNoise: random.oneIn(3) };
      case 'zero':
        return { kind, ...this.#range(disk.length), mayUnmap: random.oneIn(2) };
      case 'discard':
        return { kind, ...this.#range(disk.length) };
      case 'compress':
        if (!traits.hasCompression) return undefined;
        return { kind, ...this.#clusters(disk.length), isNoise: random.oneIn(4) };
      case 'preallocate': {
        const range = this.#range(disk.length);
        if (!model.isZero(range)) return undefined;
        return { kind, ...range, mode: random.pick(['metadata', 'falloc', 'full']) };
      }
      case 'flush':
      case 'reopen':
        return { kind };
      case 'snapshot':
        if (snapshots.length >= traits.maxSnapshots) return undefined;
        return { kind, name: this.#newName(snapshots) };
      case 'apply':
        if (snapshots.length === 0 || !traits.canApplySnapshots) return undefined;
        return { kind, name: random.pick(snapshots).name };
      case 'delete':
        return snapshots.length === 0 ? undefined : { kind, name: random.pick(snapshots).name };
      case 'resize':
        if (snapshots.length > 0 && !traits.canResizeWithSnapshots) return undefined;
        return { kind, size: this.#size(disk.length) };
      case 'commit':
        // What snapshots read as would change with their backing file.
        return model.backing === undefined || snapshots.length > 0 ? undefined : { kind };
    }
  }

  #newName(taken: readonly ModelSnapshot[]): string {
    for (;;) {
      const name = `s${this.#snapshots++}`;
      if (!taken.some((snapshot) => snapshot.name === name)) return name;
    }
  }

  #range(size: number): { offset: number; length: number } {
    const random = this.#random;
    const { clusterSize } = this.#variant;
    // Whole clusters often enough.
    const unit = random.oneIn(2) ? clusterSize : SECTOR_BYTES;
    const offset = random.below(Math.ceil(size / unit)) * unit;
    const most = random.oneIn(4) ? MAX_BYTES : Math.max(4 * unit, 8192);
    const wanted = (1 + random.below(Math.ceil(most / unit))) * unit;
    return { offset, length: Math.min(wanted, size - offset, Math.max(MAX_BYTES, unit)) };
  }

  #clusters(size: number): { offset: number; length: number } {
    const { clusterSize } = this.#variant;
    const offset = this.#random.below(Math.ceil(size / clusterSize)) * clusterSize;
    const length = (1 + this.#random.below(4)) * clusterSize;
    return { offset, length: Math.min(length, size - offset) };
  }

  #size(size: number): number {
    const random = this.#random;
    const most = this.#variant.size * MAX_GROWTH;
    const unit = random.oneIn(2) ? this.#variant.clusterSize : SECTOR_BYTES;
    const wanted = random.oneIn(2)
      ? size + (1 + random.below(16)) * unit
      : random.below(Math.ceil(most / unit)) * unit;
    return Math.max(SECTOR_BYTES, alignDown(Math.min(wanted, most), SECTOR_BYTES));
  }
}
