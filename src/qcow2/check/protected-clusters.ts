/**
 * Clusters of metadata that no other metadata may be written over. In a damaged image two tables
 * can be in the same place; to repair one of them would be to damage the other.
 */

import { Qcow2Error } from '../../errors.ts';
import { entryOffset } from '../../format/qcow2/l2-entry.ts';
import type { CountedImage } from './check-metadata.ts';
import { CheckReport } from './check-report.ts';
import type { TableWrite } from './copied-flags.ts';

/** Which tables are in which clusters. */
export class ProtectedClusters {
  readonly #clusterSize: number;
  readonly #owners = new Map<number, Set<string>>();

  constructor(counted: CountedImage) {
    const { header, stored, mapping, snapshots } = counted;
    this.#clusterSize = header.clusterSize;
    const { l1TableOffset, l1Size, clusterSize } = header;
    this.#own('header', 0, clusterSize);
    this.#own('L1 table', l1TableOffset, l1Size * 8);
    const l1 = mapping.readL1({ offset: l1TableOffset, size: l1Size });
    for (let at = 0; at < l1.length; at += 2) {
      const l2Offset = entryOffset(l1[at]!, l1[at + 1]!);
      if (l2Offset !== 0) this.#own('L2 table', l2Offset, clusterSize);
    }
    this.#own('refcount table', header.refcountTableOffset, stored.tableSize * 8);
    for (let index = 0; index < stored.presentEntries; index++) {
      if (stored.hasBlock(index)) {
        this.#own('refcount block', stored.entry(index).offset, clusterSize);
      }
    }
    this.#own('snapshot table', header.snapshotsOffset, snapshots.length);
    for (const { offset, size } of snapshots.l1Tables(new CheckReport(undefined))) {
      this.#own('L1 table of a snapshot', offset, size * 8);
    }
    const { bitmaps } = header.extensions;
    if (bitmaps !== undefined && header.areBitmapsValid) {
      this.#own('bitmap directory', bitmaps.directoryOffset, bitmaps.directorySize);
      for (const { tableOffset, tableSize } of counted.bitmaps) {
        this.#own('table of a bitmap', tableOffset, tableSize * 8);
      }
    }
  }

  /**
   * Checks that a write hits no other metadata than its table.
   * @throws {Qcow2Error} `CORRUPT`, naming both
   */
  check({ table, tableOffset, offset, bytes }: TableWrite): void {
    const [start, end] =
      table === 'L2'
        ? [tableOffset, tableOffset + this.#clusterSize]
        : [offset, offset + bytes.length];
    const last = Math.floor((end - 1) / this.#clusterSize);
    for (let cluster = Math.floor(start / this.#clusterSize); cluster <= last; cluster++) {
      for (const owner of this.#owners.get(cluster) ?? []) {
        if (owner === `${table} table`) continue;
        throw new Qcow2Error('CORRUPT', `the ${owner} is in the same place: nothing is repaired`, {
          structure: `${table} table`,
          offset,
          hint: 'save what can be read of the image with: qcow2 convert',
        });
      }
    }
  }

  #own(owner: string, offset: number, length: number): void {
    // Nothing is written that far, and numbers do not count clusters there.
    if (length === 0 || offset > Number.MAX_SAFE_INTEGER) return;
    const last = Math.floor((offset + length - 1) / this.#clusterSize);
    for (let cluster = Math.floor(offset / this.#clusterSize); cluster <= last; cluster++) {
      const owners = this.#owners.get(cluster);
      if (owners === undefined) this.#owners.set(cluster, new Set([owner]));
      else owners.add(owner);
    }
  }
}
