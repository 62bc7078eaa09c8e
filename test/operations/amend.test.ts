/** Random sequences of amendments, by amendImage and by qemu-img, of images that are written to. */

import { createHash } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import type { ChainedQcow2Image } from '../../src/chain/open.ts';
import { Qcow2Error } from '../../src/errors.ts';
import { amendImage } from '../../src/operations/amend.ts';
import type { AmendOptions } from '../../src/operations/amend.ts';
import { createImage } from '../../src/operations/create.ts';
import { expectClean, expectSameImage, makeTwins } from '../cli/twins.ts';
import type { Twins } from '../cli/twins.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo, tryRun } from '../support/qemu.ts';
import { Random } from '../support/random.ts';
import { temporaryDirectory } from '../support/temp.ts';

const SEED = Number(process.env.QCOW2_AMEND_SEED ?? Date.now() % 1_000_000);
const SEQUENCES = Number(process.env.QCOW2_AMEND_SEQUENCES ?? 4);
const STEPS = 8;
const KiB = 1024;

function open(path: string): ChainedQcow2Image {
  const image = openImage(path, { writable: true });
  if (image.format === 'qcow2') return image;
  throw new Error(`${path} is not a qcow2 image`);
}

function refusal(action: () => void): Qcow2Error | undefined {
  try {
    action();
    return undefined;
  } catch (error) {
    if (error instanceof Qcow2Error) return error;
    throw error;
  }
}

/** QEMU's `-o` list of options. */
function optionList(options: AmendOptions): string {
  const { compat, refcountBits, lazyRefcounts, size } = options;
  const items = {
    compat,
    refcount_bits: refcountBits,
    lazy_refcounts: lazyRefcounts === undefined ? undefined : lazyRefcounts ? 'on' : 'off',
    size,
  };
  return Object.entries(items)
    .flatMap(([name, value]) => (value === undefined ? [] : [`${name}=${value}`]))
    .join();
}

/** Twins of an image of 1 MiB, perhaps over a backing file, whose refcounts QEMU is quick with. */
function makeRandom(random: Random): Twins {
  const clusterSize = random.pick(['2k', '4k', '8k']);
  return makeTwins((directory) => {
    const path = join(directory, 'disk.qcow2');
    const options = ['-q', '-f', 'qcow2', '-o', `cluster_size=${clusterSize}`];
    if (random.oneIn(2)) {
      qemuImg('create', '-q', '-f', 'raw', join(directory, 'base.raw'), '700k');
      qemuIo(join(directory, 'base.raw'), ['write -q -P 9 0 700k'], 'raw');
      options.push('-b', 'base.raw', '-F', 'raw');
    }
    qemuImg('create', ...options, path, '1M');
    qemuIo(path, ['write -q -P 1 100k 300k', 'write -q -z 200k 64k', 'write -q -z -u 30k 40k']);
    if (random.oneIn(2)) qemuIo(path, ['write -q -c -P 2 512k 8k', 'write -q -c -P 3 520k 8k']);
  });
}

/** Has QEMU do the same to both twins. */
function change({ ours, theirs }: Twins, random: Random): void {
  const at = random.below(1000);
  const length = 1 + random.below(1024 - at);
  const kinds = [`write -q -P ${1 + random.below(200)}`, 'write -q -z -u', 'discard -q'];
  const command = `${random.pick(kinds)} ${at}k ${Math.min(length, 64)}k`;
  const isShared = random.oneIn(3) && hasWideRefcounts(join(ours, 'disk.qcow2'));
  for (const directory of [ours, theirs]) {
    const path = join(directory, 'disk.qcow2');
    qemuIo(path, [command]);
    if (isShared) qemuImg('snapshot', '-c', `at ${at}`, path);
  }
}

/** Whether any number of snapshots fits; where one does not, QEMU leaks the counts that it raised. */
function hasWideRefcounts(path: string): boolean {
  using image = open(path);
  return image.header.refcountOrder >= 3;
}

function randomOptions(random: Random): AmendOptions {
  const maybe = <T>(value: T): T | undefined => (random.oneIn(3) ? value : undefined);
  const compat = random.oneIn(2) ? random.pick(['0.10', '1.1', 'v2', 'v3'] as const) : undefined;
  const refcountBits = maybe(random.pick([1, 2, 4, 8, 16, 16, 16, 32, 64]));
  const lazyRefcounts = maybe(random.oneIn(2));
  const size = random.oneIn(6) ? (1024 + random.below(200)) * KiB : undefined;
  const isNothing = [compat, refcountBits, lazyRefcounts, size].every((v) => v === undefined);
  return isNothing ? { compat: 'v3' } : { compat, refcountBits, lazyRefcounts, size, shrink: true };
}

/** What all snapshots of an image read as, as a hash by id. */
function snapshotContents(path: string): Map<string, string> {
  using image = open(path);
  return new Map(
    image.snapshots.map(({ id }) => {
      const device = image.openSnapshot(id);
      const content = Buffer.alloc(device.size);
      device.read(content, 0);
      return [id, createHash('sha1').update(content).digest('hex')];
    }),
  );
}

describePeers(['qemu-img', 'qemu-io'], `random amendments, from seed ${SEED}`, () => {
  it.each(Array.from({ length: SEQUENCES }, (_, index) => [SEED + index]))(
    'sequence %i',
    (seed) => {
      const random = new Random(seed);
      const twins = makeRandom(random);
      const [ours, theirs] = [join(twins.ours, 'disk.qcow2'), join(twins.theirs, 'disk.qcow2')];
      const history: string[] = [];
      for (let step = 0; step < STEPS; step++) {
        change(twins, random);
        const options = randomOptions(random);
        history.push(optionList(options));
        const told = history.join(' | ');
        const before = snapshotContents(ours);
        const image = open(ours);
        const refused = refusal(() => amendImage(image, options));
        image.close();
        const qemu = tryRun('qemu-img', ['amend', '-o', optionList(options), theirs]);
        expect(refused === undefined, `${told}: ${refused?.message} ${qemu.stderr}`).toBe(
          qemu.exitCode === 0,
        );
        expect(snapshotContents(ours), told).toEqual(before);
        expectClean(ours);
        // What QEMU has done by then stays, though it refuses the rest.
        if (refused !== undefined) break;
        expectSameImage(twins, 'disk.qcow2', { allocation: false });
      }
    },
    60_000,
  );
});

describe('amending', () => {
  const path = (): string => join(temporaryDirectory(), 'disk.qcow2');

  it('refuses a raw image, and one that is open for reading', () => {
    const [raw, disk] = [`${path()}.raw`, path()];
    createImage(raw, { format: 'raw', size: 65536 });
    createImage(disk, { size: 65536 });
    using rawImage = openImage(raw, { format: 'raw', writable: true });
    using reading = openImage(disk);
    expect(refusal(() => amendImage(rawImage, { compat: '1.1' }))?.code).toBe('UNSUPPORTED');
    expect(refusal(() => amendImage(reading, { compat: '1.1' }))?.code).toBe('READ_ONLY');
  });

  it('leaves an open image that goes on working as what it is now', () => {
    const disk = path();
    createImage(disk, { size: 1024 * KiB, clusterSize: 4096, compressionType: 'zstd' });
    const content = Buffer.alloc(1024 * KiB);
    const image = open(disk);
    const steps: AmendOptions[] = [
      { refcountBits: 1 },
      { refcountBits: 64, lazyRefcounts: true },
      { refcountBits: 16, compat: '0.10' },
      { compat: '1.1', lazyRefcounts: true, refcountBits: 8 },
      { lazyRefcounts: false },
    ];
    steps.forEach((options, index) => {
      amendImage(image, options);
      const at = index * 20 * KiB;
      const written = Buffer.alloc(10 * KiB, index + 1);
      image.write(written, at);
      image.writeZeroes(at + 4096, 4096, { mayUnmap: true });
      written.copy(content, at);
      content.fill(0, at + 4096, at + 8192);
      const compressed = Buffer.alloc(4096, 'compressed');
      // Later than the downgrade, by another method than before it.
      if (index >= 2) {
        image.writeCompressed(compressed, 512 * KiB + index * 4096);
        compressed.copy(content, 512 * KiB + index * 4096);
      }
      const read = Buffer.alloc(content.length);
      image.read(read, 0);
      expect(read.equals(content), JSON.stringify(options)).toBe(true);
    });
    image.close();
    expect(readFileSync(disk).readUInt32BE(96)).toBe(3);
    expectClean(disk);
  });

  it('counts that do not fit are told before anything is done', () => {
    const disk = path();
    createImage(disk, { size: 1024 * KiB, clusterSize: 4096, refcountBits: 64 });
    const image = open(disk);
    image.write(Buffer.alloc(64 * KiB, 1), 0);
    for (let index = 0; index < 4; index++) image.createSnapshot(`${index}`);
    image.close();
    const before = readFileSync(disk);
    for (const refcountBits of [1, 2]) {
      using again = open(disk);
      const size = 2048 * KiB;
      const refused = refusal(() => amendImage(again, { refcountBits, size }));
      expect(refused?.message).toMatch(/a refcount of 5 does not fit into \d bits/);
    }
    expect(readFileSync(disk).equals(before)).toBe(true);
  });
});
