/** The messages between `qcow2/promises` and the worker thread that holds an image open. */

import type { OpenDeviceOptions } from '../chain/open-device.ts';
import type { ImageFormat } from '../chain/open.ts';
import type { Extent } from '../device/block-device.ts';
import type { PartitionTable } from '../format/partition/index.ts';
import type { SnapshotRow } from '../format/qcow2/snapshot-table.ts';
import type { BitmapInfo, DirtyRange } from '../qcow2/bitmaps.ts';
import type { WireError } from './wire-error.ts';

/** What the worker is started with. */
export interface ImageWorkerData {
  path: string;
  options: OpenDeviceOptions;
}

/** What is known of an image as soon as it is open. */
export interface ImageSummary {
  format: ImageFormat;
  size: number;
  path: string;
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
  extents: {
    arguments: [device: DeviceHandle, offset: number, length: number];
    /** The first few thousand extents of the range. */
    result: Extent[];
  };
  openSnapshot: {
    arguments: [idOrName: string];
    result: { device: DeviceHandle; size: number };
  };
  snapshots: { arguments: []; result: readonly SnapshotRow[] };
  bitmaps: { arguments: []; result: readonly BitmapInfo[] };
  dirtyRanges: { arguments: [bitmap: string]; result: DirtyRange[] };
  partitionTable: { arguments: [device: DeviceHandle]; result: PartitionTable };
  closeDevice: { arguments: [device: DeviceHandle]; result: undefined };
}

/** A call, as it is posted. */
export type ImageRequest = {
  [Name in keyof ImageCalls]: {
    id: number;
    call: Name;
    arguments: ImageCalls[Name]['arguments'];
  };
}[keyof ImageCalls];

/** The answer to the call of the same id. */
export type ImageResponse =
  { id: number; ok: true; result: unknown } | { id: number; ok: false; error: WireError };
