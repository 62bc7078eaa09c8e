/**
 * Images of random layout that QEMU made by random writes: what is read, mapped, described and
 * checked here is what QEMU reads, maps, describes and checks.
 *
 * `QCOW2_ORACLE_RUNS` sets the number of images, `QCOW2_ORACLE_SEED` where they start.
 */

import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import type { BlockDevice } from '../../src/device/block-device.ts';
import { checkImage } from '../../src/operations/check.ts';
import { formatMapJson } from '../../src/operations/format-map.ts';
import { chainInfo } from '../../src/operations/info.ts';
import { mapImage } from '../../src/operations/map.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuImgJson, tryRun } from '../support/qemu.ts';
import { chains } from './random-chain.ts';
import type { Chain } from './random-chain.ts';
import { makeChain } from './make-chain.ts';

const RUNS = Number(process.env.QCOW2_ORACLE_RUNS ?? 20);
const SEED = Number(process.env.QCOW2_ORACLE_SEED ?? 20_260);

const root = mkdtempSync(join(tmpdir(), 'qcow2-oracle-'));
afterAll(() => {
  rmSync(root, { recursive: true, force: true });
});

function readAll(device: BlockDevice): Buffer {
  const bytes = Buffer.alloc(device.size);
  device.read(bytes, 0);
  return bytes;
}

/** Where two contents first differ, or -1. Comparing them by `expect` would take minutes. */
function firstDifference(ours: Buffer, theirs: Buffer): number {
  if (ours.equals(theirs)) return -1;
  const length = Math.min(ours.length, theirs.length);
  for (let at = 0; at < length; at++) if (ours[at] !== theirs[at]) return at;
  return length;
}

function converted(image: string, directory: string, options: readonly string[]): Buffer {
  const target = join(directory, 'converted.raw');
  qemuImg('convert', '-O', 'raw', ...options, image, target);
  return readFileSync(target);
}

function judge(chain: Chain, directory: string): void {
  const { path, format, snapshots } = makeChain(chain, directory);
  using image = openImage(path, { format });
  expect(firstDifference(readAll(image), converted(path, directory, ['-f', format]))).toBe(-1);
  if (image.format === 'qcow2') {
    expect(image.snapshots.map(({ name }) => name)).toEqual(snapshots);
    for (const name of snapshots) {
      const theirs = converted(path, directory, ['-f', format, '-l', `snapshot.name=${name}`]);
      const ours = readAll(image.openSnapshot(name));
      expect(firstDifference(ours, theirs), `snapshot ${name}`).toBe(-1);
    }
    expect(checkImage(image)).toEqual(qemuImgJson('check', '-f', format, path));
  }
  const ourMap = [...formatMapJson(mapImage(image))].join('');
  expect(ourMap).toBe(qemuImg('map', '-f', format, '--output=json', path));
  const theirInfo = qemuImg('info', '-f', format, '--backing-chain', '--output=json', path);
  expect(chainInfo(image)).toEqual(JSON.parse(theirInfo));
}

describePeers(['qemu-img', 'qemu-io'], 'random images are to us what they are to QEMU', () => {
  it(`in ${RUNS} cases from seed ${SEED}`, { timeout: 60_000 + RUNS * 10_000 }, () => {
    let count = 0;
    fc.assert(
      fc.property(chains(), (chain) => {
        const directory = join(root, String(count++));
        tryRun('mkdir', [directory]);
        try {
          judge(chain, directory);
        } finally {
          rmSync(directory, { recursive: true, force: true });
        }
      }),
      { numRuns: RUNS, seed: SEED, endOnFailure: true },
    );
  });
});
