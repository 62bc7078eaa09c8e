/** What guests and tools do to an image, as data: to be done, described, and done to a model. */

import type { PreallocationMode } from '../../src/qcow2/preallocation.ts';
import { stampedData } from './stamps.ts';

/** Something that is done to an image. Offsets, lengths and sizes are in bytes. */
export type GuestOperation =
  | { kind: 'write'; offset: number; length: number; isNoise?: boolean }
  /** Whole clusters, or up to the end of the disk. */
  | { kind: 'compress'; offset: number; length: number; isNoise?: boolean }
  | { kind: 'zero'; offset: number; length: number; mayUnmap: boolean }
  | { kind: 'discard'; offset: number; length: number }
  /** Clusters that read as zeroes get their space. */
  | { kind: 'preallocate'; offset: number; length: number; mode: PreallocationMode }
  | { kind: 'flush' }
  /** Close it and open it again. */
  | { kind: 'reopen' }
  | { kind: 'snapshot'; name: string }
  | { kind: 'apply'; name: string }
  | { kind: 'delete'; name: string }
  | { kind: 'resize'; size: number }
  /** To the backing file. */
  | { kind: 'commit' };

/** What an image must be able to do for {@link performOn}. */
export interface WritableDisk {
  readonly size: number;
  write(source: Uint8Array, offset: number): void;
  writeCompressed(source: Uint8Array, offset: number): void;
  writeZeroes(offset: number, length: number, options?: { mayUnmap?: boolean }): void;
  discard(offset: number, length: number): void;
  preallocate(offset: number, length: number, mode: PreallocationMode): void;
  flush(): void;
  createSnapshot(name: string): unknown;
  applySnapshot(idOrName: string): void;
  deleteSnapshot(idOrName: string): void;
  resize(size: number, options?: { shrink?: boolean }): void;
}

/** The operations that {@link performOn} knows; the others need more than the image. */
export type DiskOperation = Exclude<GuestOperation, { kind: 'reopen' | 'commit' }>;

/** The data that a write or compressed write with that number stores. */
export function dataOf(
  operation: Extract<GuestOperation, { kind: 'write' | 'compress' }>,
  sequence: number,
): Buffer {
  return stampedData({ sequence, ...operation });
}

/**
 * Does an operation to an image.
 * @param sequence a number that no other operation has, to tell its data by
 */
export function performOn(disk: WritableDisk, operation: DiskOperation, sequence: number): void {
  switch (operation.kind) {
    case 'write':
      disk.write(dataOf(operation, sequence), operation.offset);
      break;
    case 'compress':
      disk.writeCompressed(dataOf(operation, sequence), operation.offset);
      break;
    case 'zero':
      disk.writeZeroes(operation.offset, operation.length, { mayUnmap: operation.mayUnmap });
      break;
    case 'discard':
      disk.discard(operation.offset, operation.length);
      break;
    case 'preallocate':
      disk.preallocate(operation.offset, operation.length, operation.mode);
      break;
    case 'flush':
      disk.flush();
      break;
    case 'snapshot':
      disk.createSnapshot(operation.name);
      break;
    case 'apply':
      disk.applySnapshot(operation.name);
      break;
    case 'delete':
      disk.deleteSnapshot(operation.name);
      break;
    case 'resize':
      disk.resize(operation.size, { shrink: operation.size < disk.size });
      break;
  }
}

/** An operation in words, for messages and scripts. */
export function describeOperation(operation: GuestOperation): string {
  switch (operation.kind) {
    case 'write':
    case 'compress': {
      const { kind, offset, length, isNoise } = operation;
      return `${kind} ${length} at ${offset}${isNoise === true ? ' (noise)' : ''}`;
    }
    case 'zero':
      return `zero ${operation.length} at ${operation.offset}${operation.mayUnmap ? ' (unmap)' : ''}`;
    case 'discard':
      return `discard ${operation.length} at ${operation.offset}`;
    case 'preallocate':
      return `preallocate (${operation.mode}) ${operation.length} at ${operation.offset}`;
    case 'snapshot':
    case 'apply':
    case 'delete':
      return `${operation.kind} ${operation.name}`;
    case 'resize':
      return `resize to ${operation.size}`;
    case 'flush':
    case 'reopen':
    case 'commit':
      return operation.kind;
  }
}
