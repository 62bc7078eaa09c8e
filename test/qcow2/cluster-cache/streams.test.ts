import { describe, expect, it } from 'vitest';
import { SharedClusterCache } from '../../../src/qcow2/cluster-cache/shared-cluster-cache.ts';
import type { Streams } from '../../../src/qcow2/cluster-cache/streams.ts';

const KiB = 1024;
const MiB = 1024 * KiB;

function makeCache(bytes = 64 * MiB): SharedClusterCache {
  return SharedClusterCache.create({ bytes, clusterSizes: [64 * KiB] });
}

/** Notes a request, and tells the range that is to be read ahead. */
function note(streams: Streams, offset: number, length: number, image = 1): number[] | undefined {
  streams.note({ image, disk: 0, offset, length });
  return streams.stream < 0 ? undefined : [streams.from, streams.to];
}

describe('reads in order', () => {
  it('are recognized, and what was read ahead grows without gap or overlap', () => {
    const { streams } = makeCache();
    let ahead = 0;
    let furthest = 0;
    for (let offset = 0; offset < 64 * MiB; offset += 64 * KiB) {
      const range = note(streams, offset, 64 * KiB);
      if (range === undefined) continue;
      const [from, to] = range;
      expect(from).toBe(Math.max(offset + 64 * KiB, ahead));
      expect(to).toBeGreaterThan(from!);
      ahead = to!;
      furthest = Math.max(furthest, to! - offset);
    }
    expect(furthest).toBeGreaterThanOrEqual(4 * MiB);
    expect(furthest).toBeLessThanOrEqual(4 * MiB + 64 * KiB);
  });

  it('are recognized although some overtake others', () => {
    const { streams } = makeCache();
    let found = 0;
    for (const each of [0, 1, 3, 2, 4, 5, 7, 6, 8, 9, 11, 10]) {
      if (note(streams, each * 128 * KiB, 128 * KiB) !== undefined) found++;
    }
    expect(found).toBeGreaterThanOrEqual(3);
  });

  it('are told apart by where they are, by thread or not', () => {
    const cache = makeCache();
    const threads = [cache.streams, SharedClusterCache.attach(cache.buffer).streams];
    const starts = [0, 100 * MiB, 200 * MiB, 300 * MiB];
    for (let done = 0; done < 16; done++) {
      for (const [index, start] of starts.entries()) {
        const offset = start + done * 256 * KiB;
        const range = note(threads[(done + index) % 2]!, offset, 256 * KiB);
        if (range !== undefined) expect(range[0]! - offset).toBeLessThan(9 * MiB);
        if (done === 1) expect(range).toBeDefined();
      }
    }
  });

  it('of another image are another stream', () => {
    const { streams } = makeCache();
    expect(note(streams, 0, MiB)).toBeUndefined();
    expect(note(streams, MiB, MiB, 2)).toBeUndefined();
    expect(note(streams, MiB, MiB)).toBeDefined();
  });

  it('take no more than a quarter of the cache', () => {
    const { streams } = makeCache(2 * MiB);
    for (let offset = 0; offset < 16 * MiB; offset += 64 * KiB) {
      const [, to = 0] = note(streams, offset, 64 * KiB) ?? [];
      expect(to - offset - 64 * KiB).toBeLessThanOrEqual(512 * KiB);
    }
  });

  it('read ahead less once that was for nothing', () => {
    const { streams } = makeCache();
    const windowAfter = (from: number): number => {
      let window = 0;
      for (let offset = from; offset < from + 16 * MiB; offset += 256 * KiB) {
        const [, to = 0] = note(streams, offset, 256 * KiB) ?? [];
        if (to > 0) window = to - offset - 256 * KiB;
      }
      return window;
    };
    const before = windowAfter(0);
    streams.note({ image: 1, disk: 0, offset: 16 * MiB, length: 256 * KiB });
    let offset = 16 * MiB + 256 * KiB;
    while (note(streams, offset, 256 * KiB) === undefined) offset += 256 * KiB;
    for (let round = 0; round < 3; round++) {
      streams.wasted(streams.stream < 0 ? 0 : streams.stream);
      do offset += 256 * KiB;
      while (note(streams, offset, 256 * KiB) === undefined);
    }
    expect(streams.to - offset).toBeLessThanOrEqual(before / 4 + 512 * KiB);
  });
});

describe('reads at a distance', () => {
  it.each([MiB, -MiB, 192 * KiB])('of %i bytes are recognized', (stride) => {
    const { streams } = makeCache();
    const start = 100 * MiB;
    const seen = new Set<number>();
    for (let each = 0; each < 20; each++) {
      const offset = start + each * stride;
      if (each > 8) expect(seen).toContain(offset);
      if (note(streams, offset, 16 * KiB) === undefined) continue;
      expect(streams.stride).toBe(stride);
      expect(streams.partLength).toBe(16 * KiB);
      const { from, to } = streams;
      for (let at = from; stride > 0 ? at <= to : at >= to; at += stride) {
        expect(seen).not.toContain(at);
        seen.add(at);
      }
    }
  });
});

it('reads anywhere are no stream', () => {
  const { streams } = makeCache();
  let state = 12345;
  for (let each = 0; each < 5000; each++) {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    const offset = (state % 250_000) * 4096;
    expect(note(streams, offset, 4096)).toBeUndefined();
  }
});
