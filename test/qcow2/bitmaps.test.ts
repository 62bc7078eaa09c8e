import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { decodeHeader } from '../../src/format/qcow2/header.ts';
import { openImage } from '../../src/index.ts';
import type { ChainedQcow2Image } from '../../src/index.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';
import { dirtyAccordingToQemu } from './bitmap-oracle.ts';

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

  it.each([
    ['bitmaps-autoclear-unset', true],
    ['bitmaps', false],
  ])('whose directory was overwritten matter only if they count: %s', (name, isGivenUp) => {
    const path = join(temporaryDirectory(), 'bitmaps.qcow2');
    const bytes = readFileSync(`images/features/${name}.qcow2`);
    const { extensions } = decodeHeader(bytes);
    const { directoryOffset, directorySize } = extensions.bitmaps!;
    bytes.fill(0xff, directoryOffset, directoryOffset + directorySize);
    writeFileSync(path, bytes);
    using image = openQcow2(path);
    if (isGivenUp) expect(image.bitmaps).toEqual([]);
    else expect(() => image.bitmaps).toThrow(/bitmap directory entry 0/);
  });
});
