import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Qcow2Error } from '../../../src/errors.ts';
import {
  encodeHeader,
  joinFirstCluster,
  splitFirstCluster,
} from '../../../src/format/qcow2/header-encode.ts';
import { decodeHeader, firstClusterSize } from '../../../src/format/qcow2/header.ts';
import type { Qcow2Header } from '../../../src/format/qcow2/header.ts';
import { corpusImages, unpackImage } from '../../images/corpus.ts';
import { describePeers } from '../../support/peers.ts';
import { qemuImg } from '../../support/qemu.ts';
import { sharedTemporaryDirectory, temporaryDirectory } from '../../support/temp.ts';

function firstClusterOf(path: string): Uint8Array {
  const bytes = readFileSync(path);
  return Uint8Array.from(bytes.subarray(0, firstClusterSize(bytes)));
}

/** The bytes with zeroes up to the end of the cluster. */
function padded(bytes: Uint8Array, cluster: Uint8Array): Buffer {
  return Buffer.concat([bytes, new Uint8Array(cluster.length - bytes.length)]);
}

describe('the headers of the corpus', () => {
  const directory = sharedTemporaryDirectory();
  const clusters = corpusImages().map((image) => ({
    name: image.name,
    cluster: firstClusterOf(unpackImage(image, join(directory, basename(image.name)))),
  }));
  const sound = clusters.filter(({ cluster }) => {
    try {
      return decodeHeader(cluster).version > 0;
    } catch (error) {
      expect(error).toBeInstanceOf(Qcow2Error);
      return false;
    }
  });

  it('are the same bytes when taken apart and put together', () => {
    expect(sound.length).toBeGreaterThan(100);
    const changed = sound.filter(({ cluster }) => {
      const joined = padded(joinFirstCluster(splitFirstCluster(cluster)), cluster);
      return !joined.equals(cluster);
    });
    // An extension lies behind the end marker, where nothing reads it.
    expect(changed.map(({ name }) => name)).toEqual(['damage/backing-undeclared']);
  });

  it('mean the same when decoded and encoded, and are the same bytes where QEMU wrote them', () => {
    const changed: string[] = [];
    for (const { name, cluster } of sound) {
      const header = decodeHeader(cluster);
      const encoded = padded(encodeHeader(header), cluster);
      expect(decodeHeader(encoded), name).toEqual(header);
      if (!encoded.equals(cluster)) changed.push(name);
    }
    expect(changed).toEqual([
      'damage/backing-undeclared',
      // An unknown extension that does not come last.
      'features/extension-unknown-backing',
      // Header fields that are not known.
      'features/header-length-long',
      // A size that is not a multiple of 512, which is rounded down.
      'features/odd-size-bytes',
    ]);
  });
});

describePeers(['qemu-img'], "QEMU's headers", () => {
  const cases = [
    ['compat=0.10'],
    ['compat=1.1'],
    ['cluster_size=512'],
    ['cluster_size=4k'],
    ['cluster_size=8k,lazy_refcounts=on'],
    ['cluster_size=2M,refcount_bits=1'],
    ['refcount_bits=64,extended_l2=on'],
    ['compression_type=zstd'],
    ['backing_file=base.raw,backing_fmt=raw', '-u'],
    ['compat=0.10,backing_file=base.raw,backing_fmt=raw', '-u'],
    ['cluster_size=512,backing_file=base.raw,backing_fmt=raw', '-u'],
    ['data_file=data.raw'],
    ['data_file=data.raw,data_file_raw=on'],
  ];

  it.each(cases)('are encoded byte for byte: %s', (options, ...unsafe) => {
    const path = join(temporaryDirectory(), 'image.qcow2');
    const local = options.replace('data_file=', `data_file=${path}.`);
    qemuImg('create', '-q', '-f', 'qcow2', ...unsafe, '-o', local, path, '64M');
    const cluster = firstClusterOf(path);
    expect(padded(encodeHeader(decodeHeader(cluster)), cluster).equals(cluster)).toBe(true);
  });

  it('with bitmaps and snapshots too', () => {
    const path = join(temporaryDirectory(), 'image.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', path, '64M');
    qemuImg('bitmap', '--add', path, 'one');
    qemuImg('snapshot', '-c', 'two', path);
    const cluster = firstClusterOf(path);
    expect(padded(encodeHeader(decodeHeader(cluster)), cluster).equals(cluster)).toBe(true);
  });
});

const KiB64 = 2 ** 16;
const offset = fc.integer({ min: 0, max: 2 ** 36 }).map((cluster) => cluster * KiB64);
const text = (maxLength: number): fc.Arbitrary<string> =>
  fc.stringMatching(new RegExp(`^[a-z/é.:-]{1,${maxLength}}$`));
const optional = <T>(value: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> =>
  fc.option(value, { nil: undefined });

/** The parts of a header that are free, over one that holds the rest. */
function headers(base: Qcow2Header): fc.Arbitrary<Qcow2Header> {
  const extensions = fc.record({
    backingFormat: optional(fc.stringMatching(/^[a-z0-9]{1,15}$/)),
    externalDataFile: optional(text(200)),
    bitmaps: optional(
      fc.record({
        count: fc.integer({ min: 1, max: 65_535 }),
        directorySize: fc.integer({ min: 24, max: 2 ** 26 }),
        directoryOffset: offset.map((value) => value + KiB64),
      }),
    ),
    encryptionHeader: optional(fc.record({ offset, length: fc.nat() })),
    featureNames: fc.array(
      fc.record({
        type: fc.constantFrom('incompatible', 'compatible', 'autoclear'),
        bit: fc.integer({ min: 0, max: 63 }),
        name: text(46).filter((name) => Buffer.byteLength(name) <= 46),
      }),
      { maxLength: 12 },
    ),
    unknown: fc.array(
      fc.record({
        type: fc.integer({ min: 1, max: 0x1000_0000 }).filter((type) => type !== 0x0537be77),
        data: fc.uint8Array({ maxLength: 40 }),
      }),
      { maxLength: 4 },
    ),
  });
  return fc
    .record({
      l1TableOffset: offset,
      refcountTableOffset: offset,
      refcountTableClusters: fc.integer({ min: 0, max: 128 }),
      refcountOrder: fc.integer({ min: 0, max: 6 }),
      snapshotCount: fc.integer({ min: 0, max: 65_536 }),
      snapshotsOffset: offset,
      compatibleFeatures: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
      autoclearFeatures: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
      headerLength: fc.integer({ min: 14, max: 20 }).map((words) => words * 8),
      backingFile: optional(text(300)),
      extensions,
    })
    .map((free) => ({
      ...base,
      ...free,
      hasLazyRefcounts: (free.compatibleFeatures & 1n) !== 0n,
      areBitmapsValid: (free.autoclearFeatures & 1n) !== 0n,
    }));
}

describe('any header', () => {
  it('is decoded as it was encoded', () => {
    const base = decodeHeader(firstClusterOf('images/demo.qcow2'));
    expect(base).toMatchObject({ version: 3, clusterSize: KiB64 });
    fc.assert(
      fc.property(headers(base), (header) => {
        expect(decodeHeader(encodeHeader(header))).toEqual(header);
      }),
    );
  });

  it('is refused if it does not fit', () => {
    const base = decodeHeader(firstClusterOf('images/features/cluster-size-512.qcow2'));
    const backingFile = 'b'.repeat(500);
    expect(() => encodeHeader({ ...base, backingFile })).toThrow(
      /backing file name need \d+ bytes, more than the first cluster's 512; use shorter/,
    );
  });
});
