import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { HostFile } from '../../src/device/block-device.ts';
import { GrowableMemoryDevice } from '../../src/device/memory.ts';
import { Qcow2Error } from '../../src/errors.ts';
import { BitmapEntryField, BitmapFlag } from '../../src/format/qcow2/bitmap-directory.ts';
import { checkImage } from '../../src/operations/check.ts';
import type { DirtyRange } from '../../src/qcow2/bitmaps.ts';
import { Qcow2Image, readHeader } from '../../src/qcow2/image.ts';
import { CrashStates } from '../support/crash-states.ts';
import { FaultFile, FaultPlan } from '../support/fault-file.ts';
import type { FaultKind, FaultTarget } from '../support/fault-file.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo, tryRun } from '../support/qemu.ts';
import { Random } from '../support/random.ts';
import { RecordingFile } from '../support/recording-file.ts';
import type { LoggedOperation } from '../support/recording-file.ts';
import { temporaryDirectory } from '../support/temp.ts';

const KiB = 1024;
const DISK_BYTES = 640 * KiB;
const SEED = Number(process.env.QCOW2_CRASH_SEED ?? Date.now() % 1_000_000);
/** Torn states that are tried at each operation of a log. */
const TORN = 3;

const LAYOUTS = [
  'cluster_size=512,refcount_bits=1',
  'cluster_size=4k,refcount_bits=64',
  'cluster_size=2k,lazy_refcounts=on',
];

/** An image with a bitmap of small and one of large grains, and one that records nothing. */
function makeImage(layout: string): Uint8Array {
  const path = join(temporaryDirectory(), 'image.qcow2');
  qemuImg('create', '-q', '-f', 'qcow2', '-o', layout, path, `${DISK_BYTES}`);
  qemuImg('bitmap', '--add', '-g', '512', path, 'fine');
  qemuImg('bitmap', '--add', '-g', '4k', path, 'coarse');
  qemuImg('bitmap', '--add', '-g', '4k', '--disable', path, 'still');
  qemuIo(path, ['write -q -P 1 10k 70k', 'write -q -P 2 600k 1k']);
  return readFileSync(path);
}

function open(file: HostFile, writable = true): Qcow2Image {
  return new Qcow2Image({ path: 'image', file, header: readHeader(file), writable });
}

function openBytes(bytes: Uint8Array): Qcow2Image {
  return open(new GrowableMemoryDevice(bytes), false);
}

/** What an image says of a bitmap. */
interface BitmapState {
  isEnabled: boolean;
  granularity: number;
  dirty: DirtyRange[] | 'lost';
}

function stateOf(image: Qcow2Image): Record<string, BitmapState> {
  const states = image.bitmaps.map(({ name, granularity, isEnabled, isInconsistent }) => {
    const dirty = isInconsistent ? ('lost' as const) : [...image.dirtyRanges(name)];
    return [name, { isEnabled, granularity, dirty }] as const;
  });
  return Object.fromEntries(states);
}

function contentOf(image: Qcow2Image): Buffer {
  const content = Buffer.alloc(image.size);
  image.read(content, 0);
  return content;
}

/** A byte for each sector of the disk; 1 for those in the ranges. */
function sectorsOf(ranges: Iterable<DirtyRange>): Uint8Array {
  const sectors = new Uint8Array(DISK_BYTES / 512);
  for (const { offset, length } of ranges) sectors.fill(1, offset / 512, (offset + length) / 512);
  return sectors;
}

/**
 * Nothing may be wrong but for clusters that are counted and not used. Of an image that says so, the
 * counts may be anything.
 */
function expectValid(image: Qcow2Image): void {
  if (image.header.isDirty) return;
  const { corruptions = 0, 'check-errors': errors } = checkImage(image);
  expect({ corruptions, errors }).toEqual({ corruptions: 0, errors: 0 });
}

/** Expects qemu-img to find nothing wrong, not even a leak. */
function expectClean(bytes: Uint8Array): void {
  const path = join(temporaryDirectory(), 'closed.qcow2');
  writeFileSync(path, bytes);
  const { exitCode, stdout, stderr } = tryRun('qemu-img', ['check', '-f', 'qcow2', path]);
  expect(exitCode, stdout + stderr).toBe(0);
}

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

/** Overwrites a field of the first bitmap's directory entry. */
function patchEntry(bytes: Uint8Array, change: (entry: DataView) => void): Uint8Array {
  const copy = Uint8Array.from(bytes);
  const { directoryOffset } = readHeader(new GrowableMemoryDevice(bytes)).extensions.bitmaps!;
  change(new DataView(copy.buffer, directoryOffset));
  return copy;
}

describePeers(['qemu-img', 'qemu-io'], 'bitmaps that are not sound', () => {
  function openDamaged(damage: (bytes: Uint8Array, tableOffset: number) => void) {
    const bytes = Uint8Array.from(makeImage('cluster_size=512'));
    const table = openBytes(bytes).bitmaps[0]!.tableOffset;
    damage(bytes, table);
    const file = new GrowableMemoryDevice(bytes);
    return { file, image: open(file) };
  }

  it('are removed without giving up clusters that a damaged table names', () => {
    // Reserved bits, and the cluster of the L1 table.
    for (const entry of [0xff00_0000_0000_0000n, 'L1' as const]) {
      const { file, image } = openDamaged((bytes, table) => {
        const l1 = BigInt(readHeader(new GrowableMemoryDevice(bytes)).l1TableOffset);
        new DataView(bytes.buffer).setBigUint64(table, entry === 'L1' ? l1 : entry);
      });
      const content = contentOf(image);
      image.removeBitmap('fine');
      image.write(new Uint8Array(100 * KiB).fill(3), 500 * KiB);
      image.close();
      const closed = openBytes(file.bytes);
      expect(closed.bitmaps.map(({ name }) => name)).toEqual(['coarse', 'still']);
      expect(
        contentOf(closed)
          .subarray(0, 500 * KiB)
          .equals(content.subarray(0, 500 * KiB)),
      ).toBe(true);
      expectValid(closed);
    }
  });

  it('are not merged, and the image is not taken for corrupt because of them', () => {
    const { image } = openDamaged((bytes, table) => {
      bytes[table] = 0xff;
    });
    for (const merge of [
      () => image.mergeBitmap('still', 'fine'),
      () => image.mergeBitmap('fine', 'coarse'),
    ]) {
      expect(merge).toThrow(/image: table of bitmap 'fine' .*reserved bits/);
    }
    expect(image.header.isCorrupt).toBe(false);
    image.clearBitmap('fine');
    image.mergeBitmap('fine', 'coarse');
    expect([...image.dirtyRanges('fine')]).toEqual([...image.dirtyRanges('coarse')]);
    image.close();
  });

  it('can only be removed when they are in use, or do not fit the disk', () => {
    const initial = makeImage('cluster_size=512');
    const inUse = patchEntry(initial, (entry) => {
      entry.setUint32(BitmapEntryField.FLAGS, BitmapFlag.IN_USE | BitmapFlag.AUTO);
    });
    const tooLong = patchEntry(initial, (entry) => {
      entry.setUint32(BitmapEntryField.TABLE_SIZE, 2);
    });
    for (const bytes of [inUse, tooLong]) {
      const file = new GrowableMemoryDevice(bytes);
      const image = open(file);
      for (const change of [
        () => image.clearBitmap('fine'),
        () => image.enableBitmap('fine'),
        () => image.disableBitmap('fine'),
        () => image.mergeBitmap('fine', 'coarse'),
      ]) {
        expect(change).toThrow(/can only be removed/);
      }
      expect(Buffer.from(file.bytes).equals(bytes)).toBe(true);
      image.removeBitmap('fine');
      expect(image.bitmaps.map(({ name }) => name)).toEqual(['coarse', 'still']);
      image.close();
    }
  });
});

describePeers(['qemu-img', 'qemu-io'], 'the calls for bitmaps', () => {
  function thrownBy(action: () => void): string | undefined {
    try {
      action();
    } catch (error) {
      if (error instanceof Qcow2Error) return error.code;
      throw error;
    }
    return undefined;
  }

  it('refuse what cannot be, with the file as it was', () => {
    const initial = makeImage('cluster_size=4k');
    const file = new GrowableMemoryDevice(initial);
    const image = open(file);
    const refused: [code: string, action: () => void][] = [
      ['INVALID_OPTION', () => image.addBitmap('fine')],
      ['INVALID_OPTION', () => image.addBitmap('')],
      ['INVALID_OPTION', () => image.addBitmap('é'.repeat(512))],
      ['INVALID_OPTION', () => image.addBitmap('a\0b')],
      ['INVALID_OPTION', () => image.addBitmap('a', { granularity: 256 })],
      ['INVALID_OPTION', () => image.addBitmap('a', { granularity: 2 ** 32 })],
      ['INVALID_OPTION', () => image.addBitmap('a', { granularity: 768 })],
      ['INVALID_OPTION', () => image.addBitmap('a', { granularity: NaN })],
      ['NOT_FOUND', () => image.removeBitmap('odd')],
      ['NOT_FOUND', () => image.clearBitmap('odd')],
      ['NOT_FOUND', () => image.mergeBitmap('odd', 'fine')],
      ['NOT_FOUND', () => image.mergeBitmap('fine', 'odd')],
      ['OUT_OF_RANGE', () => image.markInBitmap('fine', [{ offset: DISK_BYTES, length: 1 }])],
      ['OUT_OF_RANGE', () => image.markInBitmap('fine', [{ offset: -1, length: 1 }])],
    ];
    for (const [code, action] of refused) expect(thrownBy(action), action.toString()).toBe(code);
    const reader = openBytes(initial);
    expect(thrownBy(() => reader.addBitmap('a'))).toBe('READ_ONLY');
    expect(stateOf(image)).toEqual(stateOf(reader));
    image.close();
    expect(Buffer.from(file.bytes).equals(initial)).toBe(true);
  });

  it('do nothing where there is nothing to do', () => {
    const initial = makeImage('cluster_size=4k');
    const file = new GrowableMemoryDevice(initial);
    const image = open(file);
    image.enableBitmap('fine');
    image.disableBitmap('still');
    image.clearBitmap('still');
    image.mergeBitmap('fine', 'fine');
    image.markInBitmap('fine', []);
    image.addBitmaps([]);
    image.close();
    expect(Buffer.from(file.bytes).equals(initial)).toBe(true);
  });

  it('keep what was written before them, and record what is written after', () => {
    const file = new GrowableMemoryDevice(makeImage('cluster_size=4k'));
    const image = open(file);
    const sector = new Uint8Array(512).fill(6);
    image.addBitmap('first', { granularity: 512 });
    image.write(sector, 300 * KiB);
    image.addBitmap('second', { granularity: 512 });
    image.write(sector, 350 * KiB);
    image.disableBitmap('first');
    image.clearBitmap('fine');
    image.write(sector, 400 * KiB);
    image.createSnapshot('with bitmaps');
    image.markInBitmap('still', [
      { offset: 0, length: 1 },
      { offset: DISK_BYTES - 1, length: 1 },
    ]);
    image.close();
    const closed = openBytes(file.bytes);
    const at = (...offsets: number[]) =>
      offsets.map((offset) => ({ offset: offset * KiB, length: 512 }));
    expect([...closed.dirtyRanges('first')]).toEqual(at(300, 350));
    expect([...closed.dirtyRanges('second')]).toEqual(at(350, 400));
    expect([...closed.dirtyRanges('fine')]).toEqual(at(400));
    expect([...closed.dirtyRanges('still')]).toEqual([
      { offset: 0, length: 4 * KiB },
      { offset: DISK_BYTES - 4 * KiB, length: 4 * KiB },
    ]);
    expectClean(file.bytes);
  });

  it('remove the last bitmap with all that tells of bitmaps', () => {
    const file = new GrowableMemoryDevice(makeImage('cluster_size=4k'));
    const image = open(file);
    for (const { name } of image.bitmaps) image.removeBitmap(name);
    expect(image.bitmaps).toEqual([]);
    image.close();
    const { extensions, autoclearFeatures } = readHeader(file);
    expect([extensions.bitmaps, autoclearFeatures]).toEqual([undefined, 0n]);
    expectClean(file.bytes);
  });
});

describe('bitmaps of corpus images', () => {
  it('all of whose bits are set take no clusters, and can be merged into and cleared', () => {
    const file = new GrowableMemoryDevice(readFileSync('images/features/bitmap-all-ones.qcow2'));
    const image = open(file);
    const [{ name, granularity } = { name: '', granularity: 0 }] = image.bitmaps;
    const all = [{ offset: 0, length: image.size }];
    expect([...image.dirtyRanges(name)]).toEqual(all);
    image.addBitmap('copy', { granularity });
    image.mergeBitmap('copy', name);
    image.mergeBitmap(name, 'copy');
    expect([...image.dirtyRanges('copy')]).toEqual(all);
    image.clearBitmap(name);
    expect([...image.dirtyRanges(name)]).toEqual([]);
    image.close();
    expectValid(openBytes(file.bytes));
  });
});
