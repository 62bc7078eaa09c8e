/** Holds the stored refcounts against the references that were counted. */

import { PAGE_CLUSTERS } from './reference-counts.ts';
import type { ReferenceCounts } from './reference-counts.ts';
import type { References } from './references.ts';
import type { CheckReport } from './check-report.ts';
import type { StoredRefcounts } from './stored-refcounts.ts';

/** What refcounts are compared with each other. */
export interface RefcountComparison {
  references: References;
  stored: StoredRefcounts;
  report: CheckReport;
  /** What is repaired (default nothing): then those problems are told of as being repaired. */
  fix?: 'leaks' | 'all' | undefined;
  /** Is given the counts that are to be stored, in the order of the clusters. */
  onRepair?: (cluster: number, count: number) => void;
}

/** What {@link compareRefcounts} finds. */
export interface ComparedRefcounts {
  /** The last cluster that is in use or counted as being in use. */
  highest: number;
  /** Whether a cluster that is in use is counted as being free, so that its count has no place. */
  needsRebuild: boolean;
}

/**
 * Counts the refcount blocks themselves, and checks where they are.
 * @returns whether the refcount structures have to be rebuilt
 */
export function checkRefcountBlocks(comparison: RefcountComparison): boolean {
  const { references, stored, report, fix } = comparison;
  const { counts, clusterSize } = references;
  let needsRebuild = false;
  for (let index = 0; index < stored.presentEntries; index++) {
    const { offset, hasReservedBits, isAligned } = stored.entry(index);
    if (hasReservedBits) {
      report.corruption(() => `ERROR refcount table entry ${index} has reserved bits set`);
      needsRebuild = true;
    } else if (!isAligned) {
      report.corruption(
        () =>
          `ERROR refcount block ${index} is not cluster aligned; refcount table entry corrupted`,
      );
      needsRebuild = true;
    } else if (offset / clusterSize >= counts.clusterCount) {
      const what = fix === 'all' ? 'Repairing' : 'ERROR';
      report.corruption(() => `${what} refcount block ${index} is outside image`);
      // It counts nothing as long as it is there, which does not keep leaks from being repaired.
      needsRebuild ||= fix === 'all';
    } else if (offset !== 0) {
      references.add({ offset, length: clusterSize });
      const count = counts.get(offset / clusterSize);
      if (count !== 1) {
        report.corruption(() => `ERROR refcount block ${index} refcount=${count}`);
        needsRebuild = true;
      }
    }
  }
  return needsRebuild;
}

const NO_COUNTS = new Uint16Array(PAGE_CLUSTERS);

/** Stands for blocks that are not there. */
const EMPTY_BLOCK = { counts: NO_COUNTS, exact: () => 0n };

/** Compares all refcounts and reports those that differ. */
export function compareRefcounts(comparison: RefcountComparison): ComparedRefcounts {
  const { references, stored, report } = comparison;
  const { counts } = references;
  const { clusterCount } = counts;
  const { blockEntries } = stored;
  const pageCopy = new Uint16Array(PAGE_CLUSTERS);
  let highest = 0;
  let needsRebuild = false;
  let isSignalled = false;
  let page: Uint16Array = NO_COUNTS;
  let pageIndex = -1;
  let block: { counts: Uint16Array; exact(index: number): bigint } = EMPTY_BLOCK;
  let blockIndex = -1;
  let isReadable = true;
  let end: number;
  for (let start = 0; start < clusterCount; start = end) {
    const startPage = Math.floor(start / PAGE_CLUSTERS);
    const startBlock = Math.floor(start / blockEntries);
    const pageEnd = Math.min((startPage + 1) * PAGE_CLUSTERS, clusterCount);
    end = Math.min((startBlock + 1) * blockEntries, pageEnd);
    if (!stored.hasBlock(startBlock) && !counts.hasPage(startPage)) {
      if (startBlock >= stored.presentEntries) end = pageEnd;
      continue;
    }
    if (startPage !== pageIndex) {
      pageIndex = startPage;
      page = pageOf(counts, pageIndex, pageCopy);
    }
    if (startBlock !== blockIndex) {
      blockIndex = startBlock;
      const isThere = stored.hasBlock(blockIndex);
      isReadable = !isThere || stored.entry(blockIndex).isReadable;
      block = isThere && isReadable ? stored.decode(blockIndex) : EMPTY_BLOCK;
    }
    if (!isReadable) {
      if (!isSignalled && !stored.entry(blockIndex).isAligned) {
        signalUnaligned(report, stored, blockIndex);
        isSignalled = true;
      }
      for (let cluster = start; cluster < end; cluster++) {
        report.checkError(() => `Can't get refcount for cluster ${cluster}: Input/output error`);
      }
      continue;
    }
    const pageAt = start - startPage * PAGE_CLUSTERS;
    const blockAt = block === EMPTY_BLOCK ? pageAt : start - startBlock * blockEntries;
    const length = end - start;
    const counted = page.subarray(pageAt, pageAt + length);
    const storedCounts = block.counts.subarray(blockAt, blockAt + length);
    const last = lastInUse(counted, storedCounts);
    if (last >= 0) highest = start + last;
    // One memcmp for each page of a sound image.
    if (!counts.hasLarge && equal(counted, storedCounts)) continue;
    for (let at = 0; at <= last; at++) {
      if (counted[at] === storedCounts[at] && counted[at] !== 0xffff) continue;
      const cluster = start + at;
      const refcount = block.exact(blockAt + at);
      const reference = BigInt(counts.get(cluster));
      if (refcount === reference) continue;
      if (refcount === 0n) needsRebuild = true;
      reportMismatch(comparison, { cluster, refcount, reference });
    }
  }
  return { highest, needsRebuild };
}

function reportMismatch(
  { report, fix, onRepair }: RefcountComparison,
  { cluster, refcount, reference }: { cluster: number; refcount: bigint; reference: bigint },
): void {
  const isLeak = refcount > reference;
  const isRepaired = fix === 'all' || (fix === 'leaks' && isLeak);
  const what = isRepaired ? 'Repairing' : isLeak ? 'Leaked' : 'ERROR';
  const message = (): string =>
    `${what} cluster ${cluster} refcount=${refcount} reference=${reference}`;
  if (isRepaired) {
    report.repaired(isLeak ? 'leak' : 'corruption', message);
    onRepair?.(cluster, Number(reference));
  } else if (isLeak) {
    report.leak(message);
  } else {
    report.corruption(message);
  }
}

function pageOf(counts: ReferenceCounts, pageIndex: number, copy: Uint16Array): Uint16Array {
  const dense = counts.densePage(pageIndex);
  if (dense !== undefined) return dense;
  if (!counts.hasPage(pageIndex)) return NO_COUNTS;
  counts.copyPage(pageIndex, copy);
  return copy;
}

function equal(a: Uint16Array, b: Uint16Array): boolean {
  return bytesOf(a).equals(bytesOf(b));
}

function bytesOf(counts: Uint16Array): Buffer {
  return Buffer.from(counts.buffer, counts.byteOffset, counts.byteLength);
}

function lastInUse(a: Uint16Array, b: Uint16Array): number {
  let at = a.length - 1;
  while (at >= 0 && a[at] === 0 && b[at] === 0) at--;
  return at;
}

function signalUnaligned(report: CheckReport, stored: StoredRefcounts, index: number): void {
  const { hexOffset } = stored.entry(index);
  report.remark(
    () =>
      `qcow2: Image is corrupt: Refblock offset 0x${hexOffset()} unaligned ` +
      `(reftable index: ${index === 0 ? '0' : `0x${index.toString(16)}`}); further non-fatal ` +
      'corruption events will be suppressed',
  );
}
