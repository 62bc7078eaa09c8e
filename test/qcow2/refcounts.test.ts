import fc from 'fast-check';
import { expect, it } from 'vitest';
import { maxRefcount, refcountAt, setRefcountAt } from '../../src/qcow2/refcounts.ts';

it('refcounts of any width are read as they were set, and leave their neighbours alone', () => {
  const changes = fc.integer({ min: 0, max: 6 }).chain((order) =>
    fc.record({
      order: fc.constant(order),
      sets: fc.array(fc.tuple(fc.nat({ max: 63 }), fc.nat({ max: maxRefcount(order) })), {
        minLength: 1,
        maxLength: 100,
      }),
    }),
  );
  fc.assert(
    fc.property(changes, ({ order, sets }) => {
      const block = new Uint8Array(512);
      const expected = new Array<number>(64).fill(0);
      for (const [index, count] of sets) {
        setRefcountAt(block, index, order, count);
        expected[index] = count;
      }
      expect(expected.map((_, index) => refcountAt(block, index, order))).toEqual(expected);
    }),
  );
});

it('counts narrower than a byte start at its lowest bits, wider ones are big-endian', () => {
  const bytesOf = (order: number, counts: number[]): number[] => {
    const block = new Uint8Array(8);
    counts.forEach((count, index) => setRefcountAt(block, index, order, count));
    return [...block];
  };
  expect(bytesOf(0, [1, 0, 1, 1])).toEqual([0b1101, 0, 0, 0, 0, 0, 0, 0]);
  expect(bytesOf(1, [3, 0, 1, 2, 1])).toEqual([0b1001_0011, 1, 0, 0, 0, 0, 0, 0]);
  expect(bytesOf(2, [15, 1, 2])).toEqual([0x1f, 2, 0, 0, 0, 0, 0, 0]);
  expect(bytesOf(4, [0x1234, 1])).toEqual([0x12, 0x34, 0, 1, 0, 0, 0, 0]);
  expect(bytesOf(6, [2 ** 32 + 5])).toEqual([0, 0, 0, 1, 0, 0, 0, 5]);
});

it('a count that does not fit is never stored', () => {
  expect(maxRefcount(0)).toBe(1);
  expect(maxRefcount(4)).toBe(65_535);
  for (let order = 0; order <= 6; order++) {
    const count = maxRefcount(order) + 1;
    expect(() => setRefcountAt(new Uint8Array(8), 0, order, count)).toThrow(/internal error/);
  }
});
