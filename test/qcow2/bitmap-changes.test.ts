import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import type { HostFile } from '../../src/device/block-device.ts';
import { GrowableMemoryDevice } from '../../src/device/memory.ts';
import { Qcow2Error } from '../../src/errors.ts';
import { BitmapEntryField, BitmapFlag } from '../../src/format/qcow2/bitmap-directory.ts';
import type { DirtyRange } from '../../src/qcow2/bitmaps.ts';
import { readHeader } from '../../src/qcow2/image.ts';
import { describePeers } from '../support/peers.ts';
import { Random } from '../support/random.ts';
import {
  contentOf,
  DISK_BYTES,
  expectClean,
  expectValid,
  KiB,
  makeImage,
  open,
  openBytes,
  sectorsOf,
  stateOf,
} from './bitmap-images.ts';

const SEED = Number(process.env.QCOW2_BITMAP_SEED ?? Date.now() % 1_000_000);

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

  it('merge bitmaps of images with other clusters, and of other granularities', () => {
    const random = new Random(SEED);
    const images = ['cluster_size=512', 'cluster_size=2k', 'cluster_size=64k'].map((layout) =>
      open(new GrowableMemoryDevice(makeImage(layout, 16 * 1024 * KiB - 512))),
    );
    for (const image of images) {
      for (const granularity of [512, 1024, 65_536]) {
        image.addBitmap(`${granularity}`, { granularity, isEnabled: false });
        const dirty: DirtyRange[] = [];
        for (let offset = random.below(200_000); offset < image.size - 300_000;) {
          const length = 1 + random.below(random.pick([100, 300_000]));
          dirty.push({ offset, length });
          offset += length + random.below(random.pick([1000, 500_000]));
        }
        image.markInBitmap(`${granularity}`, dirty);
      }
    }
    for (let round = 0; round < 40; round++) {
      const [image, other] = [random.pick(images), random.pick(images)];
      const [name, from] = [random.pick([512, 1024, 65_536]), random.pick([512, 1024, 65_536])];
      const expected = new Uint8Array(image.size / 512);
      const ranges = [...image.dirtyRanges(`${name}`), ...other.dirtyRanges(`${from}`)];
      for (const { offset, length } of ranges) {
        const start = offset - (offset % name);
        const end = Math.ceil((offset + length) / name) * name;
        expected.fill(1, start / 512, end / 512);
      }
      image.mergeBitmap(`${name}`, { image: other, name: `${from}` });
      const marked = sectorsOf(image.dirtyRanges(`${name}`), image.size);
      expect(Buffer.from(marked).equals(expected), `${name} from ${from}, seed ${SEED}`).toBe(true);
      if (round % 8 === 7) image.clearBitmap(`${name}`);
    }
    for (const image of images) {
      image.close();
      expectValid(open(image.file as HostFile));
    }
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
