import { describe, expect, it } from 'vitest';
import { InodeNumbers } from '../../../src/export/fuse/inode-numbers.ts';

describe('inode numbers', () => {
  const numbers = new InodeNumbers();
  /** The number of a node by the places on the way to it. */
  const at = (...places: number[]): number =>
    places.reduce((inode, place) => numbers.child(inode, place), 1);

  it('tell the way to a node', () => {
    for (const places of [
      [0],
      [253],
      [2, 0],
      [2, 131_070],
      [3, 65_535, 1],
      [3, 70_000, 254, 131_070],
    ]) {
      const inode = at(...places);
      expect(inode).toBeGreaterThan(1);
      expect(Number.isSafeInteger(inode)).toBe(true);
      expect(numbers.indexes(inode)).toEqual(places);
    }
  });

  it('are different for different nodes', () => {
    const seen = new Set<number>();
    const places = [0, 1, 2, 100, 253];
    for (const a of places) {
      seen.add(at(a));
      for (const b of places) {
        seen.add(at(a, b));
        for (const c of places) {
          seen.add(at(a, b, c));
          for (const d of places) seen.add(at(a, b, c, d));
        }
      }
    }
    expect(seen.size).toBe(5 + 25 + 125 + 625);
    expect(seen.has(1)).toBe(false);
  });

  it('are there for what is too deep or has too many neighbours, and lead nowhere', () => {
    const others = [at(254), at(0, 131_071), at(0, 0, 255), at(0, 0, 0, 0, 0), at(254, 1)];
    expect(new Set(others).size).toBe(others.length);
    for (const inode of others) expect(numbers.indexes(inode)).toEqual([]);
    expect(numbers.indexes(1)).toEqual([]);
  });
});
