/** Reading compressed images with threads that decompress in advance. */

import {
  closeSync,
  openSync,
  readFileSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { once } from 'node:events';
import { join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it } from 'vitest';
import { shareClusterCache } from '../../src/chain/cluster-cache.ts';
import { openImage } from '../../src/chain/open.ts';
import type { ChainedQcow2Image, Image } from '../../src/chain/open.ts';
import { createImage } from '../../src/operations/create.ts';
import type { SharedClusterCache } from '../../src/qcow2/cluster-cache/shared-cluster-cache.ts';
import { DecompressionThreads } from '../../src/worker/decompression.ts';
import { clusterContent } from '../compression/cluster-content.ts';
import { Random } from '../support/random.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { until } from '../support/until.ts';

const directory = sharedTemporaryDirectory();
const KiB = 1024;
const MiB = 1024 * KiB;
const CLUSTER = 64 * KiB;
const BYTES = 8 * MiB;

/** Something of every kind: text, noise, runs. */
const disk = Buffer.concat(
  Array.from({ length: BYTES / CLUSTER }, (_, index) =>
    clusterContent(index % 2 === 0 ? 'text' : 'mixed', index, CLUSTER),
  ),
);

type Compression = 'zlib' | 'zstd';

/** An image of {@link disk} of which all that shrinks is compressed. */
function makeImage(name: string, compressionType: Compression = 'zlib', backing?: string): string {
  const path = join(directory, name);
  const behind =
    backing === undefined ? {} : { backingFile: backing, backingFormat: 'qcow2' as const };
  createImage(path, { size: BYTES, compressionType, ...behind });
  using image = openImage(path, { writable: true }) as ChainedQcow2Image;
  if (backing === undefined) image.writeCompressed(disk, 0);
  return path;
}

const made = new Map<Compression, string>();

/** The same, made once; only to be read. */
function sharedImage(type: Compression = 'zlib'): string {
  const path = made.get(type) ?? makeImage(`shared-${type}.qcow2`, type);
  made.set(type, path);
  return path;
}

const running: DecompressionThreads[] = [];
afterEach(async () => {
  for (const threads of running.splice(0)) await threads.close();
});

interface Reader {
  image: Image;
  cache: SharedClusterCache;
  threads: DecompressionThreads;
}

/** Opens an image with threads that are there already. */
async function openWith(
  path: string,
  {
    threads: count,
    bytes = 16 * MiB,
    writable = false,
  }: { threads: number; bytes?: number; writable?: boolean },
): Promise<Reader> {
  const image = openImage(path, { writable });
  const cache = shareClusterCache([image], bytes);
  const threads = new DecompressionThreads(cache, count);
  running.push(threads);
  cache.wantHelpers();
  await until(() => cache.helpers === count);
  return { image, cache, threads };
}

function readAll(image: Image, step: number): Buffer {
  const bytes = Buffer.alloc(BYTES);
  for (let at = 0; at < BYTES; at += step) image.read(bytes.subarray(at, at + step), at);
  return bytes;
}

describe('threads', () => {
  it('start with the first compressed cluster that is read, and not before', async () => {
    const image = openImage(sharedImage());
    const cache = shareClusterCache([image], 16 * MiB);
    const threads = new DecompressionThreads(cache, 1);
    running.push(threads);
    await sleep(50);
    expect(cache.helpers).toBe(0);
    image.read(Buffer.alloc(CLUSTER), 0);
    await until(() => cache.helpers === 1);
    await threads.close();
    expect(cache.helpers).toBe(0);
    image.close();
  });

  it.each<[Compression, number, number]>([
    ['zlib', 1, 16 * MiB],
    ['zlib', 3, 16 * MiB],
    ['zstd', 2, 16 * MiB],
    ['zlib', 2, CLUSTER + 64 * KiB],
    ['zlib', 2, 0],
  ])('%s, %i of them, %i bytes of cache: the disk is the same', async (type, count, bytes) => {
    const path = sharedImage(type);
    const { image, cache } = await openWith(path, { threads: count, bytes });
    if (bytes > MiB) expect(cache.buffer.byteLength).toBeLessThanOrEqual(bytes);
    for (const step of [CLUSTER, MiB, 4 * KiB]) {
      expect(readAll(image, step).equals(disk)).toBe(true);
    }
    const random = new Random(7);
    for (let read = 0; read < 300; read++) {
      const length = 1 + random.below(300 * KiB);
      const offset = random.below(BYTES - length);
      const target = Buffer.alloc(length);
      image.read(target, offset);
      expect(target.equals(disk.subarray(offset, offset + length))).toBe(true);
    }
    image.close();
    const { helped, readAheadHits, wastedBytes, readAheadBytes } = cache.counters();
    expect(wastedBytes).toBeLessThanOrEqual(readAheadBytes);
    if (bytes > MiB) {
      expect(helped).toBeGreaterThan(0);
      expect(readAheadHits).toBeGreaterThan(0);
    }
  });

  it('read ahead in the layers below too', async () => {
    const base = sharedImage();
    const top = makeImage('top.qcow2', 'zlib', base);
    const { image, cache } = await openWith(top, { threads: 2 });
    expect(readAll(image, 128 * KiB).equals(disk)).toBe(true);
    expect(cache.counters().readAheadHits).toBeGreaterThan(0);
    image.close();
  });

  it('read from parts of files', async () => {
    const path = sharedImage();
    const inside = join(directory, 'inside.bin');
    writeFileSync(inside, Buffer.concat([Buffer.alloc(12_345, 7), readFileSync(path)]));
    const length = statSync(path).size;
    const image = openImage({ path: inside, format: 'qcow2', window: { offset: 12_345, length } });
    const cache = shareClusterCache([image], 16 * MiB);
    running.push(new DecompressionThreads(cache, 2));
    cache.wantHelpers();
    await until(() => cache.helpers === 2);
    expect(readAll(image, 256 * KiB).equals(disk)).toBe(true);
    expect(cache.counters().helped).toBeGreaterThan(0);
    image.close();
  });
});

describe('a damaged cluster', () => {
  it.each([0, 2])('is reported as ever with %i threads, and the others are read', async (count) => {
    const path = makeImage(`damaged-${count}.qcow2`);
    // The first compressed cluster lies behind the metadata; what is there begins a stream.
    const bytes = readFileSync(path);
    const fd = openSync(path, 'r+');
    const start = [...bytes.keys()].find((at) => at >= 5 * CLUSTER && bytes[at] !== 0)!;
    writeSync(fd, Buffer.alloc(64, 0xff), 0, 64, start);
    closeSync(fd);
    const { image } = await openWith(path, { threads: count });
    const target = Buffer.alloc(CLUSTER);
    for (let round = 0; round < 3; round++) {
      for (let at = 0; at < BYTES; at += CLUSTER) {
        if (at === 0) {
          expect(() => image.read(target, at)).toThrow(/cannot be decompressed \(zlib\)/);
        } else {
          image.read(target, at);
          expect(target.equals(disk.subarray(at, at + CLUSTER))).toBe(true);
        }
      }
    }
    expect(() => image.read(Buffer.alloc(4 * MiB), 0)).toThrow(/cannot be decompressed/);
    image.close();
  });

  it('at the end of a file that was cut short is reported as ever', async () => {
    const path = makeImage('cut.qcow2');
    truncateSync(path, statSync(path).size - 3 * CLUSTER);
    const { image } = await openWith(path, { threads: 2 });
    expect(() => readAll(image, MiB)).toThrow(/compressed cluster/);
    image.close();
  });
});

describe('a thread that is ended', () => {
  it('in the middle of its work keeps nobody from reading', async () => {
    const path = sharedImage();
    for (let round = 0; round < 4; round++) {
      const image = openImage(path);
      const cache = shareClusterCache([image], 4 * MiB);
      const owner = cache.newOwner();
      const script = new URL('../../dist/decompress.js', import.meta.url);
      const worker = new Worker(script, { workerData: { buffer: cache.buffer, owner } });
      await once(worker, 'message');
      cache.addHelper(1);
      const part = Buffer.alloc(2 * MiB);
      image.read(part, 0);
      image.read(part, 2 * MiB);
      const ended = worker.terminate();
      for (let at = 0; at < BYTES; at += 512 * KiB) {
        const target = Buffer.alloc(512 * KiB);
        image.read(target, at);
        expect(target.equals(disk.subarray(at, at + 512 * KiB))).toBe(true);
        if (at % (2 * MiB) === 0) await sleep(1);
      }
      await ended;
      // Nobody has said that it is gone.
      expect(readAll(image, MiB).equals(disk)).toBe(true);
      cache.addHelper(-1);
      cache.releaseOwner(owner);
      expect(readAll(image, MiB).equals(disk)).toBe(true);
      image.close();
    }
  });
});

describe('an image that is written', () => {
  it('never shows a cluster that was freed and whose place was used again', async () => {
    const path = makeImage('written.qcow2');
    const { image, cache } = await openWith(path, { threads: 2, writable: true, bytes: 4 * MiB });
    const model = Buffer.from(disk);
    const random = new Random(42);
    const qcow2 = image as ChainedQcow2Image;
    for (let step = 0; step < 300; step++) {
      const cluster = random.below(BYTES / CLUSTER);
      const count = 1 + random.below(Math.min(8, BYTES / CLUSTER - cluster));
      const offset = cluster * CLUSTER;
      const length = count * CLUSTER;
      const part = model.subarray(offset, offset + length);
      switch (random.below(6)) {
        case 0:
          for (let at = 0; at < length; at += CLUSTER) {
            clusterContent('text', step * 100 + at, CLUSTER).copy(part, at);
          }
          qcow2.writeCompressed(part, offset);
          break;
        case 1:
          part.fill(step & 255, 100, 5000);
          image.write(part.subarray(100, 5000), offset + 100);
          break;
        case 2:
          part.fill(0);
          image.discard(offset, length);
          break;
        case 3:
          image.flush();
          break;
        default: {
          // In order, so that clusters are on their way when the next change comes.
          const target = Buffer.alloc(length);
          for (let at = offset; at < Math.min(offset + MiB, BYTES - length); at += length) {
            image.read(target, at);
            expect(target.equals(model.subarray(at, at + length))).toBe(true);
          }
        }
      }
    }
    expect(readAll(image, MiB).equals(model)).toBe(true);
    expect(cache.counters().helped).toBeGreaterThan(0);
    image.close();
    using again = openImage(path);
    expect(readAll(again, MiB).equals(model)).toBe(true);
  });
});

it('closing waits for what others read from the file', async () => {
  const path = sharedImage();
  const { image, cache } = await openWith(path, { threads: 2 });
  for (let round = 0; round < 20; round++) {
    const other = openImage(path, { clusterCache: cache });
    other.read(Buffer.alloc(2 * MiB), (round % 3) * 2 * MiB);
    other.read(Buffer.alloc(512 * KiB), (round % 3) * 2 * MiB + 2 * MiB);
    other.close();
    // The next file that is opened gets the same descriptor.
    closeSync(openSync('/dev/null', 'r'));
  }
  expect(readAll(image, MiB).equals(disk)).toBe(true);
  image.close();
});
