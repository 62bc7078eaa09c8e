/** Which parts of an image become exports. */

import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { imageExports } from '../../../src/export/nbd/image-exports.ts';
import { describePeers } from '../../support/peers.ts';
import { run } from '../../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../../support/temp.ts';

const MiB = 1024 * 1024;

describePeers(['sfdisk'], 'imageExports', () => {
  const directory = temporaryDirectoryPerTest();

  it('leaves out extended partitions, which hold only others', async () => {
    const path = join(directory(), 'disk.raw');
    writeFileSync(path, '');
    truncateSync(path, 64 * MiB);
    const layout = [
      'label: dos',
      'start=2048, size=20480, type=83',
      'start=22528, size=100000, type=5',
      'start=24576, size=20480, type=83',
    ];
    run('sfdisk', ['--quiet', path], { input: `${layout.join('\n')}\n` });
    const served = await imageExports(path, { name: 'disk' });
    try {
      expect(served.exports.map(({ name, size }) => [name, size])).toEqual([
        ['disk', 64 * MiB],
        ['disk/1', 10 * MiB],
        ['disk/5', 10 * MiB],
      ]);
    } finally {
      served.close();
    }
  });
});
