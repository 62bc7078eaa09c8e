/** What is handed between the command, the process that serves a mount, and its worker. */

import type { InvalidationJob } from '../export/fuse/invalidations.ts';
import type { Filesystem } from '../format/filesystem/index.ts';
import type { FuseOptions } from './fuse-options.ts';
import type { MountStatsMemory } from './mount-stats.ts';
import type { WireError } from './wire-error.ts';

/** How a mount reaches the kernel. */
export type ChannelName = 'kernel' | 'fuse-native';

/**
 * Whether a mount accepts writes, and where they go: `ro` accepts none, `rw` writes to the image,
 * `temp` forgets them at the end, `overlay` keeps them in an overlay.
 */
export type MountAccess = 'ro' | 'rw' | 'temp' | 'overlay';

/** Which image, and how it is to be opened. */
export interface ImageRequest {
  /** Absolute path. */
  image: string;
  access: MountAccess;
  /** Absolute path of the overlay, for `overlay`. */
  overlay?: string;
  format?: 'qcow2' | 'raw';
  backingFormat?: 'qcow2' | 'raw';
  allowProtocolNames?: boolean;
  forceShare?: boolean;
  /** Show this internal snapshot, by id or name, in place of the current state. */
  snapshot?: string;
  /** Show this partition as `disk.raw`. */
  partition?: number;
}

/** A mount that is asked for. Survives JSON. */
export interface MountRequest extends ImageRequest {
  /** Absolute path of a directory that exists. */
  directory: string;
  /** It was made for this mount, and goes with it. */
  madeDirectory: boolean;
  channel: ChannelName | 'auto';
  options: FuseOptions;
  /** Bytes of the cluster cache (default: by the machine's memory). */
  cacheBytes?: number;
  /** How many threads serve, if that is asked for; only without writes can it be more than one. */
  threads?: number;
  /** Identifier of the record of this mount. */
  id: string;
  /** Path of the log; undefined in the foreground. */
  log?: string;
  /** Go on to the files: `directory` is a private one then. */
  files?: FilesRequest;
  /** Tell at the end what was asked of the mount: as text on standard error, or JSON on output. */
  stats?: 'human' | 'json';
}

/** The files of an image, or of several of its partitions, that are asked for. Survives JSON. */
export interface FilesRequest {
  /** Absolute path of a directory that exists: where the files, or directories of them, will be. */
  directory: string;
  /** It was made for this mount, and goes with it. */
  madeDirectory: boolean;
  /** All partitions that hold files, each in a directory. */
  all: boolean;
  options: FuseOptions;
}

/** Files that are mounted. */
export interface MountedFiles {
  directory: string;
  /** The file of the image that they are in, as in `partitions/2-root.raw`. */
  file: string;
  /** As in `2-root`. */
  name: string;
  /** The filesystem's. */
  type: string;
  label: string;
  /** Of the kernel, or a program. */
  driver: string;
  /** A journal is left alone, so that what changed last may be missing or half done. */
  journalIgnored: boolean;
}

/** A file of the tree that shows a disk or a part of one. */
export interface ShownFile {
  /** Path from the mounted directory. */
  file: string;
  /** Bytes. */
  size: number;
}

/** A disk or partition, and what its signatures tell that it holds; the first counts most. */
export interface ShownDisk extends ShownFile {
  filesystems: Filesystem[];
}

/** A partition that a mount shows. */
export interface ShownPartition extends ShownDisk {
  number: number;
  /** The type's GUID or byte. */
  type: string;
  typeName: string;
  /** The label; may be empty. */
  name: string;
}

/** What a mount shows. Survives JSON. */
export interface ImageSummary {
  format: string;
  disk: ShownDisk;
  partitionScheme: string;
  partitions: ShownPartition[];
  snapshots: { id: string; name: string; directory: string }[];
  layers: ShownFile[];
  warnings: string[];
}

/** A mount that works. Survives JSON. */
export interface MountSummary extends ImageSummary {
  directory: string;
  image: string;
  access: MountAccess;
  /** Where writes are kept, for `overlay`. */
  overlay?: string;
  /** The files that are mounted, where they were asked for. */
  files?: MountedFiles[];
  channel: ChannelName;
  /** Why the kernel channel was not used, where it would have been preferred. */
  fallbackReason?: string;
  pid: number;
}

/** What the worker tells the main thread. */
export type WorkerMessage =
  | {
      kind: 'opened';
      summary: ImageSummary;
      fingerprint: string;
      /** Memory of the cluster cache that the image uses. */
      clusterCache: SharedArrayBuffer;
    }
  | { kind: 'ready' }
  /** Requests come faster than they are answered. */
  | { kind: 'busy' }
  /** What the kernel has cached is to be dropped; see `export/fuse/invalidations.ts`. */
  | { kind: 'invalidate'; job: InvalidationJob }
  /** The image is closed; or what was written last may be lost, because of this. */
  | { kind: 'ended'; failure?: WireError }
  | { kind: 'failed'; error: WireError };

/** What the main thread tells the worker, once. */
export interface ServeMessage {
  /** The descriptor to serve; undefined if the mount failed and there is nothing to do. */
  fd: number | undefined;
}

/** What a worker starts with. */
export interface WorkerInput {
  request: MountRequest;
  /** Int32s by {@link Control}. */
  control: SharedArrayBuffer;
  /** Where all threads count what they do. */
  stats?: MountStatsMemory;
}

/** What a thread starts with that helps the worker; see `fuse-helpers.ts`. */
export interface HelperInput extends WorkerInput {
  /** A descriptor of the connection; the main thread closes it. */
  fd: number;
  fingerprint: string;
  /** Memory of the cluster cache of all threads, and the number of this one there. */
  clusterCache: SharedArrayBuffer;
  cacheOwner: number;
  /** The number of this thread, from 1: 0 is the worker. */
  row: number;
}

/** Why a helper could not start, or had to end. */
export interface HelperMessage {
  error: WireError;
}

/** What main thread and worker tell each other while the worker is busy. Each is 0 at first. */
export const Control = {
  /** Not 0 once the worker is to stop after the request that it is serving. */
  stop: 0,
  /** Not 0 once the worker takes no more requests, and only has the image to close. */
  hasStopped: 1,
  /** Jobs of dropping cached pages that have been done. */
  jobsDone: 2,
  /** Not 0 once somebody is told that the mount stands. */
  isAccepted: 3,
  /** Not 0 once helpers are to end after the requests that they are serving. */
  stopHelpers: 4,
  /** Counted up to wake helpers. */
  calls: 5,
  /** Helpers that sleep. */
  asleep: 6,
  /** What was agreed on with the kernel. */
  agreedFlags: 7,
} as const;

/** What the serving process tells the command: one line of JSON. */
export type LaunchResult = { ok: true; summary: MountSummary } | { ok: false; error: WireError };
