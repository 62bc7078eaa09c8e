/** Deciding whether an image's data clusters are worth looking at for holes of the host file. */

import type { FileDevice } from '../device/file.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import { RefcountReader } from './refcounts.ts';

/**
 * Whether the image seems to have preallocated metadata: clearly more clusters are counted as
 * used than the file has space for. Only then is data that was never written common enough to
 * ask the host filesystem about every run of clusters. QEMU decides by the same rule, so that the
 * two report the same extents.
 */
export function hasPreallocatedMetadata(header: Qcow2Header, file: FileDevice): boolean {
  const refcounts = new RefcountReader(header, file);
  const storedClusters = Math.floor(file.allocatedSize / header.clusterSize);
  const threshold = Math.max(Math.floor((storedClusters * 10) / 9), storedClusters + 2);
  const clusterCount = Math.ceil(file.size / header.clusterSize);
  let used = 0;
  for (let index = 0; index < clusterCount && used < threshold; index++) {
    if (refcounts.isUsed(index)) used++;
  }
  return used >= threshold;
}
