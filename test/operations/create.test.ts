import { statSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import { FileDevice } from '../../src/device/file.ts';
import { createImage } from '../../src/operations/create.ts';
import type { CreateOptions } from '../../src/operations/create.ts';
import { holdWithQemuIo } from '../support/lock-holder.ts';
import { qemuImg, qemuImgJson, qemuIo, run } from '../support/qemu.ts';
import { Random } from '../support/random.ts';
import { sharedTemporaryDirectory, temporaryDirectory } from '../support/temp.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const GiB = 1024 * MiB;
const TiB = 1024 * GiB;

const directory = sharedTemporaryDirectory();
const ours = join(directory, 'ours');
const theirs = join(directory, 'theirs');

/** The bytes of an image that this package made, and of the one that qemu-img made. */
function makeBoth(options: CreateOptions, list: string): { size: number; isEqual: boolean } {
  createImage(ours, options);
  run('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', list, theirs, String(options.size)]);
  const { size } = statSync(ours);
  expect(size).toBe(statSync(theirs).size);
  return { size, isEqual: areEqual(ours, theirs) };
}

/** Whether two files have the same bytes; what is a hole in both is not read. */
function areEqual(a: string, b: string): boolean {
  using first = new FileDevice(a);
  using second = new FileDevice(b);
  if (first.size !== second.size) return false;
  for (const device of [first, second]) {
    for (const { offset, length, zero } of device.extents(0, device.size)) {
      if (zero) continue;
      const [left, right] = [Buffer.alloc(length), Buffer.alloc(length)];
      first.read(left, offset);
      second.read(right, offset);
      if (!left.equals(right)) return false;
    }
  }
  return true;
}

describe('the bytes of a new image are those of qemu-img create', () => {
  const cases: [list: string, options: CreateOptions][] = [
    ['preallocation=off', { size: 0 }],
    ['preallocation=off', { size: 512 }],
    ['preallocation=off', { size: 10 * GiB }],
    ['preallocation=off', { size: 2 * 1024 * TiB }],
    ['compat=0.10', { size: GiB, compat: '0.10' }],
    ['compat=v2', { size: GiB, compat: 'v2' }],
    ['compat=v3', { size: GiB, compat: 'v3' }],
    ['cluster_size=512', { size: MiB, clusterSize: 512 }],
    ['cluster_size=2M', { size: TiB, clusterSize: 2 * MiB }],
    ['cluster_size=4k', { size: 300 * GiB, clusterSize: 4 * KiB }],
    ['lazy_refcounts=on', { size: GiB, lazyRefcounts: true }],
    ['extended_l2=on', { size: GiB, extendedL2: true }],
    ['compression_type=zstd', { size: GiB, compressionType: 'zstd' }],
    ...[1, 2, 4, 8, 16, 32, 64].map((refcountBits): [string, CreateOptions] => [
      `cluster_size=1k,refcount_bits=${refcountBits}`,
      { size: 20 * GiB, clusterSize: KiB, refcountBits },
    ]),
  ];
  it.each(cases)('%s %j', (list, options) => {
    expect(makeBoth(options, list).isEqual).toBe(true);
  });

  it('where the L1 table needs more refcount blocks than the first refcount table holds', () => {
    const options = { size: 10 * GiB, clusterSize: 512, refcountBits: 64 };
    expect(makeBoth(options, 'cluster_size=512,refcount_bits=64').isEqual).toBe(true);
    using image = openImage(ours);
    expect(image.format === 'qcow2' && image.header.refcountTableClusters).toBeGreaterThan(1);
    expect(image.format === 'qcow2' && image.header.refcountTableOffset).toBeGreaterThan(512);
  });

  const preallocated: [list: string, options: CreateOptions][] = [
    ['cluster_size=64k', { size: GiB }],
    ['cluster_size=64k', { size: 1000 * KiB }],
    ['cluster_size=64k', { size: 0 }],
    ['cluster_size=2M', { size: 101 * MiB, clusterSize: 2 * MiB }],
    // A run of clusters that starts exactly where the next refcount block is missing.
    ['cluster_size=512,compat=0.10', { size: 4097 * 512, clusterSize: 512, compat: '0.10' }],
    ['cluster_size=512,refcount_bits=64', { size: 9 * MiB, clusterSize: 512, refcountBits: 64 }],
    ['extended_l2=on', { size: 1001 * KiB + 512, extendedL2: true }],
    [
      'cluster_size=16k,refcount_bits=64,extended_l2=on',
      { size: 205307904, clusterSize: 16 * KiB, refcountBits: 64, extendedL2: true },
    ],
    ['cluster_size=4k,refcount_bits=1', { size: 40 * MiB, clusterSize: 4 * KiB, refcountBits: 1 }],
  ];
  describe.each(['metadata', 'falloc'] as const)('with preallocation=%s', (preallocation) => {
    it.each(preallocated)('%s %j', (list, options) => {
      const made = makeBoth(
        { ...options, preallocation },
        `${list},preallocation=${preallocation}`,
      );
      expect(made.isEqual).toBe(true);
      expect(qemuImg('check', '-f', 'qcow2', ours)).toContain('No errors were found');
    });
  });

  it('with more than 2 GiB of preallocated metadata', () => {
    const options = { size: 5 * GiB, preallocation: 'metadata' } as const;
    expect(makeBoth(options, 'preallocation=metadata').isEqual).toBe(true);
  });

  it('with preallocation=full, which writes to all of the disk', () => {
    const options = { size: 5 * MiB + 512, preallocation: 'full' } as const;
    expect(makeBoth(options, 'preallocation=full').isEqual).toBe(true);
    expect(statSync(ours).blocks * 512).toBeGreaterThanOrEqual(5 * MiB);
  });
});

it.each(Array.from({ length: 12 }, (_, index) => 100 + index))(
  'seed %d: an image of any kind',
  (seed) => {
    const random = new Random(seed);
    const clusterBits = random.pick([9, 10, 12, 14, 16, 18]);
    const preallocation = random.pick(['off', 'metadata', 'falloc'] as const);
    const list = [`cluster_size=${2 ** clusterBits}`, `preallocation=${preallocation}`];
    const options: CreateOptions = { clusterSize: 2 ** clusterBits, preallocation };
    if (random.oneIn(4)) {
      options.compat = '0.10';
      list.push('compat=0.10');
    } else {
      options.refcountBits = 2 ** random.below(7);
      options.extendedL2 = clusterBits >= 14 && random.oneIn(2);
      list.push(`refcount_bits=${options.refcountBits}`);
      list.push(`extended_l2=${options.extendedL2 ? 'on' : 'off'}`);
    }
    const sectors = 2 ** (preallocation === 'off' ? clusterBits + 14 : clusterBits + 2);
    options.size = 512 * random.below(Math.min(sectors, 2 ** 22));
    expect([list, makeBoth(options, list.join(',')).isEqual]).toEqual([list, true]);
  },
);

it('an image with preallocated metadata can be written by both', () => {
  createImage(ours, { size: 3 * MiB, clusterSize: 4 * KiB, preallocation: 'metadata' });
  qemuIo(ours, ['write -P 7 1M 64k']);
  {
    using image = openImage(ours, { writable: true });
    image.write(new Uint8Array(100).fill(9), 2 * MiB);
  }
  qemuIo(ours, ['read -P 7 1M 64k', 'read -P 9 2M 100', 'read -P 0 0 1M']);
  expect(qemuImg('check', '-f', 'qcow2', ours)).toContain('768/768 = 100.00% allocated');
});

describe('backing files', () => {
  it('give the size, and are named from the directory of the image', () => {
    const folder = temporaryDirectory();
    createImage(join(folder, 'base.raw'), { format: 'raw', size: 1000 });
    expect(statSync(join(folder, 'base.raw')).size).toBe(1024);
    const overlay = join(folder, 'overlay.qcow2');
    createImage(overlay, { backingFile: 'base.raw', backingFormat: 'raw' });
    expect(qemuImgJson('info', overlay)).toMatchObject({
      'virtual-size': 1024,
      'backing-filename': 'base.raw',
      'backing-filename-format': 'raw',
    });
  });

  it('are part of the bytes that qemu-img writes', () => {
    const folder = temporaryDirectory();
    const [base, a, b] = ['base', 'a', 'b'].map((name) => join(folder, name));
    createImage(base!, { size: 3 * GiB });
    for (const compat of ['0.10', '1.1'] as const) {
      createImage(a!, { backingFile: 'base', backingFormat: 'qcow2', compat });
      const list = `backing_file=base,backing_fmt=qcow2,compat=${compat}`;
      qemuImg('create', '-q', '-f', 'qcow2', '-o', list, b!);
      expect(areEqual(a!, b!)).toBe(true);
    }
  });

  it('may be in use by a writer, and may be missing if nobody is to look', async () => {
    const folder = temporaryDirectory();
    const base = join(folder, 'base');
    createImage(base, { size: MiB });
    const overlay = join(folder, 'overlay');
    const options: CreateOptions = { backingFile: 'base', backingFormat: 'qcow2' };
    {
      await using holder = await holdWithQemuIo(['-f', 'qcow2', base]);
      expect(holder.pid).toBeGreaterThan(0);
      createImage(overlay, options);
    }
    expect(qemuImgJson('info', overlay)).toMatchObject({ 'virtual-size': MiB });
    const missing = { ...options, backingFile: 'missing' };
    expect(() => createImage(overlay, { ...missing, size: MiB })).toThrow(/no such file/);
    createImage(overlay, { ...missing, size: 2 * MiB, withoutBacking: true });
    expect(qemuImgJson('info', overlay)).toMatchObject({ 'virtual-size': 2 * MiB });
  });
});
