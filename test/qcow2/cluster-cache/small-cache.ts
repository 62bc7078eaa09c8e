/** Caches of a few slots. */

import { SharedClusterCache } from '../../../src/qcow2/cluster-cache/shared-cluster-cache.ts';

/** Bytes of a slot in these tests. */
export const CLUSTER = 512;

/** Bytes of a cache that has room for one slot, and no more than it needs. */
let smallest = 0;

/** A cache of so many slots, or a few more where its sets have to be equal. */
export function smallCache(slots: number): SharedClusterCache {
  const make = (bytes: number) => SharedClusterCache.create({ bytes, clusterSizes: [CLUSTER] });
  if (smallest === 0) while (make(smallest).pools.length === 0) smallest += 64;
  for (let bytes = smallest + (slots - 1) * (CLUSTER + 64); ; bytes += CLUSTER) {
    const cache = make(bytes);
    if (cache.pool(CLUSTER)!.slots >= slots) return cache;
  }
}
