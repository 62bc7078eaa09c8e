import { describe, expect, it, vi } from 'vitest';
import { EarlyWriteback } from '../../src/host/early-writeback.ts';

const calls: unknown[][] = [];
vi.mock('../../src/host/libc.ts', () => ({
  loadLibc: () => ({
    func:
      () =>
      (...values: unknown[]) =>
        calls.push(values),
  }),
}));

const MiB = 1024 * 1024;

/** What the host is asked to write, as `[first byte, bytes]`, for writes in this order. */
function asked(writes: readonly (readonly [position: number, length: number])[]): unknown[] {
  calls.length = 0;
  const writeback = new EarlyWriteback();
  for (const [position, length] of writes) writeback.written({ fd: 5, position, length });
  for (const [fd, , , flags] of calls) expect([fd, flags]).toEqual([5, 2]);
  return calls.map(([, start, length]) => [start, length]);
}

describe.runIf(process.platform === 'linux')('long writes', () => {
  it('one behind the other are written in batches', () => {
    const writes = Array.from({ length: 20 }, (_, index) => [index * MiB, MiB] as const);
    expect(asked(writes)).toEqual([
      [0, 8 * MiB],
      [8 * MiB, 8 * MiB],
    ]);
  });

  it('that overtake each other are of one stream', () => {
    const order = [1, 0, 3, 2, 5, 4, 7, 6];
    expect(asked(order.map((index) => [100 * MiB + index * MiB, MiB]))).toEqual([
      [100 * MiB, 8 * MiB],
    ]);
  });

  it('at any place are left to the host, as are short ones', () => {
    expect(asked(Array.from({ length: 50 }, (_, index) => [index * 100 * MiB, MiB]))).toEqual([]);
    expect(asked(Array.from({ length: 5000 }, (_, index) => [index * 4096, 4096]))).toEqual([]);
  });

  it('that are very long are written at once', () => {
    expect(asked([[3 * MiB, 64 * MiB]])).toEqual([[3 * MiB, 64 * MiB]]);
  });
});
