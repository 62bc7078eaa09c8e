/**
 * Checks that the COPIED flags of the active tables are set where the refcount is one, and nowhere
 * else (specification: "Cluster mapping").
 */

import type { Qcow2Header } from '../../format/qcow2/header.ts';
import { EntryFlag, entryOffset, READS_ZERO } from '../../format/qcow2/l2-entry.ts';
import { writeU32 } from '../../util/bytes.ts';
import { hex64 } from './check-report.ts';
import type { CheckReport } from './check-report.ts';
import type { MappingCheck } from './mapping-tables.ts';

/** Where refcounts are looked up by cluster; undefined where one cannot be read. */
export interface RefcountSource {
  get(cluster: number): bigint | undefined;
  isOne(cluster: number): boolean | undefined;
}

/** A write to a table that a repair is to do. */
export interface TableWrite {
  table: 'L1' | 'L2';
  /** Host offset of the table. */
  tableOffset: number;
  /** Host offset in bytes. */
  offset: number;
  bytes: Uint8Array;
}

/** What the flags are held against. */
export interface CopiedCheck {
  header: Qcow2Header;
  mapping: MappingCheck;
  refcounts: RefcountSource;
  report: CheckReport;
  /** Is given the writes that set the flags right; without it, nothing is repaired. */
  onRepair?: ((write: TableWrite) => void) | undefined;
}

/** Checks all COPIED flags of the active tables. */
export function checkCopiedFlags(check: CopiedCheck): void {
  const { header, mapping, refcounts } = check;
  const { clusterSize, l1TableOffset, l1Size } = header;
  const l1 = mapping.readL1({ offset: l1TableOffset, size: l1Size });
  // What one L1 entry has had repaired is right for the others of the same table.
  const repaired = new Set<number>();
  for (let at = 0; at < l1.length; at += 2) {
    const high = l1[at]!;
    const low = l1[at + 1]!;
    const l2Offset = entryOffset(high, low);
    if (l2Offset === 0) continue;
    const cluster = Math.floor(l2Offset / clusterSize);
    const isOne = refcounts.isOne(cluster);
    if (isOne === undefined) continue;
    if (isOne !== ((high & EntryFlag.COPIED) !== 0)) {
      reportFlag(check, (what) => {
        const place = `l1_index=${at / 2} l1_entry=${hex64(high, low)}`;
        return `${what} OFLAG_COPIED L2 cluster: ${place} refcount=${refcounts.get(cluster)}`;
      });
      check.onRepair?.({
        table: 'L1',
        tableOffset: l1TableOffset,
        offset: l1TableOffset + at * 4,
        bytes: bytesOf(Uint32Array.of(toggled(high), low)),
      });
    }
    if (!repaired.has(l2Offset)) checkL2(l2Offset, check);
    if (check.onRepair !== undefined) repaired.add(l2Offset);
  }
}

function checkL2(l2Offset: number, check: CopiedCheck): void {
  const { header, mapping, refcounts } = check;
  const { clusterSize, hasExtendedL2, hasExternalDataFile } = header;
  const words = mapping.readL2(l2Offset);
  if (words === undefined) return;
  const step = header.l2EntrySize / 4;
  let first = -1;
  let last = -1;
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
    const isOne = hasExternalDataFile ? true : refcounts.isOne(cluster);
    if (isOne === undefined || isOne === isCopied) continue;
    reportFlag(check, (what) => {
      const refcount = hasExternalDataFile ? 1 : refcounts.get(cluster);
      return `${what} OFLAG_COPIED data cluster: l2_entry=${hex64(high, low)} refcount=${refcount}`;
    });
    if (check.onRepair === undefined) continue;
    words[at] = toggled(high);
    if (first < 0) first = at;
    last = at;
  }
  if (first < 0) return;
  const bytes = bytesOf(words.subarray(first, last + step));
  check.onRepair?.({ table: 'L2', tableOffset: l2Offset, offset: l2Offset + first * 4, bytes });
}

function reportFlag({ report, onRepair }: CopiedCheck, message: (what: string) => string): void {
  if (onRepair === undefined) report.corruption(() => message('ERROR'));
  else report.repaired('corruption', () => message('Repairing'));
}

function toggled(high: number): number {
  return (high ^ EntryFlag.COPIED) >>> 0;
}

/** Words of a table as they are stored. */
export function bytesOf(words: Uint32Array): Uint8Array {
  const bytes = new Uint8Array(words.byteLength);
  for (const [index, word] of words.entries()) writeU32(bytes, index * 4, word);
  return bytes;
}
