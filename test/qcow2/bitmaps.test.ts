import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { openImage } from '../../src/index.ts';
import type { ChainedQcow2Image, DirtyRange } from '../../src/index.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo, run } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';

interface NbdExtent {
  offset: number;
  length: number;
  type: number;
}

function endOf({ offset, length }: DirtyRange): number {
  return offset + length;
}

/** What qemu-nbd says that a bitmap marks, neighbours merged. */
async function dirtyAccordingToQemu(image: string, bitmap: string): Promise<DirtyRange[]> {
  const socket = `${image}.sock`;
  const server = spawn('qemu-nbd', ['-r', '-t', '-f', 'qcow2', '-B', bitmap, '-k', socket, image]);
  try {
    while (!existsSync(socket) && server.exitCode === null) await delay(10);
    const uri = `nbd+unix:///?socket=${socket}`;
    const map = run('nbdinfo', ['--json', `--map=qemu:dirty-bitmap:${bitmap}`, uri]);
    const ranges: DirtyRange[] = [];
    for (const { offset, length, type } of JSON.parse(map) as NbdExtent[]) {
      if (type === 0) continue;
      const last = ranges.at(-1);
      if (last !== undefined && endOf(last) === offset) last.length += length;
      else ranges.push({ offset, length });
    }
    return ranges;
  } finally {
    server.kill();
    if (server.exitCode === null) await once(server, 'exit');
  }
}

function openQcow2(path: string): ChainedQcow2Image {
  const image = openImage(path);
  if (image.format !== 'qcow2') throw new Error(`${path} is not a qcow2 image`);
  return image;
}

describePeers(['qemu-img', 'qemu-io', 'qemu-nbd', 'nbdinfo'], 'bitmaps', () => {
  it.each([
    { clusterSize: '64k', granularity: '64k', size: '100M' },
    { clusterSize: '512', granularity: '512', size: '9M' },
    { clusterSize: '4k', granularity: '1M', size: '3000k' },
  ])('mark what QEMU reads from them: %o', async ({ clusterSize, granularity, size }) => {
    const path = join(temporaryDirectory(), 'bitmaps.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', '-o', `cluster_size=${clusterSize}`, path, size);
    qemuImg('bitmap', '--add', '-g', granularity, path, 'writes');
    qemuIo(path, ['write -q 0 4k', 'write -q 700k 200k', 'write -q 1M 1M', 'discard -q 2500k 64k']);
    const expected = await dirtyAccordingToQemu(path, 'writes');
    expect(expected.length).toBeGreaterThan(0);
    const image = openQcow2(path);
    try {
      expect([...image.dirtyRanges('writes')]).toEqual(expected);
      expect(image.bitmaps).toMatchObject([
        { name: 'writes', isEnabled: true, isInconsistent: false },
      ]);
    } finally {
      image.close();
    }
  });

  it('are listed with their state, and read only if that is good', () => {
    const image = openQcow2('images/features/bitmap-in-use.qcow2');
    try {
      const broken = image.bitmaps.find(({ isInconsistent }) => isInconsistent);
      expect(broken).toBeDefined();
      expect(() => [...image.dirtyRanges(broken!.name)]).toThrow(/cannot be trusted/);
      expect(() => [...image.dirtyRanges('none')]).toThrow(/there is no bitmap 'none'/);
    } finally {
      image.close();
    }
  });
});
