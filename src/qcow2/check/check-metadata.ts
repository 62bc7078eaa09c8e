/**
 * Checks all metadata of an image in QEMU's order: references to host clusters against stored
 * refcounts, COPIED flags, and all tables on the way. Nothing is written.
 */

import type { BlockDevice } from '../../device/block-device.ts';
import { Qcow2Error } from '../../errors.ts';
import type { BitmapEntry } from '../../format/qcow2/bitmap-directory.ts';
import { HeaderField } from '../../format/qcow2/header.ts';
import type { Qcow2Header } from '../../format/qcow2/header.ts';
import { BitmapRepairs } from './bitmap-repairs.ts';
import { checkBitmaps, readBitmaps } from './bitmaps.ts';
import { CheckReport } from './check-report.ts';
import { checkRefcountBlocks, compareRefcounts } from './compare-refcounts.ts';
import { checkCopiedFlags } from './copied-flags.ts';
import { hexHeaderField, promisesRawDataFileWithoutOne } from './far-offsets.ts';
import { MappingCheck } from './mapping-tables.ts';
import type { ZeroedEntries } from './mapping-tables.ts';
import { MetadataFile } from './metadata-file.ts';
import { References } from './references.ts';
import { SnapshotTable } from './snapshots.ts';
import { StoredRefcounts } from './stored-refcounts.ts';

/** Host clusters that can be counted (QEMU). */
const MAX_HOST_CLUSTERS = 2 ** 31 - 1;

/** An image whose metadata is looked at. */
export interface CheckedImage {
  header: Qcow2Header;
  /** The image's own file. */
  file: BlockDevice;
}

/** How {@link countReferences} counts. */
export interface CountOptions {
  /** What is to be repaired (default nothing). */
  fix?: 'leaks' | 'all' | undefined;
  /** Bytes that the file is taken to have, if more than it has. */
  fileSize?: number;
  /** Leave the refcount structures uncounted (default false). */
  withoutRefcounts?: boolean;
  /** Leave the snapshot table uncounted (default false). */
  withoutSnapshotTable?: boolean;
}

/** What the references of an image were counted from, and what came of it. */
export interface CountedImage {
  header: Qcow2Header;
  references: References;
  stored: StoredRefcounts;
  mapping: MappingCheck;
  snapshots: SnapshotTable;
  /** How many rows of the snapshot table are wrong, which has nothing to do with the rest. */
  snapshotRowErrors: number;
  /** How much was wrong with the place of the snapshot table. */
  snapshotTableErrors: number;
  /** The bitmaps that can be trusted. */
  bitmaps: readonly BitmapEntry[];
  bitmapRepairs: BitmapRepairs;
  /** L2 entries that a repair has to make zero clusters. */
  zeroed: ZeroedEntries;
  /** Whether the refcount blocks are so damaged that they have to be rebuilt. */
  needsRebuild: boolean;
}

/**
 * Checks everything in QEMU's order.
 *
 * @returns the end of the last cluster that is in use or counted as being in use, in bytes
 * @throws {Qcow2Error} `CORRUPT`, `TOO_LARGE` or `UNSUPPORTED` where the check cannot be done
 */
export function checkMetadata(image: CheckedImage, report: CheckReport): number {
  const counted = countReferences(image, report);
  const { header, references, stored, mapping } = counted;
  const { highest } = compareRefcounts({ references, stored, report });

  // Where every count is as stored, none above one, and every flag is set, no flag can be wrong:
  // that saves reading all tables again.
  const isPlain = !references.counts.hasShared && !mapping.hasUncopied;
  const isSound = report.corruptions + report.leaks + report.checkErrors === 0;
  if (!isPlain || !isSound) checkCopiedFlags({ header, mapping, refcounts: stored, report });
  return (highest + 1) * header.clusterSize;
}

/**
 * Checks all tables and counts what they refer to.
 * @throws {Qcow2Error} as {@link checkMetadata}
 */
export function countReferences(
  image: CheckedImage,
  report: CheckReport,
  options: CountOptions = {},
): CountedImage {
  const { header } = image;
  const { clusterSize, refcountOrder } = header;
  const file = new MetadataFile(image.file);
  checkCheckable(header, file);
  const bitmaps = header.areBitmapsValid ? readBitmaps(image) : undefined;
  if (bitmaps === undefined && header.extensions.bitmaps !== undefined) {
    report.remark(
      () =>
        'warning: a program lacking bitmap support modified this file, so all bitmaps are now ' +
        'considered inconsistent; their clusters may be leaked',
    );
  }
  const isRepair = options.fix === 'all';
  const zeroed: ZeroedEntries = new Map();
  const stored = new StoredRefcounts(header, file);
  const snapshots = new SnapshotTable(header, file, isRepair ? report : undefined);
  snapshots.checkRows(report, { isRepair });
  const snapshotRowErrors = report.corruptions;
  const fileSize = Math.max(file.size, options.fileSize ?? 0);
  const references = new References(report, { fileSize, clusterSize, refcountOrder });
  const mapping = new MappingCheck(header, {
    ...{ file, references, report },
    zeroed: isRepair ? zeroed : undefined,
  });

  references.add({ offset: 0, length: clusterSize });
  checkMapping({ image, mapping, snapshots, report });
  const beforeSnapshotTable = report.corruptions;
  if (options.withoutSnapshotTable !== true) {
    references.add({
      offset: header.snapshotsOffset,
      length: snapshots.length,
      hexOffset: () => hexHeaderField(image.file, HeaderField.SNAPSHOTS_OFFSET),
    });
  }
  const snapshotTableErrors = report.corruptions - beforeSnapshotTable;
  if (options.withoutRefcounts !== true) {
    references.add({
      offset: header.refcountTableOffset,
      length: stored.tableSize * 8,
      hexOffset: () => hexHeaderField(image.file, HeaderField.REFCOUNT_TABLE_OFFSET),
    });
  }
  references.add(header.extensions.encryptionHeader ?? { offset: 0, length: 0 });
  const bitmapRepairs = new BitmapRepairs(report);
  const repairs = isRepair ? bitmapRepairs : undefined;
  if (bitmaps !== undefined) checkBitmaps({ header, bitmaps, file, references, repairs });
  const { fix } = options;
  const needsRebuild =
    options.withoutRefcounts !== true && checkRefcountBlocks({ references, stored, report, fix });
  return {
    ...{ header, references, stored, mapping, snapshots, zeroed, needsRebuild },
    ...{ snapshotRowErrors, snapshotTableErrors },
    bitmaps: bitmaps ?? [],
    bitmapRepairs,
  };
}

function checkCheckable(header: Qcow2Header, file: MetadataFile): void {
  if (file.size / header.clusterSize > MAX_HOST_CLUSTERS) {
    throw new Qcow2Error('TOO_LARGE', `the file has more than ${MAX_HOST_CLUSTERS} clusters`, {
      structure: 'image',
      offset: 0,
    });
  }
  if (promisesRawDataFileWithoutOne(header)) {
    throw new Qcow2Error('CORRUPT', 'autoclear bit 1 is set, but there is no data file', {
      structure: 'header',
      offset: HeaderField.AUTOCLEAR_FEATURES,
    });
  }
}

function checkMapping({
  image: { header, file },
  mapping,
  snapshots,
  report,
}: {
  image: CheckedImage;
  mapping: MappingCheck;
  snapshots: SnapshotTable;
  report: CheckReport;
}): void {
  const active = {
    offset: header.l1TableOffset,
    size: header.l1Size,
    hexOffset: () => hexHeaderField(file, HeaderField.L1_TABLE_OFFSET),
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
