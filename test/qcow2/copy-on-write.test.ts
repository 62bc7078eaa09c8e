/** Writes to parts of clusters that a snapshot shares, or that were used for something else. */

import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import type { ChainedQcow2Image } from '../../src/chain/open.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';

const directory = temporaryDirectoryPerTest();
const KiB = 1024;
const MiB = 1024 * KiB;
const DISK_BYTES = 16 * MiB;

/** Parts of 2 MiB and of 64 KiB clusters: large and small, at their edges and in their middle. */
const WRITES = [
  { offset: 5, length: 1 },
  { offset: 2 * MiB, length: 4 * KiB },
  { offset: 4 * MiB - 300, length: 300 },
  { offset: 4 * MiB + 700 * KiB, length: 100 * KiB },
  { offset: 6 * MiB + 1000, length: 2 * MiB - 2000 },
  { offset: 9 * MiB, length: 2 * MiB },
  { offset: 12 * MiB + 64 * KiB + 10, length: 128 * KiB },
  { offset: 14 * MiB + 30 * KiB, length: 4 * KiB },
];

function create(options: string): string {
  const path = join(directory(), 'disk.qcow2');
  qemuImg('create', '-q', '-f', 'qcow2', '-o', options, path, String(DISK_BYTES));
  return path;
}

function readAll(device: { size: number; read: (target: Uint8Array, offset: number) => void }) {
  const bytes = Buffer.alloc(device.size);
  device.read(bytes, 0);
  return bytes;
}

describePeers(['qemu-img', 'koffi'], 'copy on write', () => {
  it.each([
    'cluster_size=2M',
    'cluster_size=64k',
    'cluster_size=512',
    'cluster_size=2M,extended_l2=on',
    'cluster_size=2M,compat=0.10',
  ])('keeps what was around the data, and the snapshot: %s', (options) => {
    const path = create(options);
    // Random, with zeroes for whole clusters and for parts of some.
    const before = randomBytes(DISK_BYTES);
    before.fill(0, 2 * MiB + 100 * KiB, 4 * MiB - 100 * KiB);
    before.fill(0, 9 * MiB, 11 * MiB);
    const after = Buffer.from(before);
    {
      using image = openImage(path, { writable: true }) as ChainedQcow2Image;
      image.write(before, 0);
      const { id } = image.createSnapshot('before');
      for (const { offset, length } of WRITES) {
        const data = randomBytes(length);
        image.write(data, offset);
        data.copy(after, offset);
      }
      expect(readAll(image).equals(after)).toBe(true);
      expect(readAll(image.openSnapshot(id)).equals(before)).toBe(true);
    }
    using image = openImage(path);
    expect(readAll(image).equals(after)).toBe(true);
    expect(qemuImg('check', path)).toContain('No errors');
  });

  it.each(['cluster_size=2M', 'cluster_size=64k', 'cluster_size=2M,extended_l2=on'])(
    'leaves nothing of what a cluster held before: %s',
    (options) => {
      const path = create(options);
      using image = openImage(path, {
        writable: true,
        passDiscard: { request: false },
      }) as ChainedQcow2Image;
      image.write(randomBytes(DISK_BYTES), 0);
      image.discard(0, DISK_BYTES);
      image.flush();
      const end = image.file.size;
      const model = Buffer.alloc(DISK_BYTES);
      for (const { offset, length } of WRITES) {
        const data = randomBytes(length);
        image.write(data, offset);
        data.copy(model, offset);
      }
      expect(image.file.size, 'freed clusters are used again').toBe(end);
      expect(readAll(image).equals(model)).toBe(true);
    },
  );
});
