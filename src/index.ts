/**
 * The library: everything synchronous, as `node:fs` is. `qcow2/promises` is the same over worker
 * threads.
 */

export { openImage, IMAGE_FORMATS } from './chain/open.ts';
export type {
  BackingDescription,
  ImageDescription,
  LayerDescription,
} from './chain/description.ts';
export type { ChainedQcow2Image, Image, ImageFormat, OpenImageOptions } from './chain/open.ts';
export { openDevice } from './chain/open-device.ts';
export type { OpenDeviceOptions } from './chain/open-device.ts';
export type { ReferencedFile, ReferencePolicy } from './chain/policy.ts';
export { RawImage } from './chain/raw-image.ts';
export { prepareZstd } from './compression/zstd.ts';
export type {
  BlockDevice,
  Extent,
  ExtentKind,
  HostFile,
  HostRange,
  WriteZeroesOptions,
} from './device/block-device.ts';
export { FileDevice } from './device/file.ts';
export type { FileDeviceOptions } from './device/file.ts';
export { GrowableMemoryDevice, MemoryDevice, NullDevice } from './device/memory.ts';
export { SliceDevice } from './device/slice.ts';
export type { SliceRange } from './device/slice.ts';
export { Qcow2Error } from './errors.ts';
export type { ErrorCode, ErrorLocation } from './errors.ts';
export { serveNbd } from './export/nbd/server.ts';
export { recognizeFilesystems } from './format/filesystem/index.ts';
export type { Filesystem, FilesystemType, FilesystemUsage } from './format/filesystem/index.ts';
export { readPartitionTable } from './format/partition/index.ts';
export type { Partition, PartitionTable } from './format/partition/index.ts';
export type { Qcow2Header } from './format/qcow2/header.ts';
export type { SnapshotRow } from './format/qcow2/snapshot-table.ts';
export { amendImage } from './operations/amend.ts';
export type { AmendOptions } from './operations/amend.ts';
export { checkImage, openForCheck, openForRepair, repairImage } from './operations/check.ts';
export type {
  CheckOptions,
  CheckProblem,
  CheckResult,
  ProblemListener,
  RepairOptions,
} from './operations/check.ts';
export { commitImage } from './operations/commit.ts';
export type { CommitOptions } from './operations/commit.ts';
export { createImage } from './operations/create.ts';
export type { CreateOptions } from './operations/create.ts';
export type { PassDiscard } from './qcow2/allocator.ts';
export type { NewBitmap } from './qcow2/bitmap-changes.ts';
export type { BitmapInfo, DirtyRange } from './qcow2/bitmaps.ts';
export { Qcow2Image, readHeader } from './qcow2/image.ts';
export type { CacheOptions, Qcow2ImageParts, ResizeOptions } from './qcow2/image.ts';
export type { AddBitmapOptions, BitmapReference, DiskWithBitmaps } from './qcow2/image-bitmaps.ts';
export type { PreallocationMode } from './qcow2/preallocation.ts';
export { Qcow2Snapshot } from './qcow2/snapshots.ts';
