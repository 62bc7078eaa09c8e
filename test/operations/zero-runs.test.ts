import fc from 'fast-check';
import { expect, test } from 'vitest';
import { nonZeroRuns } from '../../src/operations/zero-runs.ts';

const BLOCK = 512;

/** A buffer of blocks, one a character: `.` is zero, anything else has one byte set. */
function bufferOf(layout: string): Uint8Array {
  const buffer = new Uint8Array(layout.length * BLOCK);
  for (const [index, block] of [...layout].entries()) {
    if (block !== '.') buffer[index * BLOCK + ((index * 37) % BLOCK)] = 1;
  }
  return buffer;
}

function runsOf(layout: string, minimumZeroBlocks: number): [number, number][] {
  const options = { blockBytes: BLOCK, offset: 0, minimumZeroBytes: minimumZeroBlocks * BLOCK };
  return [...nonZeroRuns(bufferOf(layout), options)].map(({ start, end }) => [
    start / BLOCK,
    end / BLOCK,
  ]);
}

test.each([
  ['', 1, []],
  ['....', 1, []],
  ['xxxx', 1, [[0, 4]]],
  [
    '..xx..x..',
    1,
    [
      [2, 4],
      [6, 7],
    ],
  ],
  [
    '..xx..x..',
    2,
    [
      [2, 4],
      [6, 7],
    ],
  ],
  ['.xx..x...', 3, [[1, 6]]],
  [
    '.xx..x.',
    2,
    [
      [1, 3],
      [5, 7],
    ],
  ],
  ['..', 3, []],
] as [string, number, number[][]][])('%j with holes of %i blocks', (layout, minimum, runs) => {
  expect(runsOf(layout, minimum)).toEqual(runs);
});

test('what is left out is zero, and between data only holes that are long enough are', () => {
  const chunk = fc.tuple(fc.constantFrom('.', 'x'), fc.integer({ min: 1, max: 300 }));
  const layouts = fc
    .array(chunk, { maxLength: 12 })
    .map((chunks) => chunks.map(([block, count]) => block.repeat(count)).join(''));
  fc.assert(
    fc.property(layouts, fc.integer({ min: 1, max: 200 }), (layout, minimum) => {
      let kept = '';
      for (const [start, end] of runsOf(layout, minimum)) {
        kept = kept.padEnd(start, '-') + 'd'.repeat(end - start);
      }
      kept = kept.padEnd(layout.length, '-');
      const holes = new RegExp(`^\\.+|\\.{${minimum},}`, 'g');
      const expected = layout
        .replaceAll(holes, (hole) => '-'.repeat(hole.length))
        .replaceAll(/[.x]/g, 'd');
      expect(kept).toBe(expected);
    }),
    { numRuns: 200 },
  );
});

test('a buffer that starts within a block', () => {
  const buffer = new Uint8Array(3 * BLOCK);
  buffer[BLOCK] = 1;
  const options = { blockBytes: BLOCK, offset: 10 * BLOCK + 100, minimumZeroBytes: BLOCK };
  const runs = [...nonZeroRuns(buffer, options)];
  expect(runs).toEqual([{ start: BLOCK - 100, end: 2 * BLOCK - 100 }]);
});
