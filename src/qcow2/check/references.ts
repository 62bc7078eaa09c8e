/** Counts the references that structures of an image make to its host clusters. */

import { PAGE_CLUSTERS, ReferenceCounts } from './reference-counts.ts';
import type { CheckReport } from './check-report.ts';

/** A run of bytes that a structure refers to. */
export interface Region {
  /** Host offset in bytes; can be anything in a damaged image. */
  offset: number;
  /** Bytes. */
  length: number;
  /** The offset in hexadecimal, where a number does not hold it exactly. */
  hexOffset?: () => string;
}

/** Clusters that follow each other. */
export interface ClusterRun {
  first: number;
  count: number;
}

/** Where the references of an image are counted. */
export class References {
  readonly counts: ReferenceCounts;
  readonly clusterSize: number;
  /** Bytes of the file, in whole sectors. */
  readonly fileSize: number;
  readonly #report: CheckReport;

  constructor(
    report: CheckReport,
    geometry: { fileSize: number; clusterSize: number; refcountOrder: number },
  ) {
    const { fileSize, clusterSize, refcountOrder } = geometry;
    this.#report = report;
    this.fileSize = fileSize;
    this.clusterSize = clusterSize;
    this.counts = new ReferenceCounts(Math.ceil(fileSize / clusterSize), refcountOrder);
  }

  /** Whether a region lies within the file, of which the last cluster need not be whole. */
  reaches({ offset, length }: Region): boolean {
    return offset + length - this.fileSize < this.clusterSize;
  }

  /** Counts `weight` references to each cluster that the region touches. */
  add(region: Region, weight = 1): void {
    const { offset, length, hexOffset } = region;
    if (length <= 0) return;
    const { clusterSize } = this;
    if (!this.reaches(region)) {
      this.#report.corruption(
        () =>
          'ERROR: counting reference for region exceeding the end of the file by one cluster or ' +
          `more: offset 0x${hexOffset?.() ?? BigInt(offset).toString(16)} size 0x${length.toString(16)}`,
        weight,
      );
      return;
    }
    const first = Math.floor(offset / clusterSize);
    const last = Math.floor((offset + length - 1) / clusterSize);
    for (let cluster = first; cluster <= last; cluster++) this.addCluster(cluster, weight);
  }

  /** Counts `weight` references to each cluster of a run that the file reaches. */
  addRun({ first, count }: ClusterRun, weight: number): void {
    const end = first + count;
    for (let at = first; at < end;) {
      const pieceEnd = Math.min(end, at - (at % PAGE_CLUSTERS) + PAGE_CLUSTERS);
      if (!this.counts.fill(at, pieceEnd, weight)) {
        for (let cluster = at; cluster < pieceEnd; cluster++) this.addCluster(cluster, weight);
      }
      at = pieceEnd;
    }
  }

  /** Counts `weight` references to a cluster that the file reaches. */
  addCluster(cluster: number, weight: number): void {
    const excess = this.counts.add(cluster, weight);
    if (excess === 0) return;
    this.#report.corruption(
      () =>
        `ERROR: overflow cluster offset=0x${(cluster * this.clusterSize).toString(16)}\n` +
        'Use qemu-img amend to increase the refcount entry width or qemu-img convert to create ' +
        'a clean copy if the image cannot be opened for writing',
      excess,
    );
  }
}
