/**
 * A thread of `hammer.test.ts`: takes clusters out of the cache, or makes them, all of a sudden and
 * without end, and checks each. A cluster's bytes follow from its number.
 */

import { parentPort, workerData } from 'node:worker_threads';
import { Found } from '../../../src/qcow2/cluster-cache/pool.ts';
import { SharedClusterCache } from '../../../src/qcow2/cluster-cache/shared-cluster-cache.ts';
import { Random } from '../../support/random.ts';

const { buffer, owner, seed, made, clusterSize, clusters } = workerData as {
  buffer: SharedArrayBuffer;
  owner: number;
  seed: number;
  /** How often each cluster was made. */
  made: Int32Array;
  clusterSize: number;
  clusters: number;
};
const cache = SharedClusterCache.attach(buffer, owner);
const pool = cache.pool(clusterSize)!;
const random = new Random(seed);

function check(slot: number, cluster: number): void {
  const words = new Uint32Array(pool.bytes(slot).buffer, pool.bytes(slot).byteOffset, 64);
  if (!words.every((word) => word === cluster))
    throw new Error(`not cluster ${cluster}: ${words[0]}`);
}

function use(cluster: number): void {
  const key = { image: 1, hostOffset: cluster * 1000, length: 10 };
  const found = pool.acquire(key);
  if (found === Found.NOTHING) return;
  const { slot } = pool;
  if (found === Found.ROOM) {
    Atomics.add(made, cluster, 1);
    pool.bytes(slot).fill(0);
    new Uint32Array(pool.bytes(slot).buffer, pool.bytes(slot).byteOffset, 64).fill(cluster);
    const isGood = !random.oneIn(50);
    pool.filled(slot, isGood);
    if (isGood) check(slot, cluster);
  } else if (found === Found.CLUSTER || pool.wait(slot, 1000)) {
    check(slot, cluster);
    pool.used(slot, 0, clusterSize);
    check(slot, cluster);
  } else if (!pool.isFilled(slot)) {
    pool.giveUp(slot);
  }
  pool.release(slot);
  if (random.oneIn(40)) pool.forget(1, random.below(clusters) * 1000);
}

for (let round = 0; ; round++) {
  for (let each = 0; each < 1000; each++) {
    // Some are wanted much more often than others.
    use(random.below(1 + random.below(clusters)));
  }
  parentPort!.postMessage(round);
}
