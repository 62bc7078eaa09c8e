import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Found, Posted } from '../../../src/qcow2/cluster-cache/pool.ts';
import type { ClusterPool } from '../../../src/qcow2/cluster-cache/pool.ts';
import {
  defaultCacheBytes,
  SharedClusterCache,
} from '../../../src/qcow2/cluster-cache/shared-cluster-cache.ts';
import { CLUSTER, smallCache } from './small-cache.ts';

const JOB = { descriptor: 1000, position: 0, compression: 0 };

function cacheOf(slots: number): { cache: SharedClusterCache; pool: ClusterPool } {
  const cache = smallCache(slots);
  return { cache, pool: cache.pool(CLUSTER)! };
}

const keyOf = (index: number) => ({ image: 1 + (index % 3), hostOffset: index * 100, length: 90 });

/** Reads a cluster as the engine does; true if it had to be made. */
function read(pool: ClusterPool, index: number, [start, end] = [0, CLUSTER]): boolean | undefined {
  const found = pool.acquire(keyOf(index));
  if (found === Found.NOTHING) return undefined;
  const { slot } = pool;
  if (found === Found.ROOM) {
    pool.bytes(slot).fill(index);
    pool.filled(slot, true);
  }
  expect(pool.bytes(slot).every((byte) => byte === (index & 255))).toBe(true);
  pool.used(slot, start, end);
  pool.release(slot);
  return found === Found.ROOM;
}

type Step =
  | { kind: 'open'; index: number }
  | { kind: 'close'; at: number; isGood: boolean }
  | { kind: 'forget'; index: number }
  | { kind: 'post'; index: number }
  | { kind: 'claim'; at: number; isGood: boolean };

const index = fc.integer({ min: 0, max: 40 });
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 4, arbitrary: fc.record({ kind: fc.constant('open' as const), index }) },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant('close' as const),
      at: fc.nat(20),
      isGood: fc.boolean(),
    }),
  },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('forget' as const), index }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('post' as const), index }) },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant('claim' as const),
      at: fc.nat(20),
      isGood: fc.boolean(),
    }),
  },
);

/** What a slot is expected to be at: see `Model`. */
interface Use {
  slot: number;
  index: number;
  filling: boolean;
}

/** Runs steps, and holds what comes of them against what may come. */
class Model {
  readonly #pool: ClusterPool;
  /** What threads have pinned. */
  readonly #open: Use[] = [];
  readonly #posted: { slot: number; index: number }[] = [];
  /** Clusters of which what is in the cache is known to be right; by version. */
  readonly #versions = new Map<number, number>();
  readonly #filledAs = new Map<number, number>();

  constructor(pool: ClusterPool) {
    this.#pool = pool;
  }

  run(next: Step): void {
    const pool = this.#pool;
    switch (next.kind) {
      case 'open':
        this.#openCluster(next.index);
        break;
      case 'close': {
        const [use] = this.#open.splice(next.at % Math.max(1, this.#open.length), 1);
        if (use === undefined) break;
        if (use.filling) this.#fill(use, next.isGood);
        else this.#check(use);
        pool.release(use.slot);
        break;
      }
      case 'forget':
        expect(pool.forget(keyOf(next.index).image, keyOf(next.index).hostOffset)).toBe(true);
        this.#versions.set(next.index, this.#version(next.index) + 1);
        break;
      case 'post':
        if (pool.post(keyOf(next.index), JOB, 0) === Posted.YES) {
          this.#posted.push({ slot: pool.slot, index: next.index });
        }
        break;
      case 'claim': {
        const [job] = this.#posted.splice(next.at % Math.max(1, this.#posted.length), 1);
        // The slot may be for another cluster by now; its last post says for which.
        if (job === undefined || pool.claim(job.slot) === undefined) break;
        const last = this.#posted.filter(({ slot }) => slot === job.slot).at(-1) ?? job;
        this.#fill({ ...last, filling: true }, next.isGood);
      }
    }
    this.#checkPinned();
  }

  #openCluster(wanted: number): void {
    const found = this.#pool.acquire(keyOf(wanted));
    if (found === Found.NOTHING) return;
    const use = { slot: this.#pool.slot, index: wanted, filling: found === Found.ROOM };
    if (found === Found.BUSY) {
      const other = this.#open.find(({ slot }) => slot === use.slot);
      expect(other).toMatchObject({ index: wanted, filling: true });
      this.#pool.release(use.slot);
      return;
    }
    if (found === Found.CLUSTER) {
      expect(this.#filledAs.get(wanted)).toBe(this.#version(wanted));
    } else if (this.#open.some(({ slot }) => slot === use.slot)) {
      throw new Error('a slot in use was given to somebody else');
    }
    this.#open.push(use);
    if (found === Found.CLUSTER) this.#check(use);
  }

  #fill({ slot, index: filled }: Use, isGood: boolean): void {
    this.#pool.bytes(slot).fill(filled);
    this.#pool.filled(slot, isGood);
    // What was forgotten meanwhile must not be found: a later read fills it anew.
    if (isGood) this.#filledAs.set(filled, this.#version(filled));
  }

  #version(of: number): number {
    return this.#versions.get(of) ?? 0;
  }

  #check({ slot, index: expected }: Use): void {
    expect(this.#pool.bytes(slot)[0]).toBe(expected);
    expect(this.#pool.bytes(slot)[CLUSTER - 1]).toBe(expected);
  }

  #checkPinned(): void {
    for (const use of this.#open) if (!use.filling) this.#check(use);
  }
}

describe('a pool of slots', () => {
  it('never shows anything but the cluster, and leaves what is in use alone', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 40 }),
        fc.array(step, { maxLength: 200 }),
        (slots, steps) => {
          const model = new Model(cacheOf(slots).pool);
          for (const each of steps) model.run(each);
        },
      ),
      { numRuns: 150 },
    );
  });

  it('keeps clusters that are used again while others pass by once', () => {
    const { pool } = cacheOf(64);
    const hot = Array.from({ length: 16 }, (_, each) => each);
    for (let round = 0; round < 2; round++) for (const each of hot) read(pool, each);
    for (let passing = 100; passing < 2100; passing++) read(pool, passing);
    expect(hot.filter((each) => read(pool, each) === false).length).toBeGreaterThanOrEqual(15);
  });

  it('does not take reading on in a cluster for using it again', () => {
    const { pool } = cacheOf(64);
    const hot = Array.from({ length: 16 }, (_, each) => each);
    for (let round = 0; round < 2; round++) for (const each of hot) read(pool, each);
    for (let passing = 100; passing < 1100; passing++) {
      for (let start = 0; start < CLUSTER; start += 64) read(pool, passing, [start, start + 64]);
    }
    expect(hot.filter((each) => read(pool, each) === false).length).toBeGreaterThanOrEqual(15);
  });

  it('works with one slot', () => {
    const { pool, cache } = cacheOf(1);
    expect([read(pool, 1), read(pool, 1), read(pool, 2), read(pool, 1)]).toEqual([
      true,
      false,
      true,
      true,
    ]);
    expect(pool.post(keyOf(5), JOB, 0)).toBe(Posted.YES);
    expect(pool.post(keyOf(6), JOB, 0)).toBe(Posted.NO);
    // What is needed now goes before what is to be needed.
    expect(read(pool, 7)).toBe(true);
    expect(cache.counters()).toMatchObject({ hits: 1, misses: 4, wastedBytes: 0 });
  });

  it('gives nothing while its slots are in use', () => {
    const { pool } = cacheOf(1);
    expect(pool.acquire(keyOf(1))).toBe(Found.ROOM);
    expect(pool.acquire(keyOf(2))).toBe(Found.NOTHING);
    expect(pool.acquire(keyOf(1))).toBe(Found.BUSY);
  });

  it('tells clusters apart that begin at the same place', () => {
    const { pool } = cacheOf(16);
    read(pool, 1);
    expect(pool.acquire({ ...keyOf(1), length: 91 })).toBe(Found.ROOM);
    pool.filled(pool.slot, true);
    pool.release(pool.slot);
    pool.forget(keyOf(1).image, keyOf(1).hostOffset);
    expect(read(pool, 1)).toBe(true);
    expect(pool.acquire({ ...keyOf(1), length: 91 })).toBe(Found.ROOM);
  });

  it('counts what was read ahead and never asked for', () => {
    const { pool, cache } = cacheOf(16);
    for (let each = 0; each < 16; each++) {
      expect(pool.post(keyOf(each), JOB, 0)).toBe(Posted.YES);
      expect(pool.claim(pool.slot)).toMatchObject({ length: 90, descriptor: 1000 });
      pool.bytes(pool.slot).fill(each);
      pool.filled(pool.slot, true);
    }
    read(pool, 3);
    for (let each = 100; each < 400; each++) read(pool, each, [100, 200]);
    expect(cache.counters()).toMatchObject({
      readAheadHits: 1,
      readAheadBytes: 16 * CLUSTER,
      wastedBytes: 15 * CLUSTER,
    });
  });
});

describe('a thread that is gone', () => {
  it('keeps nobody from reading, and gives back what it had', () => {
    const { pool, cache } = cacheOf(1);
    const gone = SharedClusterCache.attach(cache.buffer);
    expect(gone.pool(CLUSTER)!.acquire(keyOf(1))).toBe(Found.ROOM);
    expect(pool.acquire(keyOf(1))).toBe(Found.BUSY);
    expect(pool.wait(pool.slot, 1)).toBe(false);
    pool.giveUp(pool.slot);
    pool.release(pool.slot);
    expect(pool.acquire(keyOf(1))).toBe(Found.NOTHING);
    cache.releaseOwner(gone.owner);
    expect(cache.usedBytes).toBe(0);
  });
});

describe('the memory of a cache', () => {
  it('is never more than was allowed', () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 20_000_000 }),
        fc.uniqueArray(fc.integer({ min: 9, max: 21 }), { minLength: 1, maxLength: 5 }),
        (bytes, bits) => {
          const clusterSizes = bits.map((each) => 2 ** each);
          const cache = SharedClusterCache.create({ bytes, clusterSizes });
          if (cache.pools.length > 0) expect(cache.buffer.byteLength).toBeLessThanOrEqual(bytes);
          else expect(cache.buffer.byteLength).toBeLessThan(64 * 1024);
          const attached = SharedClusterCache.attach(cache.buffer);
          expect(attached.pools.map(({ slots }) => slots)).toEqual(
            cache.pools.map(({ slots }) => slots),
          );
          // Most of it is for clusters, where there is room for many.
          if (bytes < 64 * 2 ** 20 || cache.pools.length < bits.length) return;
          const used = cache.pools.reduce((sum, pool) => sum + pool.slots * pool.clusterSize, 0);
          expect(used).toBeGreaterThan(bytes * 0.8);
        },
      ),
      { numRuns: 60 },
    );
  });

  it('is a 64th of what there is, within bounds', () => {
    const MiB = 2 ** 20;
    expect(defaultCacheBytes(256 * MiB)).toBe(8 * MiB);
    expect(defaultCacheBytes(1536 * MiB)).toBe(24 * MiB);
    expect(defaultCacheBytes(2 ** 40)).toBe(32 * MiB);
  });
});

describe('the number of an image', () => {
  it('is the same for the same file, and never for another', () => {
    const cache = SharedClusterCache.create({ bytes: 2 ** 20, clusterSizes: [CLUSTER] });
    const other = SharedClusterCache.attach(cache.buffer);
    const first = cache.image('a:1');
    expect(other.image('a:1')).toBe(first);
    expect(other.image('a:12')).not.toBe(first);
    expect(cache.image(undefined)).not.toBe(cache.image(undefined));
    other.forgetImage(first);
    expect(cache.image('a:1')).not.toBe(first);
    const many = Array.from({ length: 100 }, (_, each) => cache.image(`image ${each}`));
    expect(new Set(many).size).toBe(100);
  });
});
