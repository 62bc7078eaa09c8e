/** The cluster codecs by the header's compression type. */

import { deflateCluster, inflateCluster } from './deflate.ts';
import { prepareZstdEncoder, unzstdCluster, zstdCluster } from './zstd.ts';

/** Fills all of `output` from one compressed cluster; false if it does not hold one. */
export type ClusterDecoder = (input: Uint8Array, output: Uint8Array) => boolean;

/**
 * Compresses one cluster to the start of `target` and returns the length, or undefined if that
 * does not leave a byte of `target` free; what `target` then holds means nothing. With a target as
 * long as the cluster, what does not shrink does not fit, which is QEMU's rule too.
 *
 * The same cluster always gives the same bytes, whatever was compressed before it.
 */
export type ClusterEncoder = (cluster: Uint8Array, target: Uint8Array) => number | undefined;

/** Names of the compression types, as qemu-img prints them, by number. */
export const COMPRESSION_TYPES = ['zlib', 'zstd'] as const;

/** How an image's clusters are compressed. */
export type CompressionType = (typeof COMPRESSION_TYPES)[number];

/** The decoder of a compression type. */
export function clusterDecoder(type: CompressionType): ClusterDecoder {
  return type === 'zlib' ? inflateCluster : unzstdCluster;
}

/**
 * The encoder of a compression type, with QEMU's parameters; everything it needs is loaded here.
 * @throws {Qcow2Error} `MISSING_DEPENDENCY` if neither this Node nor a package has zstd
 */
export function clusterEncoder(type: CompressionType): ClusterEncoder {
  if (type === 'zlib') return deflateCluster;
  prepareZstdEncoder();
  return zstdCluster;
}
