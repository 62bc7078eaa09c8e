/** Threads that use one cache at once, some of which are ended in the middle of something. */

import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import { build } from 'esbuild';
import { beforeAll, expect, it } from 'vitest';
import type { SharedClusterCache } from '../../../src/qcow2/cluster-cache/shared-cluster-cache.ts';
import { sharedTemporaryDirectory } from '../../support/temp.ts';
import { CLUSTER, smallCache } from './small-cache.ts';

const CLUSTERS = 200;
const directory = sharedTemporaryDirectory();
const script = join(directory, 'hammer-thread.mjs');

beforeAll(async () => {
  await build({
    entryPoints: [join(import.meta.dirname, 'hammer-thread.ts')],
    outfile: script,
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'node20',
    logLevel: 'warning',
  });
});

interface Hammer {
  cache: SharedClusterCache;
  errors: Error[];
  rounds: () => number;
  start: () => Worker;
}

function makeHammer(slots: number): Hammer {
  const cache = smallCache(slots);
  const made = new Int32Array(new SharedArrayBuffer(CLUSTERS * 4));
  const errors: Error[] = [];
  let rounds = 0;
  let seed = 0;
  const start = (): Worker => {
    const owner = cache.newOwner();
    const data = { buffer: cache.buffer, owner, seed: seed++, made };
    const workerData = { ...data, clusterSize: CLUSTER, clusters: CLUSTERS };
    const worker = new Worker(script, { workerData, execArgv: [] });
    worker.on('message', () => rounds++);
    worker.on('error', (error) => errors.push(error));
    worker.on('exit', () => cache.releaseOwner(owner));
    return worker;
  };
  return { cache, errors, rounds: () => rounds, start };
}

it.each([1, 20, 120])('never see but what they ask for, with %i slots', async (slots) => {
  const hammer = makeHammer(slots);
  const workers = Array.from({ length: 4 }, hammer.start);
  while (hammer.rounds() < 40 && hammer.errors.length === 0) await sleep(20);
  await Promise.all(workers.map((worker) => worker.terminate()));
  expect(hammer.errors).toEqual([]);
  expect(hammer.cache.usedBytes).toBeLessThanOrEqual(slots * 2 * CLUSTER);
});

it('go on when others are ended in the middle of something', async () => {
  const hammer = makeHammer(20);
  const steady = hammer.start();
  for (let round = 0; round < 12; round++) {
    const others = [hammer.start(), hammer.start()];
    const before = hammer.rounds();
    while (hammer.rounds() < before + 4 && hammer.errors.length === 0) await sleep(5);
    await Promise.all(others.map((worker) => worker.terminate()));
  }
  const before = hammer.rounds();
  while (hammer.rounds() < before + 5 && hammer.errors.length === 0) await sleep(5);
  await steady.terminate();
  expect(hammer.errors).toEqual([]);
});
