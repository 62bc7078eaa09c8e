/**
 * From guest offsets to what the image stores there (specification: "Cluster mapping",
 * "Extended L2 Entries").
 *
 * A look-up gives the longest run from an offset on that is stored in one way and, for data, in
 * one piece of the host file, as far as one L2 slice tells. Its result stands in the fields of
 * the {@link Mapping} until the next look-up, so that the hot path allocates nothing.
 */

import { Qcow2Error } from '../errors.ts';
import { MAX_HOST_OFFSET } from '../limits.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import {
  compressedLocation,
  EntryFlag,
  entryOffset,
  OFFSET_MASK_HIGH,
  OFFSET_MASK_LOW,
  READS_ZERO,
} from '../format/qcow2/l2-entry.ts';
import { assert } from '../util/assert.ts';
import { formatEntry } from './table-cache.ts';
import type { TableCache } from './table-cache.ts';

/** How a run of guest bytes is stored. */
export const RunKind = {
  /** Not in this image: the backing file answers, or zeroes. May have host space reserved. */
  UNALLOCATED: 0,
  /** Reads as zeroes. May have host space reserved. */
  ZERO: 1,
  /** Stored at the host offset. */
  DATA: 2,
  /** Stored compressed; the run is within one cluster. */
  COMPRESSED: 3,
} as const;

/** One of {@link RunKind}. */
export type RunKind = (typeof RunKind)[keyof typeof RunKind];

/** Where an L1 table is. */
export interface L1Location {
  offset: number;
  /** Entries. */
  size: number;
}

/** Stands for "no host space" in {@link Mapping.hostOffset}. */
export const NO_HOST_OFFSET = -1;

const SUBCLUSTERS = 32;

/** Looks guest offsets up in one L1 table and its L2 tables. */
export class Mapping {
  /** How the run of the last look-up is stored. */
  kind: RunKind = RunKind.UNALLOCATED;
  /** Bytes of the run, from the offset that was looked up. */
  length = 0;
  /** Host offset of the run's first byte, or of the compressed cluster; or NO_HOST_OFFSET. */
  hostOffset = NO_HOST_OFFSET;
  /** Bytes of compressed data, for {@link RunKind.COMPRESSED}. */
  compressedLength = 0;

  readonly #header: Qcow2Header;
  readonly #tables: TableCache;
  readonly #l1: L1Location;
  readonly #clusterSize: number;
  readonly #l2Entries: number;
  /** Entries of an L2 slice. */
  readonly #sliceEntries: number;
  /** 32-bit words of an L2 entry: 2, or 4 with subclusters. */
  readonly #entryWords: number;

  constructor(header: Qcow2Header, tables: TableCache, l1: L1Location) {
    this.#header = header;
    this.#tables = tables;
    this.#l1 = l1;
    this.#clusterSize = header.clusterSize;
    this.#l2Entries = header.l2Entries;
    this.#sliceEntries = tables.sliceBytes / header.l2EntrySize;
    this.#entryWords = header.l2EntrySize / 4;
  }

  /**
   * Looks up the run that starts at `guestOffset` and sets the result fields.
   *
   * @param maxLength most bytes that are of interest; at least 1. The run never exceeds it
   * @throws {Qcow2Error} `CORRUPT` or `TRUNCATED`, naming the entry
   */
  lookup(guestOffset: number, maxLength: number): void {
    const clusterSize = this.#clusterSize;
    const cluster = Math.floor(guestOffset / clusterSize);
    const inCluster = guestOffset - cluster * clusterSize;
    const l1Index = Math.floor(cluster / this.#l2Entries);
    const l2Index = cluster - l1Index * this.#l2Entries;
    const l2Offset = this.#l2TableOffset(l1Index);
    if (l2Offset === 0) {
      this.kind = RunKind.UNALLOCATED;
      this.hostOffset = NO_HOST_OFFSET;
      const tableBytes = (this.#l2Entries - l2Index) * clusterSize - inCluster;
      this.length = Math.min(tableBytes, maxLength);
      return;
    }
    const firstInSlice = l2Index % this.#sliceEntries;
    const sliceOffset = l2Offset + (l2Index - firstInSlice) * this.#header.l2EntrySize;
    const words = this.#tables.slice(sliceOffset, l2Offset + clusterSize, 'L2 table');
    if (this.#entryWords === 4) {
      this.#lookupSubclusters(words, firstInSlice, inCluster, maxLength, sliceOffset);
    } else {
      this.#lookupClusters(words, firstInSlice, inCluster, maxLength, sliceOffset);
    }
    // With a raw external data file, host space has to be where the guest expects its data.
    const { hostOffset } = this;
    const isElsewhere = hostOffset !== NO_HOST_OFFSET && hostOffset !== guestOffset;
    if (isElsewhere && this.#header.isDataFileRaw && this.kind !== RunKind.COMPRESSED) {
      throw this.#entryError(
        sliceOffset + firstInSlice * this.#header.l2EntrySize,
        `guest offset ${guestOffset} is at offset ${hostOffset} of a raw external data file`,
      );
    }
  }

  #l2TableOffset(l1Index: number): number {
    const { offset: l1Offset, size } = this.#l1;
    if (l1Index >= size) return 0;
    const entryPosition = l1Offset + l1Index * 8;
    const inSlice = entryPosition % this.#tables.sliceBytes;
    const words = this.#tables.slice(entryPosition - inSlice, l1Offset + size * 8, 'L1 table');
    const offset = entryOffset(words[inSlice / 4]!, words[inSlice / 4 + 1]!);
    if (offset % this.#clusterSize !== 0 || offset > Number.MAX_SAFE_INTEGER) {
      throw new Qcow2Error('CORRUPT', `its L2 table's offset ${offset} is not aligned`, {
        structure: `L1 entry ${l1Index}`,
        offset: entryPosition,
      });
    }
    return offset;
  }

  // ---- Standard L2 entries ------------------------------------------------------------------

  #lookupClusters(
    words: Uint32Array,
    first: number,
    inCluster: number,
    maxLength: number,
    sliceOffset: number,
  ): void {
    const high = words[2 * first]!;
    const low = words[2 * first + 1]!;
    const kind = this.#entryKind(high, low);
    const entryPosition = sliceOffset + first * 8;
    const clusterSize = this.#clusterSize;
    this.kind = kind;
    if (kind === RunKind.COMPRESSED) {
      this.#setCompressed(high, low, inCluster, maxLength, entryPosition);
      return;
    }
    if (kind === RunKind.ZERO && this.#header.version < 3) {
      throw this.#entryError(entryPosition, 'a version 2 image has no zero clusters');
    }
    const hostOffset = this.#clusterHostOffset(high, low, kind, entryPosition);
    this.hostOffset = hostOffset === NO_HOST_OFFSET ? NO_HOST_OFFSET : hostOffset + inCluster;

    // Entries continue the run while they are of its kind and, with host space, follow on.
    const wanted = inCluster + maxLength;
    let length = clusterSize;
    for (let index = first + 1; length < wanted && index < this.#sliceEntries; index++) {
      const nextHigh = words[2 * index]!;
      const nextLow = words[2 * index + 1]!;
      if (this.#entryKind(nextHigh, nextLow) !== kind) break;
      const nextOffset = entryOffset(nextHigh, nextLow);
      if (hostOffset === NO_HOST_OFFSET ? nextOffset !== 0 : nextOffset !== hostOffset + length) {
        break;
      }
      length += clusterSize;
    }
    this.length = Math.min(length, wanted) - inCluster;
  }

  #entryKind(high: number, low: number): RunKind {
    if ((high & EntryFlag.COMPRESSED) !== 0) return RunKind.COMPRESSED;
    if ((low & READS_ZERO) !== 0) return RunKind.ZERO;
    if ((high & OFFSET_MASK_HIGH) !== 0 || (low & OFFSET_MASK_LOW) !== 0) return RunKind.DATA;
    // Offset 0 of an external data file is told from "unallocated" by the COPIED flag.
    const isFirstDataCluster = this.#header.hasExternalDataFile && (high & EntryFlag.COPIED) !== 0;
    return isFirstDataCluster ? RunKind.DATA : RunKind.UNALLOCATED;
  }

  #clusterHostOffset(high: number, low: number, kind: RunKind, entryPosition: number): number {
    const offset = entryOffset(high, low);
    if (offset === 0 && kind !== RunKind.DATA) return NO_HOST_OFFSET;
    if (offset % this.#clusterSize !== 0 || offset > Number.MAX_SAFE_INTEGER) {
      throw this.#entryError(
        entryPosition,
        `its cluster's offset ${formatEntry(high & OFFSET_MASK_HIGH, low & OFFSET_MASK_LOW)} is not aligned`,
      );
    }
    return offset;
  }

  #setCompressed(
    high: number,
    low: number,
    inCluster: number,
    maxLength: number,
    entryPosition: number,
  ): void {
    if (this.#header.hasExternalDataFile) {
      throw this.#entryError(
        entryPosition,
        'an image with an external data file has no compressed clusters',
      );
    }
    const location = compressedLocation(high, low, this.#header.clusterBits);
    if (location.offset > MAX_HOST_OFFSET || !Number.isSafeInteger(location.offset)) {
      throw this.#entryError(
        entryPosition,
        `its offset is out of bounds (${formatEntry(high, low)})`,
      );
    }
    this.hostOffset = location.offset;
    this.compressedLength = location.length;
    this.length = Math.min(this.#clusterSize - inCluster, maxLength);
  }

  #entryError(entryPosition: number, problem: string): Qcow2Error {
    return new Qcow2Error('CORRUPT', problem, { structure: 'L2 entry', offset: entryPosition });
  }

  // ---- Extended L2 entries ------------------------------------------------------------------

  #lookupSubclusters(
    words: Uint32Array,
    first: number,
    inCluster: number,
    maxLength: number,
    sliceOffset: number,
  ): void {
    const clusterSize = this.#clusterSize;
    const subclusterSize = clusterSize / SUBCLUSTERS;
    const wanted = inCluster + maxLength;
    let runKind: RunKind | undefined;
    let runHost = NO_HOST_OFFSET;
    let length = 0;
    for (let index = first; length < wanted && index < this.#sliceEntries; index++) {
      const high = words[4 * index]!;
      const low = words[4 * index + 1]!;
      if ((high & EntryFlag.COMPRESSED) !== 0) {
        if (runKind !== undefined) break;
        this.kind = RunKind.COMPRESSED;
        this.#setCompressed(high, low, inCluster, maxLength, sliceOffset + index * 16);
        return;
      }
      // An invalid neighbour ends the run; it is reported when it is looked up itself.
      if (runKind !== undefined && !this.#isValidExtended(words, index)) break;
      const isData = this.#entryKind(high, low & ~READS_ZERO) === RunKind.DATA;
      const host = this.#extendedHostOffset(words, index, sliceOffset + index * 16);
      const readsZero = words[4 * index + 2]!;
      const isAllocated = words[4 * index + 3]!;
      let subcluster = index === first ? Math.floor(inCluster / subclusterSize) : 0;
      if (runKind === undefined) {
        runKind = subclusterKind(readsZero, isAllocated, subcluster, isData);
        runHost = host;
        length = subcluster * subclusterSize;
      } else if (
        host === NO_HOST_OFFSET
          ? runHost !== NO_HOST_OFFSET
          : host !== runHost + (index - first) * clusterSize
      ) {
        break;
      }
      while (
        subcluster < SUBCLUSTERS &&
        length < wanted &&
        subclusterKind(readsZero, isAllocated, subcluster, isData) === runKind
      ) {
        length += subclusterSize;
        subcluster++;
      }
      if (subcluster < SUBCLUSTERS) break;
    }
    assert(runKind !== undefined, 'a look-up of at least one byte finds a subcluster');
    this.kind = runKind;
    this.hostOffset = runHost === NO_HOST_OFFSET ? NO_HOST_OFFSET : runHost + inCluster;
    this.length = Math.min(length, wanted) - inCluster;
  }

  #isValidExtended(words: Uint32Array, index: number): boolean {
    const high = words[4 * index]!;
    const low = words[4 * index + 1]!;
    const readsZero = words[4 * index + 2]!;
    const isAllocated = words[4 * index + 3]!;
    if ((readsZero & isAllocated) !== 0) return false;
    if (this.#entryKind(high, low & ~READS_ZERO) !== RunKind.DATA) return isAllocated === 0;
    const offset = entryOffset(high, low);
    return offset % this.#clusterSize === 0 && offset <= Number.MAX_SAFE_INTEGER;
  }

  /** The host offset of an extended entry's cluster, after checking its bitmap. */
  #extendedHostOffset(words: Uint32Array, index: number, entryPosition: number): number {
    if (!this.#isValidExtended(words, index)) {
      const bitmap = formatEntry(words[4 * index + 2]!, words[4 * index + 3]!);
      const entry = formatEntry(words[4 * index]!, words[4 * index + 1]!);
      throw this.#entryError(
        entryPosition,
        `entry ${entry} and its subcluster bitmap ${bitmap} contradict each other`,
      );
    }
    const high = words[4 * index]!;
    const low = words[4 * index + 1]!;
    const isData = this.#entryKind(high, low & ~READS_ZERO) === RunKind.DATA;
    return isData ? entryOffset(high, low) : NO_HOST_OFFSET;
  }
}

function subclusterKind(
  readsZero: number,
  isAllocated: number,
  subcluster: number,
  hasHostCluster: boolean,
): RunKind {
  const bit = 1 << subcluster;
  if ((readsZero & bit) !== 0) return RunKind.ZERO;
  return hasHostCluster && (isAllocated & bit) !== 0 ? RunKind.DATA : RunKind.UNALLOCATED;
}
