/** Puts refcounts right where they are stored (specification: "Refcount blocks"). */

import type { HostFile } from '../../device/block-device.ts';
import { setRefcountAt } from '../refcounts.ts';
import { compareRefcounts } from './compare-refcounts.ts';
import type { CountedImage } from './check-metadata.ts';
import { CheckReport } from './check-report.ts';
import { MetadataFile, tableBuffer } from './metadata-file.ts';

const SECTOR_BYTES = 512;

/**
 * Stores the counts that were counted wherever others are stored. Every count only comes nearer to
 * what it should be, so that it does not matter how many of these writes a crash leaves. The caller
 * flushes.
 *
 * @throws {Qcow2Error} `HOST`
 */
export function storeRefcounts(
  { references, stored, header }: CountedImage,
  { file, fix }: { file: HostFile; fix: 'leaks' | 'all' },
): void {
  const metadata = new MetadataFile(file);
  const block = tableBuffer(header.clusterSize);
  let blockIndex = -1;
  let firstByte = 0;
  let endByte = 0;
  const writeBlock = (): void => {
    if (firstByte >= endByte) return;
    const start = firstByte - (firstByte % SECTOR_BYTES);
    const end = Math.ceil(endByte / SECTOR_BYTES) * SECTOR_BYTES;
    file.write(block.subarray(start, end), stored.entry(blockIndex).offset + start);
  };
  const onRepair = (cluster: number, count: number): void => {
    const index = Math.floor(cluster / stored.blockEntries);
    if (index !== blockIndex) {
      writeBlock();
      blockIndex = index;
      metadata.read(block, stored.entry(index).offset, 'refcount block');
      firstByte = block.length;
      endByte = 0;
    }
    const inBlock = cluster % stored.blockEntries;
    setRefcountAt(block, inBlock, header.refcountOrder, count);
    const bytes = 2 ** header.refcountOrder / 8;
    firstByte = Math.min(firstByte, Math.floor(inBlock * bytes));
    endByte = Math.max(endByte, Math.ceil((inBlock + 1) * bytes));
  };
  compareRefcounts({ references, stored, report: new CheckReport(undefined), fix, onRepair });
  writeBlock();
}
