import { randomBytes } from 'node:crypto';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { ReadOnlyDevice } from '../../src/device/block-device.ts';
import type { Extent } from '../../src/device/block-device.ts';
import { FileDevice } from '../../src/device/file.ts';
import { MemoryDevice, NullDevice } from '../../src/device/memory.ts';
import { Qcow2Error } from '../../src/errors.ts';
import { CompareError, compareDevices, compareSteps } from '../../src/operations/compare.ts';
import type { CompareResult } from '../../src/operations/compare.ts';
import { makeRaw, MiB, run } from './scratch.ts';
import type { Piece } from './scratch.ts';
import { describePeers } from '../support/peers.ts';

/** Compares two raw files, as this does and as qemu-img does. */
function both(first: string, second: string, strict = false) {
  using a = new FileDevice(first);
  using b = new FileDevice(second);
  const ours = compareDevices(a, b, { strict });
  const flags = strict ? ['-s'] : [];
  const { stdout } = run('qemu-img', [
    'compare',
    ...flags,
    '-f',
    'raw',
    '-F',
    'raw',
    first,
    second,
  ]);
  return { ours: tell(ours), theirs: stdout };
}

function tell(result: CompareResult): string {
  const warning = 'Warning: Image size mismatch!\n';
  if (result.identical) return `${result.sizesDiffer ? warning : ''}Images are identical.\n`;
  const { kind, offset, isPastShorter } = result;
  if (kind === 'size') return 'Strict mode: Image size mismatch!\n';
  if (kind === 'allocation') return `Strict mode: Offset ${offset} block status mismatch!\n`;
  return `${isPastShorter ? warning : ''}Content mismatch at offset ${offset}!\n`;
}

const noise = randomBytes(64 * 1024);
const zeroes = Buffer.alloc(64 * 1024);
const one = Buffer.from([1]);

describePeers(['qemu-img'], 'as qemu-img does', () => {
  const cases: [name: string, a: [number, Piece[]], b: [number, Piece[]], verdict: string][] = [
    ['empty', [0, []], [0, []], 'Images are identical.\n'],
    ['holes', [MiB, []], [MiB, []], 'Images are identical.\n'],
    ['stored zeroes', [MiB, [[0, zeroes]]], [MiB, []], 'Images are identical.\n'],
    ['same data', [MiB, [[4096, noise]]], [MiB, [[4096, noise]]], 'Images are identical.\n'],
    [
      'last byte',
      [4 * MiB, []],
      [4 * MiB, [[4 * MiB - 1, one]]],
      'Content mismatch at offset 4193792!\n',
    ],
    [
      'data against a hole',
      [MiB, [[8192, noise]]],
      [MiB, []],
      'Content mismatch at offset 8192!\n',
    ],
    [
      'one byte in data',
      [
        MiB,
        [
          [0, noise],
          [1000, one],
        ],
      ],
      [
        MiB,
        [
          [0, noise],
          [1000, Buffer.from([2])],
        ],
      ],
      'Content mismatch at offset 512!\n',
    ],
    [
      'longer with zeroes',
      [MiB, [[0, noise]]],
      [
        2 * MiB,
        [
          [0, noise],
          [MiB, zeroes],
        ],
      ],
      'Warning: Image size mismatch!\nImages are identical.\n',
    ],
    [
      'longer with data',
      [MiB, []],
      [2 * MiB, [[1500000, one]]],
      'Warning: Image size mismatch!\nContent mismatch at offset 1499648!\n',
    ],
    [
      'different and longer',
      [MiB, [[5000, one]]],
      [2 * MiB, [[1500000, one]]],
      'Content mismatch at offset 4608!\n',
    ],
    ['sizes in one sector', [1000, [[0, one]]], [1024, [[0, one]]], 'Images are identical.\n'],
    [
      'a byte in the last sector',
      [1000, []],
      [1024, [[1020, one]]],
      'Content mismatch at offset 512!\n',
    ],
    [
      'sizes of two sectors',
      [512, []],
      [513, []],
      'Warning: Image size mismatch!\nImages are identical.\n',
    ],
  ];
  test.each(cases)('%s', (_name, [sizeA, piecesA], [sizeB, piecesB], verdict) => {
    const a = makeRaw('a.raw', sizeA, piecesA);
    const b = makeRaw('b.raw', sizeB, piecesB);
    for (const [first, second] of [
      [a, b],
      [b, a],
    ] as const) {
      const { ours, theirs } = both(first, second);
      expect(ours).toBe(theirs);
      expect(ours).toBe(verdict);
    }
    const strict = both(a, b, true);
    expect(strict.ours).toBe(strict.theirs);
  });

  test('random layouts', () => {
    const piece = fc.tuple(
      fc.nat(3 * MiB - noise.length),
      fc.constantFrom(noise, zeroes, one, noise.subarray(0, 5000)),
    );
    const pieces = fc.array(piece, { maxLength: 4 });
    const sizes = fc.constantFrom(3 * MiB, 3 * MiB + 512, 4 * MiB, 3 * MiB + 100);
    fc.assert(
      fc.property(
        pieces,
        pieces,
        sizes,
        sizes,
        fc.boolean(),
        (common, extra, sizeA, sizeB, strict) => {
          const a = makeRaw('a.raw', sizeA, common);
          const b = makeRaw('b.raw', sizeB, [...common, ...extra]);
          const { ours, theirs } = both(a, b, strict);
          expect(ours).toBe(theirs);
        },
      ),
      { numRuns: 60 },
    );
  });
});

test('what both know to be zero is not read', () => {
  const size = 2 ** 50;
  expect(compareDevices(new NullDevice(size), new NullDevice(size))).toEqual({
    identical: true,
    sizesDiffer: false,
  });
});

test('a longer disk of zeroes is identical, and of another size in strict comparisons', () => {
  const [short, long] = [new NullDevice(MiB), new NullDevice(2 * MiB)];
  expect(compareDevices(short, long)).toEqual({ identical: true, sizesDiffer: true });
  expect(compareDevices(long, short, { strict: true })).toEqual({
    identical: false,
    kind: 'size',
    offset: MiB,
    isPastShorter: true,
  });
});

test('progress goes up to the whole', () => {
  const [a, b] = [new MemoryDevice(new Uint8Array(9 * MiB)), new NullDevice(11 * MiB)];
  const seen = [...compareSteps(a, b)];
  expect(seen.map(({ done }) => done / MiB)).toEqual([2, 4, 6, 8, 9, 11]);
  expect(new Set(seen.map(({ total }) => total))).toEqual(new Set([11 * MiB]));
});

class BrokenDevice extends ReadOnlyDevice {
  readonly size = MiB;
  readonly #phase: 'read' | 'extents';

  constructor(phase: 'read' | 'extents') {
    super();
    this.#phase = phase;
  }

  override read(): void {
    throw new Qcow2Error('CORRUPT', 'it is broken', { structure: 'L2 entry 3', offset: 4096 });
  }

  override *extents(offset: number, length: number): Generator<Extent> {
    if (this.#phase === 'extents') this.read();
    yield { offset, length, kind: 'data', zero: false, present: true, depth: 0 };
  }

  override close(): void {
    // Holds nothing.
  }
}

test.each(['read', 'extents'] as const)('an error says that it is one of %s', (phase) => {
  const compare = () => compareDevices(new NullDevice(MiB), new BrokenDevice(phase));
  expect(compare).toThrow(CompareError);
  expect(compare).toThrow('L2 entry 3 (at offset 4096): it is broken');
  expect(compare).toThrow(expect.objectContaining({ code: 'CORRUPT', phase, side: 'second' }));
});
