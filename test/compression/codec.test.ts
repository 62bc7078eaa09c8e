import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { inflateRawSync } from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { clusterDecoder, clusterEncoder, COMPRESSION_TYPES } from '../../src/compression/codec.ts';
import type { ClusterEncoder } from '../../src/compression/codec.ts';
import { deflateWithPublicApi } from '../../src/compression/deflate.ts';
import { unzstdWithFzstd } from '../../src/compression/zstd.ts';
import { zstdFrameLength } from '../../src/compression/zstd-frame.ts';
import { loadZstdWasm } from '../../src/compression/zstd-wasm.ts';
import { openImage } from '../../src/index.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';
import { clusterContent, CONTENT_KINDS } from './cluster-content.ts';
import type { ContentKind } from './cluster-content.ts';
import { compressedImage } from './compressed-image.ts';
import type { StoredCluster } from './compressed-image.ts';

/** All cluster sizes of the specification, by their power of two. */
const CLUSTER_BITS = Array.from({ length: 13 }, (_, index) => 9 + index);

const EMPTY = new Uint8Array(0);

/** A copy of what an encoder makes of a cluster, with a target as long as the cluster. */
function compressed(encode: ClusterEncoder, cluster: Uint8Array): Uint8Array | undefined {
  const target = new Uint8Array(cluster.length);
  const length = encode(cluster, target);
  return length === undefined ? undefined : target.slice(0, length);
}

const wasmEncoder: ClusterEncoder = (cluster, target) => loadZstdWasm()!.compress(cluster, target);

describe.each([
  ['zlib', clusterEncoder('zlib'), clusterDecoder('zlib')],
  ['zlib through the public functions', deflateWithPublicApi, clusterDecoder('zlib')],
  ['zstd', clusterEncoder('zstd'), clusterDecoder('zstd')],
  ['zstd in WebAssembly', wasmEncoder, clusterDecoder('zstd')],
  ['zstd in WebAssembly, read by fzstd', wasmEncoder, unzstdWithFzstd],
])('compression with %s', (_, encode, decode) => {
  it.each(CLUSTER_BITS)('comes back the same from clusters of 2^%i bytes', (clusterBits) => {
    const clusterSize = 2 ** clusterBits;
    fc.assert(
      fc.property(fc.constantFrom(...CONTENT_KINDS), fc.integer(), (kind, seed) => {
        const cluster = clusterContent(kind, seed, clusterSize);
        const stream = compressed(encode, cluster);
        if (kind === 'noise') expect(stream).toBeUndefined();
        if (kind === 'zero' || kind === 'text') expect(stream?.length).toBeLessThan(clusterSize);
        if (stream === undefined) return;
        // Streams end in the middle of a sector, and anything may follow.
        const sectors = new Uint8Array(stream.length + 511).fill(0xa5);
        sectors.set(stream);
        const output = new Uint8Array(clusterSize);
        expect(decode(sectors, output)).toBe(true);
        expect(cluster.equals(output)).toBe(true);
      }),
      { numRuns: Math.max(3, Math.min(30, 2 ** (21 - clusterBits))) },
    );
  });

  it('gives the same bytes whatever came before', () => {
    const clusters = CONTENT_KINDS.flatMap((kind) =>
      [512, 65_536, 4096].map((length) => clusterContent(kind, 5, length)),
    );
    const forwards = clusters.map((cluster) => compressed(encode, cluster));
    const backwards = clusters.toReversed().map((cluster) => compressed(encode, cluster));
    const inHex = (streams: (Uint8Array | undefined)[]) =>
      streams.map((stream) => stream && Buffer.from(stream).toString('hex'));
    expect(inHex(backwards.toReversed())).toEqual(inHex(forwards));
    expect(forwards.filter((stream) => stream !== undefined).length).toBeGreaterThan(8);
  });

  it('leaves a byte of the target, or says that the cluster does not fit', () => {
    const cluster = clusterContent('mixed', 3, 4096);
    const length = encode(cluster, new Uint8Array(cluster.length))!;
    expect(length).toBeGreaterThan(1);
    expect(encode(cluster, new Uint8Array(length + 1))).toBe(length);
    expect(encode(cluster, new Uint8Array(length))).toBeUndefined();
    expect(encode(cluster, new Uint8Array(length >> 1))).toBeUndefined();
    expect(encode(cluster, new Uint8Array(0))).toBeUndefined();
    expect(encode(cluster, new Uint8Array(length + 1))).toBe(length);
  });

  it('writes nothing outside a target that is part of a buffer', () => {
    const buffer = new Uint8Array(3000).fill(0xee);
    const cluster = clusterContent('text', 9, 4096);
    const length = encode(cluster, buffer.subarray(1000, 2900))!;
    expect(length).toBeGreaterThan(0);
    expect(buffer.subarray(0, 1000).every((byte) => byte === 0xee)).toBe(true);
    expect(buffer.subarray(2900).every((byte) => byte === 0xee)).toBe(true);
    const output = new Uint8Array(cluster.length);
    expect(decode(buffer.subarray(1000, 1000 + length), output)).toBe(true);
    expect(cluster.equals(output)).toBe(true);
  });
});

it('deflates with the reused stream as a new one does', () => {
  for (const kind of CONTENT_KINDS) {
    const cluster = clusterContent(kind, 11, 65_536);
    const [reused, fresh] = [clusterEncoder('zlib'), deflateWithPublicApi].map((encode) =>
      compressed(encode, cluster),
    );
    expect(reused?.length).toBe(fresh?.length);
    expect(Buffer.compare(reused ?? EMPTY, fresh ?? EMPTY)).toBe(0);
  }
});

it('never refers back further than the 4 KiB window that readers inflate with', () => {
  // The window only counts where the output does not lie in one piece.
  const options = { windowBits: 12, chunkSize: 64 };
  const lengths = (['text', 'mixed', 'far-repeats'] as const).map((kind) => {
    const cluster = clusterContent(kind, 2, 65_536);
    const target = new Uint8Array(2 * cluster.length);
    const length = clusterEncoder('zlib')(cluster, target)!;
    expect(inflateRawSync(target.subarray(0, length), options).equals(cluster)).toBe(true);
    return length;
  });
  // Repeats that a larger window would find, as zstd's does.
  expect(lengths[2]).toBeGreaterThan(60_000);
  const repeats = clusterContent('far-repeats', 2, 65_536);
  expect(compressed(clusterEncoder('zstd'), repeats)?.length).toBeLessThan(8192);
});

it('zstd clusters are exactly one frame', () => {
  for (const encode of [clusterEncoder('zstd'), wasmEncoder]) {
    const stream = compressed(encode, clusterContent('text', 1, 65_536))!;
    expect(zstdFrameLength(stream, 0)).toBe(stream.length);
  }
});

describePeers(['qemu-img', 'qemu-io'], 'images of our compressed clusters', () => {
  const variants = COMPRESSION_TYPES.flatMap((type) =>
    [9, 10, 12, 14, 16, 18, 21].map((clusterBits) => [type, clusterBits] as const),
  );
  it.each(variants)('%s, 2^%i bytes a cluster: QEMU reads the same', (type, clusterBits) => {
    const clusterSize = 2 ** clusterBits;
    const kinds: ContentKind[] = ['text', 'noise', 'zero', 'mixed', 'text', 'far-repeats', 'mixed'];
    const contents = kinds.map((kind, seed) => clusterContent(kind, seed + 1, clusterSize));
    const encoders = type === 'zstd' ? [clusterEncoder(type), wasmEncoder] : [clusterEncoder(type)];
    for (const encode of encoders) {
      const clusters = contents.map((content): StoredCluster => {
        const bytes = compressed(encode, content);
        return { isCompressed: bytes !== undefined, bytes: bytes ?? content };
      });
      expect(clusters.filter(({ isCompressed }) => isCompressed).length).toBeGreaterThan(3);
      const directory = temporaryDirectory();
      const [image, raw] = ['image.qcow2', 'image.raw'].map((name) => join(directory, name));
      writeFileSync(image!, compressedImage(clusters, { type, clusterBits }));
      expect(qemuImg('check', '-f', 'qcow2', image!)).toContain('No errors were found');
      qemuImg('convert', '-f', 'qcow2', '-O', 'raw', image!, raw!);
      const expected = Buffer.concat(contents);
      expect(readFileSync(raw!).equals(expected)).toBe(true);
      qemuIo(image!, [`read -P 0 ${2 * clusterSize} ${clusterSize}`]);
      const disk = openImage(image!);
      try {
        const bytes = Buffer.alloc(disk.size);
        disk.read(bytes, 0);
        expect(bytes.equals(expected)).toBe(true);
      } finally {
        disk.close();
      }
    }
  });
});
