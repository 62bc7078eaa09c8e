import { describe, expect, it } from 'vitest';
import { PoolUsage, Usage } from '../../../src/export/nbd/pool-usage.ts';
import { BufferPool } from '../../../src/export/nbd/reply-writer.ts';

const MiB = 1024 * 1024;

/** The pools of two threads of one server. */
function twoPools() {
  const memory = PoolUsage.memoryFor(2);
  const usages = [new PoolUsage(memory, 0), new PoolUsage(memory, 1)] as const;
  const [first, second] = usages.map((usage) => new BufferPool(usage)) as [BufferPool, BufferPool];
  return { usages, first, second };
}

describe('the buffer pools of several threads', () => {
  it('share the memory for large replies', () => {
    const { first, second } = twoPools();
    const buffer = first.take(40 * MiB)!;
    expect(second.take(25 * MiB)).toBeUndefined();
    const another = second.take(20 * MiB)!;
    expect(first.take(10 * MiB)).toBeUndefined();
    second.give(another);
    first.give(buffer);
    expect(second.take(60 * MiB)).toBeDefined();
  });

  it('share the memory for payloads that are arriving, and none goes without', () => {
    const { first, second } = twoPools();
    const taken = Array.from({ length: 32 }, () => first.takeInput(2 * MiB));
    const short = second.takeInput(2 * MiB);
    expect(short.length).toBeLessThan(128 * 1024);
    for (const buffer of taken) first.giveInput(buffer);
    expect(second.takeInput(2 * MiB).length).toBeGreaterThanOrEqual(2 * MiB);
  });

  it('are tight together, and not any more when one of them has gone', () => {
    const { usages, first, second } = twoPools();
    for (let bytes = 0; bytes <= 130 * MiB; bytes += 2 * MiB) {
      first.take(2 * MiB);
      second.take(2 * MiB);
    }
    expect([first.isTight, second.isTight]).toEqual([true, true]);
    expect(first.take(MiB)).toBeUndefined();
    usages[0].clear(1);
    expect(first.isTight).toBe(false);
    expect(usages[0].total(Usage.all)).toBeLessThan(140 * MiB);
  });

  it('count to more than 2^31 bytes', () => {
    const [usage] = twoPools().usages;
    const buffer = new Uint8Array(64 * MiB);
    for (let i = 0; i < 100; i++) usage.add(Usage.all, buffer);
    expect(usage.total(Usage.all)).toBe(6400 * MiB);
    for (let i = 0; i < 100; i++) usage.subtract(Usage.all, buffer);
    expect(usage.total(Usage.all)).toBe(0);
  });
});
