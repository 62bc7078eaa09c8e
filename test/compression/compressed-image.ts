/**
 * Writes a qcow2 image of one L2 table around clusters that something else has compressed, from
 * the specification and without the code under test.
 */

/** A guest cluster, in the form in which it is stored. */
export interface StoredCluster {
  isCompressed: boolean;
  bytes: Uint8Array;
}

const COMPRESSED = 1n << 62n;
const COPIED = 1n << 63n;
const ZSTD_FEATURE = 8n;

/** Clusters of the image that come before all data. */
const Place = { HEADER: 0, REFCOUNT_TABLE: 1, REFCOUNT_BLOCK: 2, L1: 3, L2: 4, DATA: 5 } as const;

/** The bytes of an image with these guest clusters, which have to be few. */
export function compressedImage(
  clusters: readonly StoredCluster[],
  { type, clusterBits }: { type: 'zlib' | 'zstd'; clusterBits: number },
): Buffer {
  const clusterSize = 2 ** clusterBits;
  const { entries, data } = placeClusters(clusters, clusterBits);
  const metadata = Buffer.alloc(Place.DATA * clusterSize);
  const writeWord = (place: number, index: number, value: bigint) =>
    metadata.writeBigUInt64BE(value, place * clusterSize + index * 8);
  const offsetOf = (place: number) => BigInt(place * clusterSize);

  metadata.write('QFI\xfb', 0, 'latin1');
  metadata.writeUInt32BE(3, 4);
  metadata.writeUInt32BE(clusterBits, 20);
  metadata.writeBigUInt64BE(BigInt(clusters.length * clusterSize), 24);
  metadata.writeUInt32BE(1, 36);
  metadata.writeBigUInt64BE(offsetOf(Place.L1), 40);
  metadata.writeBigUInt64BE(offsetOf(Place.REFCOUNT_TABLE), 48);
  metadata.writeUInt32BE(1, 56);
  metadata.writeBigUInt64BE(type === 'zstd' ? ZSTD_FEATURE : 0n, 72);
  metadata.writeUInt32BE(4, 96);
  metadata.writeUInt32BE(112, 100);
  metadata.writeUInt8(type === 'zstd' ? 1 : 0, 104);

  writeWord(Place.REFCOUNT_TABLE, 0, offsetOf(Place.REFCOUNT_BLOCK));
  writeWord(Place.L1, 0, offsetOf(Place.L2) | COPIED);
  for (const [index, entry] of entries.entries()) writeWord(Place.L2, index, entry);

  const counts = Array.from({ length: Place.DATA + data.length / clusterSize }, (_, cluster) =>
    cluster < Place.DATA ? 1 : 0,
  );
  for (const [index, stored] of clusters.entries()) {
    const start = Number(entries[index]! & ((1n << BigInt(70 - clusterBits)) - 1n) & ~COPIED);
    const end = start + stored.bytes.length - 1;
    for (let at = start >> clusterBits; at <= end >> clusterBits; at++) counts[at]! += 1;
  }
  if (counts.length > clusterSize / 2 || entries.length > clusterSize / 8) {
    throw new Error('too many clusters for one table');
  }
  const blockOffset = Place.REFCOUNT_BLOCK * clusterSize;
  for (const [cluster, count] of counts.entries()) {
    metadata.writeUInt16BE(count, blockOffset + cluster * 2);
  }
  return Buffer.concat([metadata, data]);
}

/** Puts the compressed clusters one behind the other and the others behind them. */
function placeClusters(
  clusters: readonly StoredCluster[],
  clusterBits: number,
): { entries: bigint[]; data: Buffer } {
  const clusterSize = 2 ** clusterBits;
  const offsetBits = BigInt(70 - clusterBits);
  const entries = clusters.map(() => 0n);
  const pieces: Uint8Array[] = [];
  let offset = Place.DATA * clusterSize;
  const put = (bytes: Uint8Array) => {
    pieces.push(bytes);
    offset += bytes.length;
  };
  for (const [index, { isCompressed, bytes }] of clusters.entries()) {
    if (!isCompressed) continue;
    const sectors = ((offset + bytes.length - 1) >> 9) - (offset >> 9);
    entries[index] = COMPRESSED | (BigInt(sectors) << offsetBits) | BigInt(offset);
    put(bytes);
  }
  // What follows a stream in its last sector is no part of it: anything may be there.
  put(new Uint8Array(-offset & (clusterSize - 1)).fill(0xa5));
  for (const [index, { isCompressed, bytes }] of clusters.entries()) {
    if (isCompressed) continue;
    entries[index] = BigInt(offset) | COPIED;
    put(bytes);
  }
  return { entries, data: Buffer.concat(pieces) };
}
