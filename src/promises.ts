/** The library over worker threads: the same calls as `qcow2`, returning promises. */

export { checkImage, repairImage } from './worker/image-check.ts';
export { AsyncDevice, AsyncImage, openImage } from './worker/image-client.ts';
export type { AsyncOpenImageOptions } from './worker/image-client.ts';
export { IMAGE_FORMATS } from './chain/open.ts';
export type { ImageFormat } from './chain/open.ts';
export type { Extent, ExtentKind, WriteZeroesOptions } from './device/block-device.ts';
export { Qcow2Error } from './errors.ts';
export type { ErrorCode, ErrorLocation } from './errors.ts';
export type { Partition, PartitionTable } from './format/partition/index.ts';
export type { SnapshotRow } from './format/qcow2/snapshot-table.ts';
export type {
  CheckOptions,
  CheckProblem,
  CheckResult,
  ProblemListener,
  RepairOptions,
} from './operations/check.ts';
export type { AmendOptions } from './operations/amend.ts';
export type { CommitOptions } from './operations/commit.ts';
export type { PassDiscard } from './qcow2/allocator.ts';
export type { BitmapInfo, DirtyRange } from './qcow2/bitmaps.ts';
export type { CacheOptions, ResizeOptions } from './qcow2/image.ts';
export type { AddBitmapOptions } from './qcow2/image-bitmaps.ts';
export type { PreallocationMode } from './qcow2/preallocation.ts';
