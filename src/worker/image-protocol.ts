/** The messages between `qcow2/promises` and the worker thread that holds an image open. */

import type { OpenDeviceOptions } from '../chain/open-device.ts';
import type { ImageFormat } from '../chain/open.ts';
import type { Extent, WriteZeroesOptions } from '../device/block-device.ts';
import type { PartitionTable } from '../format/partition/index.ts';
import type { SnapshotRow } from '../format/qcow2/snapshot-table.ts';
import type { CheckProblem, CheckResult, RepairOptions } from '../operations/check.ts';
import type { AmendOptions } from '../operations/amend.ts';
import type { CommitOptions } from '../operations/commit.ts';
import type { BitmapInfo, DirtyRange } from '../qcow2/bitmaps.ts';
import type { ResizeOptions } from '../qcow2/image.ts';
import type { AddBitmapOptions } from '../qcow2/image-bitmaps.ts';
import type { PreallocationMode } from '../qcow2/preallocation.ts';
import type { WireError } from './wire-error.ts';

/** What the worker is started with. */
export interface ImageWorkerData {
  path: string;
  options: OpenDeviceOptions;
  /** What it is opened for (default `use`). */
  purpose?: 'use' | 'check' | 'repair' | undefined;
}

/** What is known of an image as soon as it is open. */
export interface ImageSummary {
  format: ImageFormat;
  path: string;
  readOnly: boolean;
}

/** A part of the image that is open in the worker; 0 is its active disk. */
export type DeviceHandle = number;

/** What can be asked, and what the answer to each is. */
export interface ImageCalls {
  open: { arguments: []; result: ImageSummary };
  read: {
    arguments: [device: DeviceHandle, target: Uint8Array | number, offset: number];
    /** The bytes, or nothing where the target is shared memory that was filled in place. */
    result: Uint8Array | undefined;
  };
  write: {
    arguments: [device: DeviceHandle, source: Uint8Array, offset: number];
    result: void;
  };
  writeZeroes: {
    arguments: [device: DeviceHandle, offset: number, length: number, options: WriteZeroesOptions];
    result: void;
  };
  discard: {
    arguments: [device: DeviceHandle, offset: number, length: number];
    result: void;
  };
  flush: { arguments: [device: DeviceHandle]; result: void };
  extents: {
    arguments: [device: DeviceHandle, range: { offset: number; length: number }, maxCount: number];
    /** The first `maxCount` extents of the range. */
    result: Extent[];
  };
  writeCompressed: { arguments: [source: Uint8Array, offset: number]; result: void };
  resize: { arguments: [size: number, options: ResizeOptions]; result: void };
  preallocate: {
    arguments: [offset: number, length: number, mode: PreallocationMode];
    result: void;
  };
  createSnapshot: { arguments: [name: string]; result: SnapshotRow };
  applySnapshot: { arguments: [idOrName: string]; result: void };
  deleteSnapshot: { arguments: [idOrName: string]; result: void };
  addBitmap: { arguments: [name: string, options: AddBitmapOptions]; result: void };
  removeBitmap: { arguments: [name: string]; result: void };
  clearBitmap: { arguments: [name: string]; result: void };
  enableBitmap: { arguments: [name: string]; result: void };
  disableBitmap: { arguments: [name: string]; result: void };
  mergeBitmap: { arguments: [name: string, source: string]; result: void };
  markInBitmap: { arguments: [name: string, dirty: readonly DirtyRange[]]; result: void };
  makeEmpty: { arguments: []; result: void };
  /** Problems that are met are told before the answer. */
  check: { arguments: []; result: CheckResult };
  repair: { arguments: [fix: RepairOptions['fix']]; result: CheckResult };
  commit: { arguments: [options: CommitOptions]; result: void };
  amend: { arguments: [options: AmendOptions]; result: void };
  openSnapshot: {
    arguments: [idOrName: string];
    result: { device: DeviceHandle; size: number };
  };
  snapshots: { arguments: []; result: readonly SnapshotRow[] };
  bitmaps: { arguments: []; result: readonly BitmapInfo[] };
  dirtyRanges: { arguments: [bitmap: string]; result: DirtyRange[] };
  partitionTable: { arguments: [device: DeviceHandle]; result: PartitionTable };
  closeDevice: { arguments: [device: DeviceHandle]; result: void };
  /** Flushes and closes the image; if that fails, it stays open. */
  close: { arguments: []; result: void };
  /** Closes the image without flushing it. */
  abandon: { arguments: []; result: void };
}

/** A call, as it is posted. */
export type ImageRequest = {
  [Name in keyof ImageCalls]: {
    id: number;
    call: Name;
    arguments: ImageCalls[Name]['arguments'];
  };
}[keyof ImageCalls];

/** Problems that the check under way has met. */
export interface ProblemNotice {
  problems: readonly CheckProblem[];
}

/** The answer to the call of the same id. */
export type ImageResponse = {
  id: number;
  /** Bytes of the active disk after the call; 0 if the image is not open. */
  diskSize: number;
} & ({ ok: true; result: unknown } | { ok: false; error: WireError });
