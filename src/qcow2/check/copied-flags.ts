/**
 * Checks that the COPIED flags of the active tables are set where the stored refcount is one, and
 * nowhere else (specification: "Cluster mapping").
 */

import type { Qcow2Header } from '../../format/qcow2/header.ts';
import { EntryFlag, entryOffset, READS_ZERO } from '../../format/qcow2/l2-entry.ts';
import type { MappingCheck } from './mapping-tables.ts';
import { hex64 } from './check-report.ts';
import type { CheckReport } from './check-report.ts';
import type { StoredRefcounts } from './stored-refcounts.ts';

/** What the flags are held against. */
export interface CopiedCheck {
  header: Qcow2Header;
  mapping: MappingCheck;
  stored: StoredRefcounts;
  report: CheckReport;
}

/** Checks all COPIED flags of the active tables. */
export function checkCopiedFlags({ header, mapping, stored, report }: CopiedCheck): void {
  const { clusterSize } = header;
  const l1 = mapping.readL1({ offset: header.l1TableOffset, size: header.l1Size });
  for (let at = 0; at < l1.length; at += 2) {
    const high = l1[at]!;
    const low = l1[at + 1]!;
    const l2Offset = entryOffset(high, low);
    if (l2Offset === 0) continue;
    const cluster = Math.floor(l2Offset / clusterSize);
    const isOne = stored.isOne(cluster);
    if (isOne === undefined) continue;
    if (isOne !== ((high & EntryFlag.COPIED) !== 0)) {
      report.corruption(
        () =>
          `ERROR OFLAG_COPIED L2 cluster: l1_index=${at / 2} l1_entry=${hex64(high, low)} ` +
          `refcount=${stored.get(cluster)}`,
      );
    }
    checkL2(l2Offset, { header, mapping, stored, report });
  }
}

function checkL2(l2Offset: number, { header, mapping, stored, report }: CopiedCheck): void {
  const { clusterSize, hasExtendedL2, hasExternalDataFile } = header;
  const words = mapping.readL2(l2Offset);
  if (words === undefined) return;
  const step = header.l2EntrySize / 4;
  for (let at = 0; at < words.length; at += step) {
    const high = words[at]!;
    const low = words[at + 1]!;
    if ((high | low) === 0 || (high & EntryFlag.COMPRESSED) !== 0) continue;
    const offset = entryOffset(high, low);
    const isCopied = (high & EntryFlag.COPIED) !== 0;
    if (offset === 0) {
      const readsZero = !hasExtendedL2 && (low & READS_ZERO) !== 0;
      if (readsZero || !hasExternalDataFile || !isCopied) continue;
    }
    const cluster = Math.floor(offset / clusterSize);
    const isOne = hasExternalDataFile ? true : stored.isOne(cluster);
    if (isOne === undefined || isOne === isCopied) continue;
    report.corruption(
      () =>
        `ERROR OFLAG_COPIED data cluster: l2_entry=${hex64(high, low)} ` +
        `refcount=${hasExternalDataFile ? 1 : stored.get(cluster)}`,
    );
  }
}
