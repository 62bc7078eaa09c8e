/** What an image has to hold: a plain array for the disk, and one for each snapshot. */

import { alignDown, alignUp, isAllZero } from '../../src/util/bytes.ts';
import { dataOf } from './guest-operations.ts';
import type { GuestOperation } from './guest-operations.ts';

/** A snapshot of a model. */
export interface ModelSnapshot {
  name: string;
  disk: Buffer;
}

/** What an image holds. */
export interface Holdings {
  /** What the disk has to read as. */
  disk: Buffer;
  snapshots: readonly ModelSnapshot[];
  /** What the backing file reads as, where there is one. */
  backing: Buffer | undefined;
}

/** What a model has to know of the image. */
export interface ModelOptions {
  /** What the disk reads as at first. */
  disk: Buffer;
  clusterSize: number;
  version: 2 | 3;
  snapshots?: readonly ModelSnapshot[];
  /** What the backing file holds, where there is one. */
  backing?: Buffer | undefined;
}

/** The content of a disk and its snapshots. Buffers that were handed out are never changed. */
export class DiskModel {
  disk: Buffer;
  snapshots: readonly ModelSnapshot[];
  /** What the backing file holds, where there is one. */
  backing: Buffer | undefined;
  readonly #clusterSize: number;
  readonly #version: 2 | 3;

  constructor({ disk, snapshots = [], clusterSize, version, backing }: ModelOptions) {
    this.disk = disk;
    this.snapshots = snapshots;
    this.backing = backing;
    this.#clusterSize = clusterSize;
    this.#version = version;
  }

  /** What it holds now; what is done later does not change it. */
  get holdings(): Holdings {
    const { disk, snapshots, backing } = this;
    return { disk, snapshots, backing };
  }

  set holdings({ disk, snapshots, backing }: Holdings) {
    this.disk = disk;
    this.snapshots = snapshots;
    this.backing = backing;
  }

  /** Does an operation that succeeds. */
  perform(operation: GuestOperation, sequence: number): void {
    switch (operation.kind) {
      case 'write':
      case 'compress':
        this.#overwrite(operation.offset, dataOf(operation, sequence));
        break;
      case 'zero':
        this.#overwrite(operation.offset, Buffer.alloc(operation.length));
        break;
      case 'discard':
        this.#discard(operation.offset, operation.length);
        break;
      case 'snapshot':
        this.snapshots = [...this.snapshots, { name: operation.name, disk: this.disk }];
        break;
      case 'apply':
        this.disk = this.#find(operation.name).disk;
        break;
      case 'delete': {
        const gone = this.#find(operation.name);
        this.snapshots = this.snapshots.filter((snapshot) => snapshot !== gone);
        break;
      }
      case 'resize':
        this.disk = resized(this.disk, operation.size);
        break;
      case 'commit':
        this.#commit();
        break;
      case 'preallocate':
      case 'flush':
      case 'reopen':
        break;
    }
  }

  /** Whether the clusters that a range touches read as zeroes. */
  isZero({ offset, length }: { offset: number; length: number }): boolean {
    const start = alignDown(offset, this.#clusterSize);
    return isAllZero(this.disk.subarray(start, alignUp(offset + length, this.#clusterSize)));
  }

  #overwrite(offset: number, bytes: Buffer): void {
    const disk = Buffer.from(this.disk);
    bytes.copy(disk, offset);
    this.disk = disk;
  }

  /** As QEMU: whole clusters read as zeroes, of others nothing happens. */
  #discard(offset: number, length: number): void {
    // Version 2 has no entry that keeps the backing file from showing.
    if (this.#version === 2 && this.backing !== undefined) return;
    const end = offset + length;
    const first = alignUp(offset, this.#clusterSize);
    const last = end === this.disk.length ? end : alignDown(end, this.#clusterSize);
    if (last > first) this.#overwrite(first, Buffer.alloc(last - first));
  }

  #commit(): void {
    if (this.backing === undefined) throw new Error('there is nothing to commit to');
    const { disk } = this;
    this.backing =
      this.backing.length <= disk.length
        ? disk
        : Buffer.concat([disk, this.backing.subarray(disk.length)]);
  }

  #find(name: string): ModelSnapshot {
    const found = this.snapshots.find((snapshot) => snapshot.name === name);
    if (found === undefined) throw new Error(`the model has no snapshot ${name}`);
    return found;
  }
}

/** The bytes, cut or with zeroes after them. */
export function resized(bytes: Buffer, size: number): Buffer {
  if (size <= bytes.length) return Buffer.from(bytes.subarray(0, size));
  return Buffer.concat([bytes, Buffer.alloc(size - bytes.length)]);
}
