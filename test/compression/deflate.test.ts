import { deflateRawSync } from 'node:zlib';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { inflateCluster, inflateWithPublicApi } from '../../src/compression/deflate.ts';

const CLUSTER = 65_536;

function compressible(seed: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let index = 0; index < length; index++) bytes[index] = (index * seed) >>> 5;
  return bytes;
}

describe.each([
  ['the stream handle', inflateCluster],
  ['the public functions', inflateWithPublicApi],
])('deflate through %s', (_, inflate) => {
  it('fills a cluster and ignores what follows the stream', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 255 }),
        fc.uint8Array({ maxLength: 511 }),
        (seed, tail) => {
          const cluster = compressible(seed, CLUSTER);
          const stream = Buffer.concat([deflateRawSync(cluster, { windowBits: 12 }), tail]);
          const output = new Uint8Array(CLUSTER);
          expect(inflate(stream, output)).toBe(true);
          expect(cluster.equals(output)).toBe(true);
        },
      ),
      { numRuns: 50 },
    );
  });

  it('takes the first cluster of a longer stream', () => {
    const both = compressible(7, 2 * CLUSTER);
    const output = new Uint8Array(CLUSTER);
    expect(inflate(deflateRawSync(both), output)).toBe(true);
    expect(both.subarray(0, CLUSTER).equals(output)).toBe(true);
  });

  it('refuses streams that are cut short, too short or not streams, and goes on working', () => {
    const stream = deflateRawSync(compressible(3, CLUSTER));
    const output = new Uint8Array(CLUSTER);
    expect(inflate(stream.subarray(0, stream.length >> 1), output)).toBe(false);
    expect(inflate(deflateRawSync(compressible(3, 100)), output)).toBe(false);
    expect(inflate(Buffer.alloc(512, 0xff), output)).toBe(false);
    expect(inflate(new Uint8Array(0), output)).toBe(false);
    expect(inflate(stream, output)).toBe(true);
  });
});
