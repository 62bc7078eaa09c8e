/**
 * The part of a conversion that threads can share: a chunk of the source is read, and what of it is
 * zero is found, or its clusters are compressed.
 */

import { clusterEncoder } from '../compression/codec.ts';
import type { ClusterEncoder, CompressionType } from '../compression/codec.ts';
import type { BlockDevice } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import { alignUp, isAllZero } from '../util/bytes.ts';
import { SECTOR_BYTES } from './sector-padded.ts';
import { nonZeroRuns } from './zero-runs.ts';

/** How chunks are prepared. Can be sent to another thread. */
export interface ChunkSpec {
  /** Most bytes of a chunk; with compression a multiple of the cluster size. */
  chunkBytes: number;
  /** Which zeroes of the data are left out; undefined: none. */
  sparse: { blockBytes: number; minimumZeroBytes: number } | undefined;
  /** How clusters are compressed; undefined: not at all. */
  compression: { type: CompressionType; clusterSize: number } | undefined;
  /** Take zeroes for what cannot be read. */
  salvage: boolean;
}

/** A part of the source. */
export interface ChunkRequest {
  offset: number;
  length: number;
}

/** A part of the source that could not be read. */
export interface UnreadableRange extends ChunkRequest {
  /** Why. */
  problem: string;
}

/** What {@link ChunkPreparer} found. Can be sent to another thread. */
export interface PreparedChunk {
  /** Without compression: start and end, in turn, of the runs that are not zeroes. */
  runs: number[];
  /**
   * With compression: of each cluster the length that it has compressed, ALL_ZERO, or
   * INCOMPRESSIBLE. Compressed, each is where the cluster itself is in the source's bytes.
   */
  lengths: number[];
  unreadable: UnreadableRange[];
}

/** Stands for a cluster that holds zeroes only, and is left out. */
export const ALL_ZERO = 0;
/** Stands for a cluster that compression does not make smaller. */
export const INCOMPRESSIBLE = -1;

/** Reads chunks of a device, and looks for zeroes or compresses. */
export class ChunkPreparer {
  readonly #device: BlockDevice;
  readonly #spec: ChunkSpec;
  readonly #encoder: ClusterEncoder | undefined;

  /** @throws {Qcow2Error} `MISSING_DEPENDENCY` if nothing here compresses as the chunks should be */
  constructor(device: BlockDevice, spec: ChunkSpec) {
    this.#device = device;
    this.#spec = spec;
    if (spec.compression !== undefined) this.#encoder = clusterEncoder(spec.compression.type);
  }

  /**
   * Prepares a chunk.
   *
   * @param bytes room for a chunk, for what is read
   * @param compressed as much room, for what comes of that; with compression only
   * @throws {Qcow2Error} if the device cannot be read
   */
  prepare(
    { offset, length }: ChunkRequest,
    bytes: Uint8Array,
    compressed: Uint8Array | undefined,
  ): PreparedChunk {
    const unreadable = this.#read(bytes.subarray(0, length), offset);
    return this.examine({ offset, length }, bytes, compressed, unreadable);
  }

  /**
   * Prepares a chunk that has been read.
   *
   * @param bytes what was read, with room for a chunk
   * @param compressed as {@link prepare}
   */
  examine(
    { offset, length }: ChunkRequest,
    bytes: Uint8Array,
    compressed?: Uint8Array,
    unreadable: UnreadableRange[] = [],
  ): PreparedChunk {
    const { compression, sparse } = this.#spec;
    if (compression !== undefined) {
      const { clusterSize } = compression;
      const end = alignUp(length, clusterSize);
      bytes.fill(0, length, end);
      const lengths: number[] = [];
      for (let at = 0; at < end; at += clusterSize) {
        const cluster = bytes.subarray(at, at + clusterSize);
        lengths.push(this.#compress(cluster, compressed!.subarray(at, at + clusterSize)));
      }
      return { runs: [], lengths, unreadable };
    }
    if (sparse === undefined) return { runs: [0, length], lengths: [], unreadable };
    const runs: number[] = [];
    const data = bytes.subarray(0, length);
    for (const { start, end } of nonZeroRuns(data, { ...sparse, offset })) runs.push(start, end);
    return { runs, lengths: [], unreadable };
  }

  #compress(cluster: Uint8Array, target: Uint8Array): number {
    if (this.#spec.sparse !== undefined && isAllZero(cluster)) return ALL_ZERO;
    return this.#encoder!(cluster, target) ?? INCOMPRESSIBLE;
  }

  #read(data: Uint8Array, offset: number): UnreadableRange[] {
    try {
      this.#device.read(data, offset);
      return [];
    } catch (error) {
      if (!this.#spec.salvage || !(error instanceof Qcow2Error)) throw error;
    }
    return this.#readSectors(data, offset);
  }

  /** Reads as much as can be read. */
  #readSectors(data: Uint8Array, offset: number): UnreadableRange[] {
    const unreadable: UnreadableRange[] = [];
    for (let at = 0; at < data.length; at += SECTOR_BYTES) {
      const sector = data.subarray(at, at + SECTOR_BYTES);
      try {
        this.#device.read(sector, offset + at);
      } catch (error) {
        if (!(error instanceof Qcow2Error)) throw error;
        sector.fill(0);
        const { length } = sector;
        const last = unreadable.at(-1);
        const isNext = last?.problem === error.message && last.offset + last.length === offset + at;
        if (isNext) last.length += length;
        else unreadable.push({ offset: offset + at, length, problem: error.message });
      }
    }
    return unreadable;
  }
}
