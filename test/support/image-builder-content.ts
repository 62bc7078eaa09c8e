/** What the clusters of built images hold, and how they are compressed. */

import { deflateRawSync } from 'node:zlib';

/** The bytes of a guest cluster: half of them a run, half of them noise of a fixed seed. */
export function contentOf(cluster: number, clusterSize: number): Buffer {
  const bytes = Buffer.alloc(clusterSize, 0x41 + (cluster % 26));
  let state = cluster + 1;
  for (let at = clusterSize / 2; at < clusterSize; at++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    bytes[at] = state >>> 24;
  }
  return bytes;
}

/** The compressed form of a cluster. */
export function storedCluster(content: Buffer, compression: 'zlib' | 'zstd'): Buffer {
  return compression === 'zlib'
    ? deflateRawSync(content, { windowBits: 12, level: 9 })
    : zstdFrame(content);
}

/**
 * A Zstandard frame (RFC 8878) of two blocks: the run of the first half, the noise of the second
 * stored as it is. Node 20 has no encoder, and this needs none.
 */
function zstdFrame(content: Buffer): Buffer {
  const half = content.length / 2;
  const header = Buffer.alloc(9);
  header.writeUInt32LE(0xfd2fb528, 0);
  // Single segment, content size in four bytes.
  header[4] = 0b1010_0000;
  header.writeUInt32LE(content.length, 5);
  const RAW = 0;
  const RLE = 1;
  return Buffer.concat([
    header,
    blockHeader({ isLast: false, type: RLE, size: half }),
    content.subarray(0, 1),
    blockHeader({ isLast: true, type: RAW, size: half }),
    content.subarray(half),
  ]);
}

function blockHeader(block: { isLast: boolean; type: number; size: number }): Buffer {
  const bytes = Buffer.alloc(3);
  bytes.writeUIntLE((block.size << 3) | (block.type << 1) | (block.isLast ? 1 : 0), 0, 3);
  return bytes;
}
