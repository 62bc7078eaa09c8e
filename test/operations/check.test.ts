/** checkImage beside qemu-img check, over images of all kinds and damage of all kinds. */

import { closeSync, copyFileSync, ftruncateSync, openSync, readFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { checkImage, openForCheck } from '../../src/operations/check.ts';
import type { CheckResult } from '../../src/operations/check.ts';
import { qemuImg, qemuIo } from '../support/qemu.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { check, qemuCheck } from './check-support.ts';
import type { Outcome } from './check-support.ts';

function verdict({ result, messages }: Outcome): Partial<Outcome> {
  return { result, messages };
}

/** The result of both, which have to agree. */
function agreedCheck(path: string): CheckResult {
  const theirs = qemuCheck(path);
  expect(verdict(check(path))).toEqual(verdict(theirs));
  return theirs.result!;
}

const directory = sharedTemporaryDirectory();

function patch(path: string, offset: number, bytes: readonly number[]): void {
  const fd = openSync(path, 'r+');
  writeSync(fd, Uint8Array.from(bytes), 0, bytes.length, offset);
  closeSync(fd);
}

function bitmapsExtensionOf(path: string): number {
  return readFileSync(path).indexOf('23852875', 0, 'hex');
}

/** A small image with data, holes, zeroes, compressed clusters and, where it can, snapshots. */
function makeImage(name: string, options: string): string {
  const path = join(directory, `${name}.qcow2`);
  const target = options.includes('data_file') ? `${options}=${path}.data` : options;
  qemuImg('create', '-q', '-f', 'qcow2', '-o', target, path, '4M');
  // Small counts would overflow where compressed clusters share a host cluster.
  const canCompress = !/data_file|refcount_bits=[124],|cluster_size=2M/.test(options);
  qemuIo(path, ['write -P 1 0 300k', 'write -z 512k 128k', 'write -P 2 3M 64k']);
  if (canCompress) qemuIo(path, ['write -c -P 3 1M 64k', 'write -c -P 4 2M 64k']);
  if (!/data_file|refcount_bits=1,/.test(options)) {
    qemuImg('snapshot', '-c', 'first', path);
    qemuIo(path, ['write -P 5 64k 64k']);
    qemuImg('snapshot', '-c', 'second', path);
  }
  return path;
}

const KINDS: readonly (readonly [name: string, options: string])[] = [
  ...[1, 2, 4, 8, 16, 32, 64].map(
    (bits) => [`refcounts of ${bits} bits`, `refcount_bits=${bits},cluster_size=4k`] as const,
  ),
  ['clusters of 512 bytes', 'cluster_size=512'],
  ['clusters of 2 MiB', 'cluster_size=2M'],
  ['version 2', 'compat=0.10'],
  ['extended L2', 'extended_l2=on,cluster_size=64k'],
  ['zstd', 'compression_type=zstd'],
  ['an external data file', 'cluster_size=4k,data_file'],
];

function clusterSizeOf(options: string): number {
  const [, digits = '64', unit = 'k'] = /cluster_size=(\d+)([kM]?)/.exec(options) ?? [];
  return Number(digits) * { k: 1024, M: 1024 * 1024, '': 1 }[unit]!;
}

/** Reproducible numbers from 0 to 2^32 - 1. */
function* randomNumbers(seed: number): Generator<number, never> {
  for (let state = seed >>> 0; ;) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    yield (state ^ (state >>> 15)) >>> 0;
  }
}

describe.each(KINDS)('an image with %s', (name, options) => {
  const path = (): string => join(directory, `${name.replaceAll(' ', '-')}.qcow2`);

  it('is sound, with the numbers that QEMU counts', () => {
    const image = makeImage(name.replaceAll(' ', '-'), options);
    const result = agreedCheck(image);
    expect(result).not.toHaveProperty('corruptions');
    expect(result['allocated-clusters']).toBeGreaterThan(0);
  });

  it('is found to be damaged as QEMU finds it, wherever it is damaged', () => {
    const damaged = `${path()}.damaged`;
    const clusterSize = clusterSizeOf(options);
    const clusters = Math.min(16, agreedCheck(path())['image-end-offset']! / clusterSize);
    const random = randomNumbers(name.length + options.length);
    let damagedCount = 0;
    for (let round = 0; round < 12; round++) {
      copyFileSync(path(), damaged);
      for (let change = 0; change <= round % 3; change++) {
        // The first entries of tables, and what comes after the fields of the header.
        const cluster = 1 + (random.next().value % (clusters - 1));
        const offset = cluster * clusterSize + (random.next().value % 512);
        patch(damaged, offset, [random.next().value & 0xff]);
      }
      const theirs = qemuCheck(damaged);
      const ours = check(damaged);
      if (theirs.result === undefined) expect(ours.result).toBeUndefined();
      else expect(verdict(ours)).toEqual(verdict(theirs));
      if (theirs.messages.length > 0) damagedCount++;
    }
    expect(damagedCount).toBeGreaterThan(0);
  });

  it('that was cut short is told as QEMU tells it', () => {
    const cut = `${path()}.cut`;
    copyFileSync(path(), cut);
    const end = agreedCheck(path())['image-end-offset']!;
    const fd = openSync(cut, 'r+');
    ftruncateSync(fd, Math.floor(end / 2 / 512) * 512 + 100);
    closeSync(fd);
    const theirs = qemuCheck(cut);
    if (theirs.result === undefined) expect(check(cut).result).toBeUndefined();
    else expect(verdict(check(cut))).toEqual(verdict(theirs));
  });
});

describe('checkImage', () => {
  it('counts bitmaps', () => {
    const path = join(directory, 'bitmaps.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', path, '16M');
    qemuImg('bitmap', '--add', '-g', '512', path, 'one');
    qemuImg('bitmap', '--add', path, 'two');
    qemuIo(path, ['write 1M 1M']);
    qemuImg('bitmap', '--add', path, 'three');
    expect(agreedCheck(path)).not.toHaveProperty('leaks');
  });

  it('counts an L2 table that many snapshots share as often as they do', () => {
    const path = join(directory, 'shared.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', '-o', 'refcount_bits=4', path, '16M');
    qemuIo(path, ['write 0 1M']);
    for (let index = 0; index < 14; index++) qemuImg('snapshot', '-c', `s${index}`, path);
    expect(agreedCheck(path)).not.toHaveProperty('corruptions');
  });

  it('tells what refcounts cannot hold', () => {
    const path = join(directory, 'overflow.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', '-o', 'refcount_bits=1', path, '4M');
    qemuIo(path, ['write 0 128k']);
    // Both entries of the L2 table (the fifth cluster) point to the sixth cluster.
    patch(path, 4 * 65536, [0x80, 0, 0, 0, 0, 5, 0, 0, 0x80, 0, 0, 0, 0, 5, 0, 0]);
    expect(agreedCheck(path)).toMatchObject({ corruptions: 1, leaks: 1 });
  });

  it('tells that a refcount block beyond 2^63 cannot be read', () => {
    const path = join(directory, 'far-block.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', path, '4M');
    patch(path, 65_536, [0x80]);
    expect(agreedCheck(path)).toMatchObject({ corruptions: 1, 'check-errors': 4 });
  });

  it.each([
    ['the L1 table', 40, [0x20]],
    ['the refcount table', 48, [0, 0x80]],
    ['the bitmap directory, where it is stale', 88, [0, 0, 0, 0, 0, 0, 0, 0]],
  ])('checks an image of which %s is past 2^53', (name, offset, bytes) => {
    const path = join(directory, `far-${offset}.qcow2`);
    qemuImg('create', '-q', '-f', 'qcow2', path, '4M');
    qemuImg('bitmap', '--add', path, 'one');
    patch(path, offset, bytes);
    // The size of the directory, in the extension after the feature names.
    if (name.includes('stale')) patch(path, bitmapsExtensionOf(path) + 16, [0x7f]);
    expect(agreedCheck(path)).toHaveProperty('image-end-offset');
  });

  it('shows names of snapshots up to their NUL, as C does', () => {
    const path = join(directory, 'nul.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', path, '4M');
    qemuImg('snapshot', '-c', 'one\u0001two', path);
    const table = agreedCheck(path)['image-end-offset']! - 65_536;
    const bytes = readFileSync(path).subarray(table);
    patch(path, table + bytes.indexOf('\u0001two'), [0]);
    patch(path, table + 6, [1]);
    expect(agreedCheck(path)).toMatchObject({ corruptions: 1 });
  });

  it('checks a huge sparse file within little memory', () => {
    const path = join(directory, 'sparse.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=64k', path, '4M');
    const fd = openSync(path, 'r+');
    ftruncateSync(fd, 2 ** 43);
    closeSync(fd);
    const before = process.memoryUsage();
    const { result } = check(path);
    const after = process.memoryUsage();
    expect(result).toEqual({
      'image-end-offset': 262_144,
      'total-clusters': 64,
      'check-errors': 0,
      filename: path,
      format: 'qcow2',
    });
    expect(after.arrayBuffers - before.arrayBuffers).toBeLessThan(32 * 1024 * 1024);
  });

  it('gives up on tables that overlap without end', () => {
    const path = join(directory, 'overlap.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=2M', path, '64G');
    // Each L1 entry names another offset of the same few clusters.
    const entries = Buffer.alloc(8 * 4096);
    for (let index = 0; index < 4096; index++) {
      entries.writeBigUInt64BE(BigInt(index * 512), index * 8);
    }
    const header = Buffer.alloc(4);
    header.writeUInt32BE(4096);
    patch(path, 36, [...header]);
    patch(path, 6 * 1024 * 1024, [...entries]);
    const start = performance.now();
    expect(() => {
      using image = openForCheck(path);
      if (image.format === 'qcow2') checkImage(image);
    }).toThrow(/tables overlap/);
    expect(performance.now() - start).toBeLessThan(1000);
  });
});
