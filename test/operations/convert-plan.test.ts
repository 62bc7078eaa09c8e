import fc from 'fast-check';
import { expect, test } from 'vitest';
import type { Extent } from '../../src/device/block-device.ts';
import { NullDevice } from '../../src/device/memory.ts';
import { Qcow2Error } from '../../src/errors.ts';
import { cutRuns, planConversion } from '../../src/operations/convert-plan.ts';
import type { PlanOptions } from '../../src/operations/convert-plan.ts';

const kinds = {
  data: { kind: 'data', zero: false, present: true, depth: 0 },
  zero: { kind: 'zero', zero: true, present: true, depth: 0 },
  hole: { kind: 'hole', zero: true, present: false, depth: 0 },
  below: { kind: 'data', zero: false, present: true, depth: 1 },
  nowhere: { kind: 'hole', zero: true, present: false, depth: 1 },
} as const;

type Layout = readonly (readonly [kind: keyof typeof kinds, length: number])[];

/** A device that says that it is laid out so. */
function deviceOf(layout: Layout): NullDevice {
  const device = new NullDevice(layout.reduce((sum, [, length]) => sum + length, 0));
  const extents: Extent[] = [];
  let offset = 0;
  for (const [kind, length] of layout) {
    extents.push({ ...kinds[kind], offset, length });
    offset += length;
  }
  device.extents = function* () {
    yield* extents;
  };
  return device;
}

function plan(layout: Layout, options: PlanOptions = {}) {
  return [...planConversion(deviceOf(layout), options)].map(
    ({ kind, start, end }) => `${kind} ${start}-${end}`,
  );
}

test('what is known to be zero is not read', () => {
  const layout: Layout = [
    ['data', 10],
    ['zero', 5],
    ['hole', 5],
    ['below', 10],
  ];
  expect(plan(layout)).toEqual(['data 0-10', 'zero 10-20', 'data 20-30']);
  expect(plan(layout, { zeroIsData: true })).toEqual(['data 0-30']);
});

test('what the top layer does not hold is left to the backing file', () => {
  const layout: Layout = [
    ['below', 10],
    ['data', 10],
    ['hole', 10],
    ['zero', 20],
  ];
  expect(plan(layout, { backingSize: 40 })).toEqual([
    'backing 0-10',
    'data 10-20',
    // Nothing is behind the source there.
    'zero 20-40',
    'backing 40-50',
  ]);
});

test('past the end of its backing file, what the top layer does not hold are zeroes', () => {
  const layout: Layout = [
    ['below', 10],
    ['data', 10],
    ['nowhere', 10],
  ];
  expect(plan(layout, { backingSize: 30, sourceBackingSize: 25 })).toEqual([
    'backing 0-10',
    'data 10-20',
    'backing 20-25',
    'zero 25-30',
  ]);
});

test('with an alignment, what is mixed is data', () => {
  const layout: Layout = [
    ['zero', 12],
    ['data', 2],
    ['zero', 4],
    ['hole', 3],
    ['data', 1],
    ['zero', 11],
  ];
  expect(plan(layout, { alignment: 8 })).toEqual(['zero 0-8', 'data 8-24', 'zero 24-33']);
});

test('random layouts are covered whole, and aligned', () => {
  const run = fc.tuple(
    fc.constantFrom('data', 'zero', 'hole', 'below'),
    fc.integer({ min: 1, max: 40 }),
  );
  fc.assert(
    fc.property(
      fc.array(run),
      fc.constantFrom(1, 8, 16),
      fc.boolean(),
      (layout, alignment, hasBacking) => {
        const device = deviceOf(layout);
        const options = { alignment, backingSize: hasBacking ? 60 : undefined };
        const expected = new Map<number, string>();
        for (const { kind, start, end } of planConversion(deviceOf(layout), {
          ...options,
          alignment: 1,
        })) {
          for (let at = start; at < end; at++) expected.set(at, kind);
        }
        let next = 0;
        for (const { kind, start, end } of cutRuns(planConversion(device, options), 32)) {
          expect(start).toBe(next);
          expect(start % alignment).toBe(0);
          expect(end % alignment === 0 || end === device.size).toBe(true);
          if (kind === 'data') expect(Math.floor(start / 32)).toBe(Math.floor((end - 1) / 32));
          else for (let at = start; at < end; at++) expect(expected.get(at)).toBe(kind);
          next = end;
        }
        expect(next).toBe(device.size);
      },
    ),
  );
});

test('damaged tables end the plan, unless it salvages', () => {
  const MiB = 1024 * 1024;
  const device = new NullDevice(5 * MiB);
  device.extents = function* (offset) {
    if (offset < MiB) yield { ...kinds.zero, offset, length: MiB - offset };
    if (offset < 4 * MiB) throw new Qcow2Error('CORRUPT', 'it is broken');
    yield { ...kinds.zero, offset, length: 5 * MiB - offset };
  };
  expect(() => [...planConversion(device)]).toThrow('it is broken');
  expect([...planConversion(device, { salvage: true })]).toEqual([
    { kind: 'zero', start: 0, end: MiB },
    { kind: 'data', start: MiB, end: 4 * MiB },
    { kind: 'zero', start: 4 * MiB, end: 5 * MiB },
  ]);
});
