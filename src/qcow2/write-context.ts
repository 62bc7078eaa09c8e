/** What the parts of the writing engine share. */

import type { HostFile } from '../device/block-device.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import type { ClusterAllocator } from './allocator.ts';
import type { Committer } from './commit.ts';
import type { HeaderWriter } from './header-writer.ts';
import type { L2Editor } from './l2-editor.ts';
import type { L1Location } from './mapping.ts';
import type { MetadataMap } from './metadata-map.ts';
import type { RefcountStore } from './refcount-store.ts';
import type { TableCache } from './table-cache.ts';

/** What writers ask the active disk. Offsets may lie past its end, where it reads as zeroes. */
export interface DiskReader {
  /** Whether a range is known to read as zeroes without reading it. */
  readsZero(offset: number, length: number): boolean;
  /** Fills `target` with the disk's bytes, and with zeroes past its end. */
  readPadded(target: Uint8Array, offset: number): void;
}

/** An image that is open for writing. */
export interface WriteContext {
  readonly path: string;
  readonly header: Qcow2Header;
  readonly headerWriter: HeaderWriter;
  /** The image's own file. */
  readonly file: HostFile;
  /** Where data clusters are: the image's file or the external data file. */
  readonly dataFile: HostFile;
  readonly tables: TableCache;
  readonly refcounts: RefcountStore;
  readonly allocator: ClusterAllocator;
  readonly metadata: MetadataMap;
  readonly committer: Committer;
  readonly editor: L2Editor;
  readonly reader: DiskReader;
  /** The active L1 table; changed in place when it moves. */
  readonly l1: L1Location;
  /** What is behind unallocated clusters. Its size can change: committing to it makes it grow. */
  readonly backing: { readonly size: number } | undefined;
}

/** How far a change is that takes long, in whatever it counts. */
export interface EngineProgress {
  done: number;
  total: number;
}

/** A change of an image that takes long: yields how far it is. */
export type EngineSteps<Result> = Generator<EngineProgress, Result, void>;

/** Which of several parts of a change one is: its progress is told as that of the whole. */
export interface Part {
  /** From 0 on. */
  index: number;
  count: number;
}

/** The progress of a part as that of the whole. */
export function progressOf({ index, count }: Part, done: number, total: number): EngineProgress {
  return { done: index * total + done, total: count * total };
}
