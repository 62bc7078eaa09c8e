/** A short run of what test/stress/run.mjs does for as long as it takes. */

import { expect, it } from 'vitest';
import { listMounts } from '../../src/host/mountinfo.ts';
import { CLI } from '../cli/mount-support.ts';
import { describePeers } from '../support/peers.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';
import { runMany } from './many.ts';
import { runBuild } from './package-build.ts';
import { runRound } from './rounds.ts';

const PROGRAMS = [
  'root',
  '/dev/fuse',
  'loop',
  'qemu-img',
  'qemu-io',
  'sfdisk',
  'mkfs.ext4',
] as const;

describePeers(PROGRAMS, 'hard use of writable mounts', () => {
  const directory = temporaryDirectoryPerTest();

  it.each([
    [1000007, 'killed', 'kernel'],
    [1000003, 'overlapping', 'kernel'],
  ])('round %i', { timeout: 120_000 }, async (seed, what, channel) => {
    const request = { directory: directory(), program: CLI, seed, operations: 400 };
    const story = await runRound(request);
    expect(story).toContain(what);
    expect(story).toContain(channel);
    const left = listMounts().filter((mount) => mount.directory.startsWith(directory()));
    expect(left).toEqual([]);
  });

  it('a package is built on a filesystem', { timeout: 120_000 }, async () => {
    const request = { directory: directory(), program: CLI, seed: 4, isThorough: false };
    expect(await runBuild(request)).toMatch(/^a package built on a filesystem, \d{3,} files/);
    const left = listMounts().filter((mount) => mount.directory.startsWith(directory()));
    expect(left).toEqual([]);
  });

  it('some mounts at once', { timeout: 120_000 }, async () => {
    const story = await runMany({ directory: directory(), program: CLI, seed: 3, mounts: 4 });
    const share = /its share [\d.]+ MiB on average, ([\d.]+) at most/.exec(story);
    expect(Number(share![1])).toBeLessThan(60);
  });
});
