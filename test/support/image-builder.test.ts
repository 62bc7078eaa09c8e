/** The built images are sound and hold what the builder says: QEMU agrees. */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { buildImage } from './image-builder.ts';
import type { BuildOptions } from './image-builder.ts';
import { describePeers } from './peers.ts';
import { run } from './qemu.ts';
import { temporaryDirectory } from './temp.ts';

const variants: [string, BuildOptions][] = [
  ['version 3', {}],
  ['version 2', { version: 2 }],
  ['zstd', { compression: 'zstd' }],
  ['4 KiB clusters, without snapshots', { clusterBits: 12, withSnapshot: false }],
  ['extended L2', { extendedL2: true, guestClusters: 24 }],
  ['data file', { dataFile: { name: 'guest.data', raw: false }, withSnapshot: false }],
  ['raw data file', { dataFile: { name: 'guest.data', raw: true }, withSnapshot: false }],
];

describePeers(['qemu-img'], 'built images', () => {
  it.each(variants)('%s: qemu-img check finds nothing, and reads the content', (_name, options) => {
    const directory = temporaryDirectory();
    const built = buildImage(options);
    writeFileSync(join(directory, 'built.qcow2'), built.bytes);
    writeFileSync(join(directory, 'guest.data'), built.dataFile);
    // QEMU looks for an external data file in its working directory.
    const qemuImg = (...args: string[]) => run('qemu-img', args, { cwd: directory });
    expect(qemuImg('check', '-f', 'qcow2', 'built.qcow2')).toContain('No errors were found');
    qemuImg('convert', '-f', 'qcow2', '-O', 'raw', 'built.qcow2', 'built.raw');
    expect(readFileSync(join(directory, 'built.raw')).equals(built.content)).toBe(true);
    if (built.snapshot === undefined) return;
    qemuImg('convert', '-l', built.snapshot.id, '-O', 'raw', 'built.qcow2', 'snapshot.raw');
    expect(readFileSync(join(directory, 'snapshot.raw')).equals(built.snapshot.content)).toBe(true);
  });
});
