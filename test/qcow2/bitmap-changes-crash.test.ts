/** Power cuts and failing disks while bitmaps are changed. */

import { expect, it } from 'vitest';
import { GrowableMemoryDevice } from '../../src/device/memory.ts';
import { readHeader } from '../../src/qcow2/image.ts';
import type { Qcow2Image } from '../../src/qcow2/image.ts';
import { CrashStates } from '../support/crash-states.ts';
import { FaultFile, FaultPlan } from '../support/fault-file.ts';
import type { FaultKind, FaultTarget } from '../support/fault-file.ts';
import { describePeers } from '../support/peers.ts';
import { Random } from '../support/random.ts';
import { RecordingFile } from '../support/recording-file.ts';
import type { LoggedOperation } from '../support/recording-file.ts';
import {
  contentOf,
  expectClean,
  expectValid,
  KiB,
  makeImage,
  open,
  openBytes,
  sectorsOf,
  stateOf,
} from './bitmap-images.ts';
import type { BitmapState } from './bitmap-images.ts';

const SEED = Number(process.env.QCOW2_CRASH_SEED ?? Date.now() % 1_000_000);
/** Torn states that are tried at each operation of a log. */
const TORN = 3;

const LAYOUTS = [
  'cluster_size=512,refcount_bits=1',
  'cluster_size=4k,refcount_bits=64',
  'cluster_size=2k,lazy_refcounts=on',
];

/** Calls `judge` with what power cuts at every operation of a log may leave. */
function eachCrash(
  { log, initial }: { log: LoggedOperation[]; initial: Uint8Array },
  judge: (image: Qcow2Image) => void,
): void {
  const random = new Random(SEED);
  const states = new CrashStates(log, [initial]);
  for (let position = 0; position <= log.length; position++) {
    states.advanceTo(position);
    judge(openBytes(states.complete()[0]!));
    for (let round = 0; round < TORN; round++) judge(openBytes(states.torn(random)[0]!));
  }
}

const CHANGES: Record<string, (image: Qcow2Image) => void> = {
  add: (image) => image.addBitmap('new'),
  'add several that mark something': (image) => {
    const dirty = [
      { offset: 0, length: 512 },
      { offset: 100 * KiB, length: 400 * KiB },
    ];
    const options = { granularity: 512, isEnabled: false };
    image.addBitmaps(['a', 'b'].map((name) => ({ name, ...options, dirty })));
  },
  remove: (image) => image.removeBitmap('fine'),
  clear: (image) => image.clearBitmap('fine'),
  enable: (image) => image.enableBitmap('still'),
  disable: (image) => image.disableBitmap('fine'),
  merge: (image) => image.mergeBitmap('fine', 'coarse'),
  'merge into an empty one': (image) => image.mergeBitmap('still', 'fine'),
};

describePeers(['qemu-img', 'qemu-io'], 'changes of bitmaps', () => {
  it.each(LAYOUTS.map((layout) => [layout]))(
    `a power cut leaves what was or what is to be, from seed ${SEED}: %s`,
    (layout) => {
      const initial = makeImage(layout);
      const before = stateOf(openBytes(initial));
      const content = contentOf(openBytes(initial));
      for (const [name, change] of Object.entries(CHANGES)) {
        const log: LoggedOperation[] = [];
        const file = new RecordingFile(initial, log);
        const image = open(file);
        change(image);
        const after = stateOf(image);
        image.close();
        expect(after, name).not.toEqual(before);
        expectClean(file.bytes);
        const seen = new Set<string>();
        eachCrash({ log, initial }, (crashed) => {
          const state = stateOf(crashed);
          expect([before, after], name).toContainEqual(state);
          seen.add(JSON.stringify(state));
          expectValid(crashed);
          expect(contentOf(crashed).equals(content)).toBe(true);
        });
        expect(seen.size, name).toBe(2);
      }
    },
    60_000,
  );

  it.each(LAYOUTS.map((layout) => [layout]))(
    `no bitmap ever says less than is true, from seed ${SEED}: %s`,
    (layout) => {
      const initial = makeImage(layout);
      const content = contentOf(openBytes(initial));
      const wasMarked = sectorsOf(openBytes(initial).dirtyRanges('fine'));
      const log: LoggedOperation[] = [];
      const image = open(new RecordingFile(initial, log));
      image.write(new Uint8Array(5000).fill(7), 300 * KiB);
      image.flush();
      image.mergeBitmap('still', 'fine');
      image.write(new Uint8Array(600).fill(8), 200 * KiB);
      image.disableBitmap('coarse');
      image.clearBitmap('coarse');
      image.write(new Uint8Array(3000).fill(9), 12 * KiB + 100);
      image.removeBitmap('coarse');
      image.addBitmap('fresh');
      image.write(new Uint8Array(1).fill(9), 500 * KiB);
      image.close();
      let usable = 0;
      eachCrash({ log, initial }, (crashed) => {
        expectValid(crashed);
        const { dirty } = stateOf(crashed).fine!;
        if (dirty === 'lost') return;
        usable++;
        const marked = sectorsOf(dirty);
        const now = contentOf(crashed);
        const missed = [...marked.keys()].filter((sector) => {
          if (marked[sector] === 1) return false;
          const range = [sector * 512, (sector + 1) * 512] as const;
          return wasMarked[sector] === 1 || now.compare(content, ...range, ...range) !== 0;
        });
        expect(missed).toEqual([]);
      });
      expect(usable).toBeGreaterThan(10);
    },
    60_000,
  );

  const faults: [FaultTarget, FaultKind][] = [
    ['change', 'ENOSPC'],
    ['change', 'short'],
    ['change', 'full'],
    ['read', 'EIO'],
  ];
  it.each(faults)('a %s that fails with %s leaves either, and all goes on', (target, kind) => {
    const initial = makeImage('cluster_size=4k');
    const before = stateOf(openBytes(initial));
    for (const [name, change] of Object.entries(CHANGES)) {
      const counted = new FaultPlan();
      const untroubled = open(new FaultFile(new GrowableMemoryDevice(initial), counted));
      const first = counted.counts[target];
      change(untroubled);
      const end = counted.counts[target];
      expect(end).toBeGreaterThan(first + 2);
      const after = stateOf(untroubled);
      for (let index = first; index < end; index++) {
        const plan = new FaultPlan({ target, index, kind });
        const inner = new GrowableMemoryDevice(initial);
        runWithFault(new FaultFile(inner, plan), plan, { change, before, after });
        // Those that do not make the file longer succeed though it is full.
        if (kind !== 'full') expect(plan.failures).toBe(1);
        const closed = openBytes(inner.bytes);
        expectValid(closed);
        const state = stateOf(closed);
        const where = `${name}, ${target} ${index}: ${plan.failed}`;
        expect(Object.keys(state), where).toEqual(Object.keys(after));
        for (const [bitmap, { isEnabled, dirty }] of Object.entries(state)) {
          expect(isEnabled, where).toBe(after[bitmap]!.isEnabled);
          const isMarked = dirty !== 'lost' && dirty.some(({ offset }) => offset === 560 * KiB);
          expect(isMarked, `${where}: ${bitmap}`).toBe(isEnabled);
        }
      }
    }
  });

  it('a directory in the place of a stale one is in use, though the last flush fails', () => {
    const initial = Uint8Array.from(makeImage('cluster_size=4k'));
    // Somebody who knows no bitmaps has written to it, and they are not valid any more.
    const view = new DataView(initial.buffer);
    view.setBigUint64(88, 0n);
    const add = (image: Qcow2Image): void => image.addBitmap('new', { granularity: 512 });
    const counted = new FaultPlan();
    const first = new GrowableMemoryDevice(initial);
    add(open(new FaultFile(first, counted)));
    const { directoryOffset } = readHeader(first).extensions.bitmaps!;
    // The stale one was where the next one will be.
    const extension = Buffer.from(initial.buffer).indexOf('23852875', 0, 'hex');
    view.setBigUint64(extension + 24, BigInt(directoryOffset));
    let added = 0;
    const places = new Set<number | undefined>();
    for (let index = 0; index < counted.counts.change; index++) {
      const plan = new FaultPlan({ target: 'change', index, kind: 'EIO' });
      const inner = new GrowableMemoryDevice(initial);
      const image = open(new FaultFile(inner, plan));
      expect(() => add(image)).toThrow();
      image.write(new Uint8Array(200 * KiB).fill(5), 100 * KiB);
      image.close();
      const closed = openBytes(inner.bytes);
      expectValid(closed);
      if (!closed.header.areBitmapsValid) continue;
      added++;
      places.add(closed.header.extensions.bitmaps?.directoryOffset);
      expect(closed.bitmaps.map(({ name }) => name)).toEqual(['new']);
    }
    expect(added).toBeGreaterThan(0);
    expect(places).toEqual(new Set([directoryOffset]));
  });
});

interface FaultyChange {
  change: (image: Qcow2Image) => void;
  before: Record<string, BitmapState>;
  after: Record<string, BitmapState>;
}

/** Makes a change during which something fails, and goes on. */
function runWithFault(
  file: FaultFile,
  plan: FaultPlan,
  { change, before, after }: FaultyChange,
): void {
  const image = open(file);
  let error: unknown;
  try {
    change(image);
  } catch (thrown) {
    error = thrown;
  }
  plan.makeRoom();
  const state = stateOf(image);
  expect(image.header.isCorrupt).toBe(false);
  if (error !== undefined) {
    expect(error).toMatchObject({ code: 'HOST' });
    expect([before, after]).toContainEqual(state);
    if (JSON.stringify(state) === JSON.stringify(before)) change(image);
  }
  expect(stateOf(image)).toEqual(after);
  image.write(new Uint8Array(100).fill(5), 560 * KiB);
  image.close();
}
