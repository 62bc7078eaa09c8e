/** Snapshots where tables move, and of images that are damaged in ways that only they find. */

import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import type { ChainedQcow2Image } from '../../src/chain/open.ts';
import { qemuImg, qemuIo } from '../support/qemu.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';

const directory = sharedTemporaryDirectory();
const path = join(directory, 'image.qcow2');

function create(size: string, options: string): void {
  qemuImg('create', '-q', '-f', 'qcow2', '-o', options, path, size);
}

function withImage(work: (image: ChainedQcow2Image) => void): void {
  const image = openImage(path, { writable: true }) as ChainedQcow2Image;
  try {
    work(image);
  } finally {
    image.close();
  }
}

it('a refcount table that moves while a snapshot is made is given up itself', () => {
  create('4M', 'cluster_size=512,refcount_bits=64');
  withImage((image) => image.write(Buffer.alloc(1900 * 1024, 'data'), 0));
  let refcountTableClusters = 0;
  let moves = 0;
  for (let index = 0; index < 16; index++) {
    withImage((image) => {
      if (image.header.refcountTableClusters > refcountTableClusters) moves++;
      ({ refcountTableClusters } = image.header);
      image.createSnapshot(`number ${index}`);
    });
    expect(qemuImg('check', '-f', 'qcow2', path), `snapshot ${index}`).toContain('No errors');
  }
  expect(moves).toBeGreaterThan(1);
});

it('a cluster that no refcount block counts is not shared with a snapshot', () => {
  create('1M', 'cluster_size=64k');
  qemuIo(path, ['write -P 1 0 64k']);
  const bytes = readFileSync(path);
  const l1 = Number(bytes.readBigUInt64BE(40));
  const l2 = Number(bytes.readBigUInt64BE(l1) & 0x00ff_ffff_ffff_fe00n);
  // Past the 2 GiB that the only refcount block counts.
  const far = 3 * 2 ** 30;
  bytes.writeBigUInt64BE(BigInt(far) | (1n << 63n), l2);
  writeFileSync(path, bytes);
  truncateSync(path, far + 65536);
  withImage((image) => {
    expect(() => image.createSnapshot('shared')).toThrow(/not counted often enough/);
  });
});

it('a disk goes back to a snapshot of when it had no size', () => {
  create('0', 'cluster_size=64k');
  const image = openImage(path, { writable: true }) as ChainedQcow2Image;
  image.createSnapshot('empty');
  image.resize(1024 * 1024);
  image.write(Buffer.alloc(65536, 1), 0);
  image.applySnapshot('empty');
  expect(image.size).toBe(0);
  image.resize(2 * 1024 * 1024);
  const read = Buffer.alloc(65536, 1);
  image.read(read, 0);
  expect(read.equals(Buffer.alloc(65536))).toBe(true);
  image.write(Buffer.alloc(65536, 2), 65536);
  image.close();
  expect(qemuImg('check', '-f', 'qcow2', path)).toContain('No errors');
});
