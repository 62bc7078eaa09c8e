/**
 * Repairs what a check finds wrong, as far as that can be done without guessing: what QEMU repairs.
 *
 * First everything is planned, without a write, so that what cannot be repaired is refused with the
 * file untouched. Then it is written, in an order that leaves the image no worse than it was,
 * whenever it is interrupted:
 *
 * 1. A bitmaps extension that is not to be trusted is dropped, because its clusters are not counted.
 *    Bitmaps of which a part is past the end of the file are marked as inconsistent.
 * 2. L2 entries of misplaced clusters that hold nothing become zero clusters: from then on all
 *    references are final.
 * 3. Refcounts become what was counted, in place, where all of them have a place. Otherwise a whole
 *    new refcount structure is written to clusters that nothing refers to, and the header is
 *    switched to it, and to a repaired snapshot table, in one write. Then bitmaps get new tables.
 * 4. COPIED flags are set where refcounts are durably one, and cleared elsewhere.
 * 5. The header's dirty and corrupt bits go, if nothing is left that is wrong.
 *
 * Each step is durable before the next one begins.
 */

import type { HostFile } from '../../device/block-device.ts';
import { Qcow2Error } from '../../errors.ts';
import type { Qcow2Header } from '../../format/qcow2/header.ts';
import { HeaderWriter } from '../header-writer.ts';
import { countReferences } from './check-metadata.ts';
import type { CountedImage } from './check-metadata.ts';
import { CheckReport } from './check-report.ts';
import type { ProblemCounts, ProblemListener } from './check-report.ts';
import { compareRefcounts } from './compare-refcounts.ts';
import { bytesOf, checkCopiedFlags } from './copied-flags.ts';
import type { RefcountSource, TableWrite } from './copied-flags.ts';
import { hasHiddenBitmaps } from './far-offsets.ts';
import { setZeroEntry } from './mapping-tables.ts';
import { ProtectedClusters } from './protected-clusters.ts';
import { planRebuild, writeRebuild } from './rebuild-refcounts.ts';
import type { Rebuild } from './rebuild-refcounts.ts';
import { storeRefcounts } from './store-refcounts.ts';

/** An image to be repaired, which nobody else has open. */
export interface RepairedImage {
  /** The header as it was decoded from `file`; changed with it. */
  header: Qcow2Header;
  /** The image's own file, writable and growable. */
  file: HostFile;
  /** Path for messages. */
  path: string;
}

/** What is repaired. */
export interface RepairOptions {
  /** `leaks`: only what harms nothing; `all`: everything that can be. */
  fix: 'leaks' | 'all';
  /** Is told of each problem as it is met, repaired or not, before anything is written. */
  onProblem?: ProblemListener | undefined;
}

/** What a repair has done. */
export interface RepairOutcome {
  /** Problems that were repaired. */
  corruptionsFixed: number;
  leaksFixed: number;
  /** What is left. */
  left: ProblemCounts;
}

/** Everything that is to be written. */
interface RepairPlan {
  counted: CountedImage;
  zeroes: TableWrite[];
  refcounts: 'right' | 'in place' | Rebuild;
  flags: TableWrite[];
}

/**
 * Repairs the metadata of an image and returns once that is durable.
 *
 * @throws {Qcow2Error} with the file untouched: `CORRUPT`, `TOO_LARGE` or `UNSUPPORTED` if the image
 * cannot be checked or what is wrong cannot be repaired like this; later: `HOST`
 */
export function repairMetadata(image: RepairedImage, options: RepairOptions): RepairOutcome {
  try {
    const report = new CheckReport(options.onProblem);
    const plan = planRepair(image, options, report);
    carryOut(image, options.fix, plan);
    if (report.corruptions + report.checkErrors === 0) markSound(image);
    const { corruptionsFixed, leaksFixed, counts } = report;
    return { corruptionsFixed, leaksFixed, left: counts };
  } catch (error) {
    throw error instanceof Qcow2Error ? error.inFile(image.path) : error;
  }
}

function planRepair(image: RepairedImage, { fix }: RepairOptions, report: CheckReport): RepairPlan {
  const counted = countReferences(image, report, { fix });
  const { header, references, stored, mapping, snapshots, zeroed } = counted;
  const before = report.counts;
  const compared = compareRefcounts({ references, stored, report });
  const needsRebuild = counted.needsRebuild || compared.needsRebuild;
  if (needsRebuild && fix === 'leaks') {
    report.remark(() => 'ERROR need to rebuild refcount structures');
    throw new Qcow2Error('CORRUPT', 'it has to be rebuilt to repair anything', {
      structure: 'refcount table',
      offset: header.refcountTableOffset,
      hint: 'qcow2 check -r all does',
    });
  }
  let refcounts: RepairPlan['refcounts'] = 'right';
  let { counts } = references;
  if (needsRebuild) {
    report.remark(() => 'Rebuilding refcount structure');
  } else if (report.leaks > before.leaks || report.corruptions > before.corruptions) {
    refcounts = 'in place';
    report.resetTo(before);
    compareRefcounts({ references, stored, report, fix });
  }
  const movesTables = snapshots.isToBeRewritten || counted.bitmapRepairs.lostTables.length > 0;
  if (needsRebuild || movesTables) {
    refcounts = planRefcountRebuild(image, counted, report, needsRebuild);
    ({ counts } = refcounts);
  }
  const flags: TableWrite[] = [];
  const { corruptions, leaks, checkErrors } = report;
  const otherProblems = corruptions - counted.snapshotRowErrors + leaks + checkErrors;
  const repairsFlags = fix === 'all' || otherProblems === 0;
  const isRebuilt = typeof refcounts === 'object';
  const repairedCounts: RefcountSource = {
    // What is stored for clusters past the end of the file stays, unless all of it is new.
    get: (cluster) =>
      isRebuilt || cluster < counts.clusterCount
        ? BigInt(counts.get(cluster))
        : stored.get(cluster),
    isOne: (cluster) =>
      isRebuilt || cluster < counts.clusterCount
        ? counts.get(cluster) === 1
        : stored.isOne(cluster),
  };
  checkCopiedFlags({
    ...{ header, mapping, report },
    refcounts: repairsFlags ? repairedCounts : stored,
    onRepair: repairsFlags ? (write) => flags.push(write) : undefined,
  });
  const zeroes = [...zeroed].flatMap(([offset, indexes]) => zeroWrites(header, offset, indexes));
  const writes = [...zeroes, ...flags];
  if (writes.length > 0) {
    const clusters = new ProtectedClusters(counted);
    for (const write of writes) clusters.check(write);
  }
  return { counted, zeroes, refcounts, flags };
}

/** Plans new refcount structures, after which everything that is counted wrong is right. */
function planRefcountRebuild(
  image: RepairedImage,
  counted: CountedImage,
  report: CheckReport,
  needsRebuild: boolean,
): Rebuild {
  const { rebuild, left } = planRebuild(image, counted, { trustsStored: !needsRebuild });
  if (needsRebuild) {
    // Where the old snapshot table was does not matter any more, but is nothing that was repaired.
    const repaired = report.corruptions - counted.snapshotTableErrors - left.corruptions;
    report.corruptionsFixed += Math.max(0, repaired);
    report.leaksFixed += report.leaks;
  }
  report.resetTo(left);
  return rebuild;
}

function zeroWrites(header: Qcow2Header, tableOffset: number, indexes: Set<number>): TableWrite[] {
  const { l2EntrySize } = header;
  return [...indexes].map((index) => {
    const words = new Uint32Array(l2EntrySize / 4);
    setZeroEntry(words, 0, header);
    const offset = tableOffset + index * l2EntrySize;
    return { table: 'L2', tableOffset, offset, bytes: bytesOf(words) };
  });
}

function carryOut(image: RepairedImage, fix: RepairOptions['fix'], plan: RepairPlan): void {
  const { header, file } = image;
  const { counted, zeroes, refcounts, flags } = plan;
  dropStaleBitmaps(image);
  counted.bitmapRepairs.write(file);
  writeAll(file, zeroes);
  if (refcounts === 'in place') {
    storeRefcounts(counted, { file, fix });
    file.flush();
  } else if (refcounts !== 'right') {
    writeRebuild(file, refcounts, header);
    switchHeader(image, refcounts);
    const { bitmapTables } = refcounts;
    const offsets = bitmapTables.map(({ offset }) => offset);
    counted.bitmapRepairs.switchTables(file, offsets);
  }
  writeAll(file, flags);
}

function writeAll(file: HostFile, writes: readonly TableWrite[]): void {
  if (writes.length === 0) return;
  for (const { bytes, offset } of writes) file.write(bytes, offset);
  file.flush();
}

function switchHeader({ header, file }: RepairedImage, rebuild: Rebuild): void {
  const { tableOffset, tableClusters, snapshotTable } = rebuild;
  new HeaderWriter({ header, file }).update({
    refcountTableOffset: tableOffset,
    refcountTableClusters: tableClusters,
    ...(snapshotTable && {
      snapshotsOffset: snapshotTable.offset,
      snapshotCount: snapshotTable.count,
    }),
  });
  file.flush();
}

/** Drops a bitmaps extension whose clusters may have other content by now. */
function dropStaleBitmaps({ header, file }: RepairedImage): void {
  const { areBitmapsValid, extensions } = header;
  const isStale = extensions.bitmaps !== undefined && !areBitmapsValid;
  if (!isStale && !hasHiddenBitmaps(header)) return;
  new HeaderWriter({ header, file }).rewrite({ bitmaps: null });
}

function markSound({ header, file }: RepairedImage): void {
  const writer = new HeaderWriter({ header, file });
  if (header.isDirty) writer.setDirty(false);
  if (header.isCorrupt) writer.clearCorrupt();
}
