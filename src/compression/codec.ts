/** The cluster codecs by the header's compression type. */

import { inflateCluster } from './deflate.ts';
import { unzstdCluster } from './zstd.ts';

/** Fills all of `output` from one compressed cluster; false if it does not hold one. */
export type ClusterDecoder = (input: Uint8Array, output: Uint8Array) => boolean;

/** Names of the compression types, as qemu-img prints them, by number. */
export const COMPRESSION_TYPES = ['zlib', 'zstd'] as const;

/** How an image's clusters are compressed. */
export type CompressionType = (typeof COMPRESSION_TYPES)[number];

/** The decoder of a compression type. */
export function clusterDecoder(type: CompressionType): ClusterDecoder {
  return type === 'zlib' ? inflateCluster : unzstdCluster;
}
