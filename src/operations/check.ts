/**
 * Checking the metadata of a qcow2 image: references to host clusters against stored refcounts,
 * COPIED flags, and all tables on the way. Nothing is written.
 *
 * The verdict and its numbers are those of `qemu-img check`, and so are the messages.
 */

import { openImage } from '../chain/open.ts';
import type { Image, OpenImageOptions } from '../chain/open.ts';
import { Qcow2Error } from '../errors.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import type { Qcow2Image } from '../qcow2/image.ts';
import { checkBitmaps } from './check/bitmaps.ts';
import { checkRefcountBlocks, compareRefcounts } from './check/compare-refcounts.ts';
import { checkCopiedFlags } from './check/copied-flags.ts';
import { MappingCheck } from './check/mapping-tables.ts';
import { MetadataFile } from './check/metadata-file.ts';
import { References } from './check/references.ts';
import { CheckReport } from './check/report.ts';
import type { ProblemListener } from './check/report.ts';
import { SnapshotTable } from './check/snapshots.ts';
import { StoredRefcounts } from './check/stored-refcounts.ts';

export type { CheckProblem, ProblemListener } from './check/report.ts';

/** Host clusters that can be counted (QEMU). */
const MAX_HOST_CLUSTERS = 2 ** 31 - 1;

/** Options of {@link checkImage}. */
export interface CheckOptions {
  /** Is told of each problem as it is met. */
  onProblem?: ProblemListener | undefined;
}

/** The result of a check: qemu-img's document, in its order. Numbers that are 0 are left out. */
export interface CheckResult {
  /** Bytes of the file up to the end of the last cluster that is in use. */
  'image-end-offset'?: number;
  /** Clusters of the disk that are compressed. */
  'compressed-clusters'?: number;
  /** Clusters of the disk. */
  'total-clusters'?: number;
  /** Problems that may damage data, or have. */
  corruptions?: number;
  /** Things that could not be checked; always there. */
  'check-errors': number;
  /** Clusters that are counted more often than they are used: wasted space. */
  leaks?: number;
  /** Clusters of the disk that have host space. */
  'allocated-clusters'?: number;
  /** Path of the image. */
  filename: string;
  format: 'qcow2';
  /** Allocated clusters that are not stored after the one before. */
  'fragmented-clusters'?: number;
}

/**
 * Opens an image to check it. Its backing file is opened too, so that a lost one shows, but one
 * that the policy refuses does not matter: nothing is read from it.
 *
 * @throws {Qcow2Error} as {@link openImage}
 */
export function openForCheck(path: string, options: OpenImageOptions = {}): Image {
  try {
    return openImage(path, options);
  } catch (error) {
    if (!(error instanceof Qcow2Error) || error.code !== 'REFUSED') throw error;
    return openImage(path, { ...options, withoutBacking: true });
  }
}

/**
 * Checks the metadata of an image; its backing files are not looked at.
 *
 * @throws {Qcow2Error} `CORRUPT`, `TOO_LARGE` or `UNSUPPORTED` where snapshots or bitmaps keep the
 * check from being done at all
 * @example
 * using image = openImage('disk.qcow2');
 * const { corruptions = 0, leaks = 0 } = checkImage(image);
 */
export function checkImage(image: Qcow2Image, { onProblem }: CheckOptions = {}): CheckResult {
  try {
    const report = new CheckReport(onProblem);
    const endOffset = checkMetadata(image, report);
    return describe(image, report, endOffset);
  } catch (error) {
    throw error instanceof Qcow2Error ? error.inFile(image.path) : error;
  }
}

/** Checks everything in QEMU's order and returns the end of the last cluster in use. */
function checkMetadata(image: Qcow2Image, report: CheckReport): number {
  const { header } = image;
  const { clusterSize, refcountOrder } = header;
  const file = new MetadataFile(image.file);
  if (file.size / clusterSize > MAX_HOST_CLUSTERS) {
    throw new Qcow2Error('TOO_LARGE', `the file has more than ${MAX_HOST_CLUSTERS} clusters`, {
      structure: 'image',
      offset: 0,
    });
  }
  const bitmaps = header.areBitmapsValid ? image.bitmaps : undefined;
  if (bitmaps === undefined && header.extensions.bitmaps !== undefined) {
    report.remark(
      () =>
        'warning: a program lacking bitmap support modified this file, so all bitmaps are now ' +
        'considered inconsistent; their clusters may be leaked',
    );
  }
  const stored = new StoredRefcounts(header, file);
  const snapshots = new SnapshotTable(header, file);
  snapshots.checkRows(report);
  const references = new References(report, { fileSize: file.size, clusterSize, refcountOrder });
  const mapping = new MappingCheck(header, { file, references, report });

  references.add({ offset: 0, length: clusterSize });
  checkMapping({ header, mapping, snapshots, report });
  references.add({ offset: header.snapshotsOffset, length: snapshots.length });
  references.add({ offset: header.refcountTableOffset, length: stored.tableSize * 8 });
  references.add(header.extensions.encryptionHeader ?? { offset: 0, length: 0 });
  if (bitmaps !== undefined) checkBitmaps({ header, bitmaps, file, references });
  checkRefcountBlocks({ references, stored, report });
  const highest = compareRefcounts({ references, stored, report });

  // Where every count is as stored, none above one, and every flag is set, no flag can be wrong:
  // that saves reading all tables again.
  const isPlain = !references.counts.hasShared && !mapping.hasUncopied;
  const isSound = report.corruptions + report.leaks + report.checkErrors === 0;
  if (!isPlain || !isSound) checkCopiedFlags({ header, mapping, stored, report });
  return (highest + 1) * clusterSize;
}

function checkMapping({
  header,
  mapping,
  snapshots,
  report,
}: {
  header: Qcow2Header;
  mapping: MappingCheck;
  snapshots: SnapshotTable;
  report: CheckReport;
}): void {
  const active = {
    offset: header.l1TableOffset,
    size: header.l1Size,
    isActive: true,
    weight: 1,
  };
  // Rows that cannot be used are told of after the active tables.
  const unlistened = new CheckReport(undefined);
  for (const table of [active, ...snapshots.l1Tables(unlistened)]) mapping.register(table);
  mapping.check(active);
  if (header.hasExternalDataFile && header.snapshotCount > 0) {
    report.corruption(() => `ERROR ${header.snapshotCount} snapshots in image with data file`);
  }
  for (const table of snapshots.l1Tables(report)) mapping.check(table);
}

function describe(image: Qcow2Image, report: CheckReport, endOffset: number): CheckResult {
  const { clusterSize, size } = image.header;
  return {
    ...unlessZero('image-end-offset', endOffset),
    ...unlessZero('compressed-clusters', report.compressedClusters),
    ...unlessZero('total-clusters', Math.ceil(size / clusterSize)),
    ...unlessZero('corruptions', report.corruptions),
    'check-errors': report.checkErrors,
    ...unlessZero('leaks', report.leaks),
    ...unlessZero('allocated-clusters', report.allocatedClusters),
    filename: image.path,
    format: 'qcow2',
    ...unlessZero('fragmented-clusters', report.fragmentedClusters),
  };
}

function unlessZero<K extends keyof CheckResult>(key: K, value: number): Partial<CheckResult> {
  return value === 0 ? {} : { [key]: value };
}
