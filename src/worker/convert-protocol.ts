/** The messages between a conversion and the threads that prepare its chunks. */

import type { MessagePort } from 'node:worker_threads';
import type { ImageDescription } from '../chain/description.ts';
import type { OpenImageOptions } from '../chain/open.ts';
import type { ChunkRequest, ChunkSpec, PreparedChunk } from '../operations/convert-chunk.ts';
import type { WireError } from './wire-error.ts';

/** One of the images that are read, as each thread opens it for itself. */
export interface ConvertInput {
  /** Its path, or a description of it. */
  path: string | ImageDescription;
  options: OpenImageOptions;
  /** The snapshot to read rather than the disk. */
  snapshotId: string | undefined;
}

/** What a thread is started with. */
export interface ConvertWorkerData {
  inputs: readonly ConvertInput[];
  spec: ChunkSpec;
  /** Memory for the chunks: for what is read, and with compression as much behind it. */
  slots: readonly SharedArrayBuffer[];
  /** Where requests come from, and responses go. */
  port: MessagePort;
  /** One number: that of the threads that have started. */
  started: Int32Array;
}

/** Has a thread prepare a chunk in a slot. */
export interface ConvertRequest extends ChunkRequest {
  slot: number;
}

/** What came of it. */
export type ConvertResponse =
  | { slot: number; ok: true; prepared: PreparedChunk }
  | { slot: number; ok: false; error: WireError };

/** The parts of a slot: what is read, and what comes of compressing that. */
export function slotParts(
  slot: SharedArrayBuffer,
  { chunkBytes, compression }: ChunkSpec,
): { bytes: Uint8Array; compressed: Uint8Array | undefined } {
  const bytes = new Uint8Array(slot, 0, chunkBytes);
  if (compression === undefined) return { bytes, compressed: undefined };
  return { bytes, compressed: new Uint8Array(slot, chunkBytes, chunkBytes) };
}

/** Bytes of a slot. */
export function slotBytes({ chunkBytes, compression }: ChunkSpec): number {
  return compression === undefined ? chunkBytes : 2 * chunkBytes;
}
