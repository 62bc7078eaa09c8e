/** Zeroes at the edges of clusters and of the disk. */

import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import type { ChainedQcow2Image } from '../../src/chain/open.ts';
import { qemuImg } from '../support/qemu.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';

const path = join(sharedTemporaryDirectory(), 'image.qcow2');

it.each(['cluster_size=64k', 'cluster_size=64k,extended_l2=on', 'compat=0.10'])(
  'zeroes that reach the end inside the last cluster leave what is before them: %s',
  (options) => {
    qemuImg('create', '-q', '-f', 'qcow2', '-o', options, path, '67072');
    const image = openImage(path, { writable: true }) as ChainedQcow2Image;
    try {
      const disk = Buffer.alloc(67_072, 7);
      image.write(disk, 0);
      for (const offset of [67_068, 66_560, 65_540]) {
        image.writeZeroes(offset, disk.length - offset, { mayUnmap: true });
        disk.fill(0, offset);
        const read = Buffer.alloc(disk.length);
        image.read(read, 0);
        expect(read.equals(disk), `from ${offset}`).toBe(true);
      }
      image.write(disk.fill(9), 0);
      image.resize(68_096);
      const read = Buffer.alloc(68_096);
      image.read(read, 0);
      expect(read.equals(Buffer.concat([disk, Buffer.alloc(1024)]))).toBe(true);
    } finally {
      image.close();
    }
  },
);

it('zeroes for an empty disk of small clusters pass over its tables, not its clusters', () => {
  qemuImg('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=512', path, '64G');
  const image = openImage(path, { writable: true }) as ChainedQcow2Image;
  try {
    image.write(Buffer.alloc(512, 1), image.size - 512);
    const start = performance.now();
    image.writeZeroes(0, image.size - 512, { mayUnmap: true });
    // A minute if each cluster is looked at, and half a second otherwise.
    expect(performance.now() - start).toBeLessThan(10_000);
  } finally {
    image.close();
  }
});
