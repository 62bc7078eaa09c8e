import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { decodeHeader } from '../../src/format/qcow2/header.ts';
import { dirtyRanges, readBitmapDirectory } from '../../src/qcow2/bitmaps.ts';
import type { DirtyRange } from '../../src/qcow2/bitmaps.ts';
import { HeaderWriter } from '../../src/qcow2/header-writer.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuImgJson, qemuIo, tryRun } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';
import { dirtyAccordingToQemu } from './bitmap-oracle.ts';
import { openBitmaps } from './bitmap-space.ts';
import type { OpenBitmaps } from './bitmap-space.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const IN_USE = 1;
const AUTO = 2;

/** An image with a bitmap that records, one that does not, and one more that records. */
function makeImage(size: string, clusterSize = '4k'): string {
  const path = join(temporaryDirectory(), 'image.qcow2');
  qemuImg('create', '-q', '-f', 'qcow2', '-o', `cluster_size=${clusterSize}`, path, size);
  qemuImg('bitmap', '--add', '-g', '4k', path, 'fine');
  qemuImg('bitmap', '--add', '-g', '64k', '--disable', path, 'disabled');
  qemuImg('bitmap', '--add', '-g', '64k', path, 'coarse');
  return path;
}

/** What our reader says that a bitmap marks. */
function dirty({ file, header }: OpenBitmaps, name: string): DirtyRange[] {
  const bitmap = readBitmapDirectory({ header, file }).find((one) => one.name === name)!;
  return [...dirtyRanges({ header, file }, bitmap, { diskSize: header.size })];
}

/** What a bitmap marks now, whatever of it is in the file. */
function dirtyNow({ file, header, tracker }: OpenBitmaps, name: string): DirtyRange[] {
  const unsaved = tracker.find(name)!;
  return [...dirtyRanges({ header, file }, unsaved.info, { diskSize: header.size, unsaved })];
}

/** The bits of a bitmap of granularity 4 KiB. */
function markedBits(ranges: readonly DirtyRange[]): number[] {
  return ranges.flatMap(({ offset, length }) =>
    Array.from({ length: Math.ceil(length / 4096) }, (_, bit) => offset / 4096 + bit),
  );
}

function checkClean(path: string): void {
  expect(tryRun('qemu-img', ['check', path])).toMatchObject({ exitCode: 0, stderr: '' });
}

describePeers(['qemu-img', 'qemu-io', 'qemu-nbd', 'nbdinfo'], 'bitmaps of a changing disk', () => {
  it('are what QEMU goes on with, and the other way round', async () => {
    const path = makeImage('400M', '4k');
    const ranges: DirtyRange[] = [];
    for (const [round, start] of [0, 90 * MiB, 390 * MiB].entries()) {
      const image = openBitmaps(path);
      image.tracker.markDirty(start + 4 * KiB, 4 * KiB);
      image.tracker.markDirty(start + 200 * KiB + 17, 300 * KiB);
      image.tracker.store();
      writeFileSync(path, image.file.bytes);
      qemuIo(path, [`write -q ${start + MiB} 8k`]);
      ranges.push(
        { offset: start + 4 * KiB, length: 4 * KiB },
        { offset: start + 200 * KiB, length: 304 * KiB },
        { offset: start + MiB, length: 8 * KiB },
      );
      expect(await dirtyAccordingToQemu(path, 'fine'), `round ${round}`).toEqual(ranges);
      expect(await dirtyAccordingToQemu(path, 'disabled')).toEqual([]);
      expect((await dirtyAccordingToQemu(path, 'coarse')).slice(0, 2)).toEqual([
        { offset: 0, length: 64 * KiB },
        { offset: 192 * KiB, length: 320 * KiB },
      ]);
      checkClean(path);
    }
  });

  it('are durably marked as in use before the first change, and no longer when stored', () => {
    const { file, tracker, flags } = openBitmaps(makeImage('64M'));
    const before = flags();
    expect(before).toEqual({ fine: AUTO, disabled: 0, coarse: AUTO });
    expect(tracker.isRecording).toBe(false);
    tracker.store();
    expect(file.log).toEqual([]);
    tracker.markDirty(0, 1);
    expect(flags()).toEqual({ fine: AUTO | IN_USE, disabled: 0, coarse: AUTO | IN_USE });
    expect(file.log.map((entry) => (entry === 'flush' ? entry : entry.bytes.length))).toEqual([
      4,
      4,
      'flush',
    ]);
    tracker.markDirty(MiB, MiB);
    expect(file.log).toHaveLength(3);
    tracker.store();
    expect(flags()).toEqual(before);
    expect(tracker.isRecording).toBe(false);
    expect(file.log.slice(-4).map((entry) => entry === 'flush')).toEqual([
      true,
      false,
      false,
      true,
    ]);
    tracker.markDirty(0, 1);
    expect(flags().fine).toBe(AUTO | IN_USE);
  });

  it('are inconsistent after a crash at any write', () => {
    const path = makeImage('64M');
    const image = openBitmaps(path);
    const bytes = Uint8Array.from(image.file.bytes);
    image.tracker.markDirty(3 * MiB, 5 * MiB);
    image.tracker.store();
    const last = image.file.log.length - 3;
    for (const [index, entry] of image.file.log.entries()) {
      if (entry === 'flush') continue;
      bytes.set(entry.bytes, entry.offset);
      writeFileSync(path, bytes);
      const crashed = openBitmaps(bytes);
      const isMarked = (crashed.flags().fine! & IN_USE) !== 0;
      expect(isMarked).toBe(index < last);
      if (!isMarked) expect(dirty(crashed, 'fine')).toEqual(dirty(image, 'fine'));
      // Nothing worse than leaks.
      expect(tryRun('qemu-img', ['check', path]).exitCode % 3).toBe(0);
    }
    expect(dirty(openBitmaps(bytes), 'fine')).toEqual([{ offset: 3 * MiB, length: 5 * MiB }]);
  });

  it('are stored after trouble, as if there had been none', () => {
    const path = makeImage('64M');
    const run = (image: OpenBitmaps, attempt: (action: () => void) => void): void => {
      attempt(() => image.tracker.markDirty(MiB, 3 * KiB));
      attempt(() => image.tracker.markDirty(40 * MiB, 20 * MiB));
      attempt(() => image.tracker.store());
    };
    const expected = openBitmaps(path);
    run(expected, (action) => action());
    const { length } = expected.file.log.filter((entry) => entry !== 'flush');
    expect(length).toBeGreaterThan(6);
    for (let writes = 0; writes < length; writes++) {
      const image = openBitmaps(path);
      image.file.writesLeft = writes;
      let failures = 0;
      run(image, (action) => {
        try {
          action();
        } catch (error) {
          expect(error).toMatchObject({ message: 'no space' });
          failures++;
          image.file.writesLeft = Infinity;
          action();
        }
      });
      expect(failures).toBe(1);
      for (const name of ['fine', 'coarse']) {
        expect(dirty(image, name)).toEqual(dirty(expected, name));
      }
      expect(image.flags()).toEqual(expected.flags());
    }
  });

  it('need no more memory than they may take', () => {
    const path = makeImage('8G');
    const run = (memory?: number): OpenBitmaps => {
      const image = openBitmaps(path, memory);
      image.tracker.markDirty(0, 8 * MiB);
      image.tracker.markDirty(7900 * MiB, 50 * MiB + 1);
      image.tracker.markDirty(7 * MiB, 3000 * MiB);
      image.tracker.store();
      return image;
    };
    const image = run(8192);
    expect(dirty(image, 'fine')).toEqual([
      { offset: 0, length: 3007 * MiB },
      { offset: 7900 * MiB, length: 50 * MiB + 4 * KiB },
    ]);
    expect(dirty(image, 'coarse')).toEqual(dirty(run(), 'coarse'));
  });

  it('are given up when their tables are damaged, and the disk goes on', () => {
    const path = makeImage('64M');
    const { file, header } = openBitmaps(path);
    const { tableOffset } = readBitmapDirectory({ header, file })[0]!;
    file.bytes[tableOffset] = 0xff;
    const image = openBitmaps(file.bytes);
    image.tracker.markDirty(0, MiB);
    image.tracker.store();
    expect(image.flags()).toEqual({ fine: AUTO | IN_USE, disabled: 0, coarse: AUTO });
    expect(dirty(image, 'coarse')).toEqual([{ offset: 0, length: MiB }]);
  });

  it('that are inconsistent stay as they are', () => {
    for (const name of ['bitmap-in-use', 'bitmaps-autoclear-unset']) {
      const { file, tracker } = openBitmaps(`images/features/${name}.qcow2`);
      const before = Uint8Array.from(file.bytes);
      tracker.markDirty(0, 4096);
      tracker.store();
      expect(Buffer.from(file.bytes).equals(before)).toBe(true);
    }
    const { tracker } = openBitmaps('images/features/bitmap-in-use.qcow2');
    expect(() => tracker.prepareResize(MiB)).toThrow(/inconsistent, so that the disk cannot be/);
  });

  it('keep a cluster whose bits are all set', () => {
    const image = openBitmaps('images/features/bitmap-all-ones.qcow2');
    const before = readBitmapDirectory(image).map(({ name }) => dirty(image, name));
    expect(before.flat().length).toBeGreaterThan(0);
    image.tracker.markDirty(0, image.header.size);
    image.tracker.store();
    const [bitmap] = readBitmapDirectory(image);
    expect(dirty(image, bitmap!.name)).toEqual([{ offset: 0, length: image.header.size }]);
  });
});

/** Changes the size that the header says, with an L1 table that is large enough. */
function resize(image: OpenBitmaps, size: number): void {
  image.tracker.prepareResize(size);
  new HeaderWriter(image).update({ size });
  image.tracker.resize(size);
}

describePeers(['qemu-img', 'qemu-nbd', 'nbdinfo'], 'bitmaps of a disk that is resized', () => {
  /** The L1 table of a large disk, and a small disk. */
  function makeResizable(size: number): string {
    const path = makeImage('2G', '4k');
    const { header, file } = openBitmaps(path);
    const bytes = Buffer.from(file.bytes);
    bytes.writeBigUInt64BE(BigInt(header.size), 24);
    writeFileSync(path, bytes);
    qemuImg('resize', '--shrink', '-q', path, `${size}`);
    return path;
  }

  it.each([
    [64 * MiB, 1100 * MiB],
    [64 * MiB, 2048 * MiB],
    [1500 * MiB, 64 * MiB],
    [100 * MiB, 100 * MiB - 512],
    [2047 * MiB, 512],
  ])('cover what is left and what is new: %i to %i', async (from, to) => {
    const path = makeResizable(from);
    const image = openBitmaps(path);
    const old = { offset: MiB, length: MiB };
    image.tracker.markDirty(old.offset, old.length);
    image.tracker.markDirty(from - 512, 512);
    resize(image, to);
    const last = Math.max(0, to - MiB - (to % 4096));
    image.tracker.markDirty(last, 4 * KiB);
    image.tracker.store();
    expect(image.flags()).toEqual({ fine: AUTO, disabled: 0, coarse: AUTO });
    writeFileSync(path, image.file.bytes);
    const bits = new Set<number>();
    for (let bit = 256; bit < 512; bit++) bits.add(bit);
    bits.add(Math.floor((from - 512) / 4096)).add(last / 4096);
    const left = [...bits].filter((bit) => bit * 4096 < to).sort((a, b) => a - b);
    expect(markedBits(dirty(image, 'fine'))).toEqual(left);
    expect(await dirtyAccordingToQemu(path, 'fine')).toEqual(dirty(image, 'fine'));
    expect(await dirtyAccordingToQemu(path, 'disabled')).toEqual([]);
    checkClean(path);
    expect(qemuImgJson('info', path)).toMatchObject({ 'virtual-size': to });
  });

  it.each([
    [64 * MiB, 2048 * MiB],
    [1500 * MiB, 64 * MiB],
  ])('are whole, or marked as in use, after a crash at any write: %i to %i', (from, to) => {
    const path = makeResizable(from);
    const image = openBitmaps(path);
    const bytes = Uint8Array.from(image.file.bytes);
    image.tracker.markDirty(MiB, MiB);
    image.tracker.markDirty(from - MiB, MiB);
    resize(image, to);
    image.tracker.store();
    for (const entry of image.file.log) {
      if (entry === 'flush') continue;
      bytes.set(entry.bytes, entry.offset);
      writeFileSync(path, bytes);
      const crashed = openBitmaps(bytes);
      for (const [name, flags] of Object.entries(crashed.flags())) {
        if ((flags & IN_USE) === 0) expect(dirty(crashed, name).length).toBeLessThan(3);
      }
      // Nothing worse than leaks; 3 says that there are some.
      const { exitCode, stdout, stderr } = tryRun('qemu-img', ['check', path]);
      expect(exitCode % 3, stdout + stderr).toBe(0);
      expect(() => qemuIo(path, ['read -q 0 512'])).not.toThrow();
    }
    expect(dirty(openBitmaps(bytes), 'fine')).toEqual(dirty(image, 'fine'));
  });

  it('fit the old size again if the new one was not made', () => {
    const path = makeResizable(64 * MiB);
    const image = openBitmaps(path);
    image.tracker.prepareResize(2048 * MiB);
    image.tracker.store();
    writeFileSync(path, image.file.bytes);
    expect(image.flags()).toEqual({ fine: AUTO, disabled: 0, coarse: AUTO });
    qemuIo(path, ['read -q 0 512']);
  });

  it('are what a plain array of bits says after any changes', () => {
    const path = makeResizable(64 * MiB);
    const sizes = fc.integer({ min: 1, max: 4096 }).map((sectors) => sectors * 512 * KiB);
    const change = fc.oneof(
      { weight: 4, arbitrary: fc.tuple(fc.nat({ max: 2 ** 31 }), fc.nat({ max: 2 ** 20 })) },
      { weight: 1, arbitrary: sizes },
      { weight: 1, arbitrary: fc.constant('store' as const) },
    );
    fc.assert(
      fc.property(
        fc.array(change, { maxLength: 15 }),
        fc.constantFrom(4096, 2 ** 20),
        (list, memory) => {
          const image = openBitmaps(path, memory);
          const bits = new Set<number>();
          for (const one of list) {
            const { size } = image.header;
            if (one === 'store') image.tracker.store();
            else if (typeof one === 'number') {
              resize(image, one);
              for (const bit of bits) if (bit >= Math.ceil(one / 4096)) bits.delete(bit);
            } else {
              const offset = one[0] % size;
              const length = Math.min(one[1], size - offset);
              image.tracker.markDirty(offset, length);
              const end = length === 0 ? 0 : Math.ceil((offset + length) / 4096);
              for (let bit = Math.floor(offset / 4096); bit < end; bit++) bits.add(bit);
            }
            const writes = image.file.log.length;
            expect(markedBits(dirtyNow(image, 'fine'))).toEqual([...bits].sort((a, b) => a - b));
            expect(dirtyNow(image, 'disabled')).toEqual([]);
            expect(image.file.log).toHaveLength(writes);
          }
          image.tracker.store();
          const { size } = decodeHeader(image.file.bytes);
          expect(size).toBe(image.header.size);
          expect(markedBits(dirty(image, 'fine'))).toEqual([...bits].sort((a, b) => a - b));
          expect(dirty(image, 'disabled')).toEqual([]);
        },
      ),
      { numRuns: 40 },
    );
  });
});
