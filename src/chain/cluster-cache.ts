/** One cluster cache for all layers of the images that a process serves. */

import { SharedClusterCache } from '../qcow2/cluster-cache/shared-cluster-cache.ts';
import type { Image } from './open.ts';

/**
 * Makes a cache for the cluster sizes of open images and their backing chains, and has all of them
 * use it.
 * @param bytes most that it takes; see `defaultCacheBytes`
 */
export function shareClusterCache(images: readonly Image[], bytes: number): SharedClusterCache {
  const clusterSizes: number[] = [];
  for (const image of images) {
    for (let layer: Image | undefined = image; layer !== undefined; layer = layer.backing) {
      if (layer.format === 'qcow2') clusterSizes.push(layer.header.clusterSize);
    }
  }
  const cache = SharedClusterCache.create({ bytes, clusterSizes });
  for (const image of images) useClusterCache(image, cache);
  return cache;
}

/** Has an image and its backing chain use a cache. */
export function useClusterCache(image: Image, cache: SharedClusterCache): void {
  let layer: Image | undefined = image;
  while (layer !== undefined && layer.format !== 'qcow2') layer = layer.backing;
  layer?.shareClusterCache(cache);
}
