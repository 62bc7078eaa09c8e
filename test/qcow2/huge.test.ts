import { statSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openImage } from '../../src/index.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';

const TiB = 2 ** 40;
const MiB = 2 ** 20;

describePeers(['qemu-img', 'qemu-io'], 'huge disks', () => {
  it('opens 64 TiB at once and reads anywhere', () => {
    const image = join(temporaryDirectory(), 'huge.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=2M', image, '64T');
    const far = 64 * TiB - MiB;
    qemuIo(image, ['write -q -P 0x11 0 4k', `write -q -P 0x22 ${far} 1M`]);
    const start = performance.now();
    const disk = openImage(image);
    try {
      const bytes = new Uint8Array(4096);
      disk.read(bytes, 0);
      expect(bytes.every((byte) => byte === 0x11)).toBe(true);
      disk.read(bytes, 64 * TiB - 4096);
      expect(bytes.every((byte) => byte === 0x22)).toBe(true);
      disk.read(bytes, 33 * TiB);
      expect(bytes.every((byte) => byte === 0)).toBe(true);
      expect(performance.now() - start).toBeLessThan(500);
      expect([...disk.extents(0, disk.size)].map(({ kind }) => kind)).toEqual([
        'data',
        'hole',
        'data',
      ]);
    } finally {
      disk.close();
    }
  });

  it('keeps its metadata cache within its budget', () => {
    const image = join(temporaryDirectory(), 'full.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', '-o', 'preallocation=metadata', image, '512G');
    // 64 MiB of L2 tables, of which at most 1 MiB may stay.
    const disk = openImage(image, { metadataCacheBytes: MiB });
    try {
      const before = process.memoryUsage().arrayBuffers;
      const bytes = new Uint8Array(512);
      for (let offset = 0; offset < disk.size; offset += 32 * MiB) disk.read(bytes, offset);
      const grown = process.memoryUsage().arrayBuffers - before;
      // Slices that were dropped may wait for the collector, but not all 64 MiB of them.
      expect(grown).toBeLessThan(48 * MiB);
      expect(statSync(image).size).toBeGreaterThan(64 * MiB);
    } finally {
      disk.close();
    }
  });
});
