import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { expect, it } from 'vitest';
import { FileDevice } from '../../src/device/file.ts';
import { MemoryDevice } from '../../src/device/memory.ts';
import { AutoclearFeature } from '../../src/format/qcow2/features.ts';
import { decodeHeader } from '../../src/format/qcow2/header.ts';
import type { Qcow2Header } from '../../src/format/qcow2/header.ts';
import { HeaderWriter } from '../../src/qcow2/header-writer.ts';
import type { HeaderFile, HeaderRewrite } from '../../src/qcow2/header-writer.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuImgJson } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';

/** A write that reached the device, or a flush. */
type Logged = 'flush' | { offset: number; bytes: Uint8Array };

/** A file in memory that logs what is done to it, and can fail. */
class LoggingFile implements HeaderFile {
  readonly log: Logged[] = [];
  /** Writes that succeed before one fails. */
  writesLeft = Infinity;
  readonly #device: MemoryDevice;

  constructor(bytes: Uint8Array) {
    this.#device = new MemoryDevice(Uint8Array.from(bytes));
  }

  get bytes(): Uint8Array {
    return this.#device.bytes;
  }

  get size(): number {
    return this.#device.size;
  }

  read(target: Uint8Array, offset: number): void {
    this.#device.read(target, offset);
  }

  write(source: Uint8Array, offset: number): void {
    if (this.writesLeft-- <= 0) throw new Error('no space');
    this.log.push({ offset, bytes: Uint8Array.from(source) });
    this.#device.write(source, offset);
  }

  flush(): void {
    this.log.push('flush');
  }
}

function openWriter(bytes: Uint8Array): {
  file: LoggingFile;
  header: Qcow2Header;
  writer: HeaderWriter;
} {
  const file = new LoggingFile(bytes);
  const header = decodeHeader(bytes);
  return { file, header, writer: new HeaderWriter({ file, header }) };
}

function makeImage(options: string, ...rest: string[]): { path: string; bytes: Buffer } {
  const path = join(temporaryDirectory(), 'image.qcow2');
  qemuImg('create', '-q', '-f', 'qcow2', '-o', options, ...rest, path, '64M');
  return { path, bytes: readFileSync(path) };
}

/** The header without what says how its bytes are laid out. */
function meaning(bytes: Uint8Array): unknown {
  const { extensions, ...header } = decodeHeader(bytes);
  const { backingFormat, externalDataFile, bitmaps, unknown } = extensions;
  const kept = unknown.filter(({ type }) => type !== 0x46494c4c);
  return { ...header, headerLength: 0, backingFormat, externalDataFile, bitmaps, kept };
}

/** Every state that a crash during the logged writes can leave. */
function* crashStates(before: Uint8Array, log: readonly Logged[]): Generator<Uint8Array> {
  const bytes = Uint8Array.from(before);
  yield bytes;
  for (const entry of log) {
    if (entry === 'flush') continue;
    const sectors = entry.bytes.length / 512;
    expect(Number.isInteger(sectors)).toBe(true);
    expect(sectors).toBeLessThan(11);
    for (let subset = 0; subset < 2 ** sectors; subset++) {
      const torn = Uint8Array.from(bytes);
      for (let sector = 0; sector < sectors; sector++) {
        if ((subset & (2 ** sector)) === 0) continue;
        const piece = entry.bytes.subarray(sector * 512, sector * 512 + 512);
        torn.set(piece, entry.offset + sector * 512);
      }
      yield torn;
    }
    bytes.set(entry.bytes, entry.offset);
  }
}

describePeers(['qemu-img'], 'the header', () => {
  it('changes fields in one write within the first sector, and nothing else', () => {
    const { bytes } = makeImage('lazy_refcounts=on');
    const { file, header, writer } = openWriter(bytes);
    const changes = {
      size: 3 * 2 ** 30,
      l1Size: 7,
      l1TableOffset: 0x7_0000_0000,
      refcountTableOffset: 0x50000,
      refcountTableClusters: 2,
      snapshotCount: 3,
      snapshotsOffset: 0x1f_ffff_ffff_0000,
    };
    writer.update(changes);
    expect(file.log).toMatchObject([{ offset: 0, bytes: { length: 512 } }]);
    expect(decodeHeader(file.bytes)).toEqual({
      ...decodeHeader(bytes),
      ...changes,
      l1SizeNeeded: 6,
    });
    expect(header).toEqual(decodeHeader(file.bytes));
    expect(file.bytes.subarray(72)).toEqual(Uint8Array.from(bytes).subarray(72));
  });

  it('sets and clears features, flushed before and after, and derives what they say', () => {
    const { bytes } = makeImage('compat=1.1');
    const { file, header, writer } = openWriter(bytes);
    writer.setDirty(true);
    expect(file.log).toMatchObject(['flush', { offset: 0 }, 'flush']);
    expect(header).toMatchObject({ isDirty: true, isCorrupt: false });
    expect(writer.setCorrupt()).toBe(true);
    expect(decodeHeader(file.bytes)).toMatchObject({ isDirty: true, isCorrupt: true });
    writer.setDirty(false);
    writer.clearCorrupt();
    writer.setLazyRefcounts(true);
    expect(header).toMatchObject({ isDirty: false, isCorrupt: false, hasLazyRefcounts: true });
    writer.update({ autoclearFeatures: 0x8000_0000_0000_0005n });
    expect(header.areBitmapsValid).toBe(true);
    expect(writer.clearAutoclear(~AutoclearFeature.BITMAPS)).toBe(true);
    expect(decodeHeader(file.bytes).autoclearFeatures).toBe(1n);
    const { length } = file.log;
    expect(writer.clearAutoclear(~AutoclearFeature.BITMAPS)).toBe(false);
    expect(file.log).toHaveLength(length);
    expect(header).toEqual(decodeHeader(file.bytes));
  });

  it('has no features in version 2', () => {
    const { bytes } = makeImage('compat=0.10');
    const { file, writer } = openWriter(bytes);
    expect(writer.setCorrupt()).toBe(false);
    expect(writer.clearAutoclear(-1n)).toBe(false);
    expect(() => writer.setDirty(true)).toThrow(/internal error/);
    expect(Buffer.from(file.bytes).equals(bytes)).toBe(true);
    writer.update({ size: 512 });
    expect(decodeHeader(file.bytes)).toMatchObject({ version: 2, size: 512 });
  });

  it('is as it was in memory when a write fails, and can be written again', () => {
    const { bytes } = makeImage('compat=1.1');
    const { file, header, writer } = openWriter(bytes);
    file.writesLeft = 0;
    expect(() => writer.update({ size: 1024 })).toThrow('no space');
    expect(() => writer.setDirty(true)).toThrow('no space');
    expect(header).toEqual(decodeHeader(bytes));
    file.writesLeft = Infinity;
    writer.update({ snapshotCount: 0 });
    expect(Buffer.from(file.bytes).equals(bytes)).toBe(true);
  });

  it('never says what would not open again', () => {
    const { writer } = openWriter(makeImage('compat=1.1').bytes);
    expect(() => writer.update({ size: 2 ** 40 })).toThrow(/the L1 table covers the disk/);
    expect(() => writer.update({ l1TableOffset: 512 })).toThrow(/tables start at clusters/);
  });
});

const BITMAPS = { count: 3, directorySize: 96, directoryOffset: 0x60000 };

describePeers(['qemu-img'], 'the first cluster', () => {
  it('is rewritten as QEMU would', () => {
    const { path, bytes } = makeImage('compat=1.1');
    for (const [backingFile, backingFormat] of [
      ['a-longer-name-of-a-base.raw', 'raw'],
      ['b.qcow2', 'qcow2'],
    ] as const) {
      qemuImg('rebase', '-u', '-b', backingFile, '-F', backingFormat, path);
      const { file, header, writer } = openWriter(bytes);
      writer.rewrite({ backingFile, backingFormat });
      expect(Buffer.from(file.bytes).equals(readFileSync(path))).toBe(true);
      expect(header).toEqual(decodeHeader(file.bytes));
    }
    const { file, writer } = openWriter(readFileSync(path));
    writer.rewrite({ backingFile: null, backingFormat: null });
    expect(Buffer.from(file.bytes).equals(bytes)).toBe(true);
  });

  it('is understood by QEMU', () => {
    const { path, bytes } = makeImage('compat=0.10');
    writeFileSync(path, bytes);
    {
      using file = new FileDevice(path, { writable: true });
      const writer = new HeaderWriter({ file, header: decodeHeader(bytes) });
      writer.rewrite({ version: 3, backingFile: 'base', fields: { compatibleFeatures: 1n } });
      writer.rewrite({ backingFormat: 'raw' });
    }
    expect(qemuImgJson('info', path)).toMatchObject({
      'backing-filename': 'base',
      'backing-filename-format': 'raw',
      'format-specific': { data: { compat: '1.1', 'lazy-refcounts': true } },
    });
  });

  it('changes its version there and back', () => {
    const { bytes } = makeImage('compat=0.10');
    const { file, header, writer } = openWriter(bytes);
    writer.rewrite({ version: 3 });
    expect(header).toMatchObject({ version: 3, headerLength: 112, refcountOrder: 4 });
    expect(header.extensions.featureNames).toHaveLength(8);
    writer.rewrite({ version: 2 });
    expect(Buffer.from(file.bytes).equals(bytes)).toBe(true);
    expect(header).toEqual(decodeHeader(bytes));
  });

  it('keeps extensions that nobody knows, in their order', () => {
    const bytes = readFileSync('images/features/extension-unknown-backing.qcow2');
    const { header, writer } = openWriter(bytes);
    const { unknown } = header.extensions;
    expect(unknown).toHaveLength(1);
    writer.rewrite({ backingFile: 'x'.repeat(1023), bitmaps: BITMAPS });
    expect(header.extensions).toMatchObject({ unknown, bitmaps: BITMAPS, backingFormat: 'raw' });
    expect(header.backingFile).toHaveLength(1023);
  });

  it('refuses what does not fit, before anything changes', () => {
    const { bytes } = makeImage('cluster_size=1k');
    const { file, writer } = openWriter(bytes);
    expect(() => writer.rewrite({ backingFile: 'x'.repeat(1000) })).toThrow(
      /header, extensions and backing file name need 1120 bytes, more than the first cluster's 1024/,
    );
    expect(() => writer.rewrite({ backingFile: 'x'.repeat(1024) })).toThrow(/longer than 1023/);
    expect(() => writer.rewrite({ backingFile: 'x'.repeat(700) })).toThrow(/has no room to change/);
    expect(file.log).toEqual([]);
    writer.rewrite({ backingFile: 'x'.repeat(300) });
    expect(decodeHeader(file.bytes).backingFile).toBe('x'.repeat(300));
  });
});

const name = fc.option(fc.stringMatching(/^[a-z/é.]{1,400}$/), { nil: null });
const rewrites: fc.Arbitrary<HeaderRewrite> = fc.record(
  {
    backingFile: name,
    backingFormat: fc.constantFrom('raw', 'qcow2', null),
    externalDataFile: name,
    bitmaps: fc.constantFrom(BITMAPS, { ...BITMAPS, count: 2 }, null),
    version: fc.constantFrom(2, 3),
  },
  { requiredKeys: [] },
);

/** An image of the corpus, or one as QEMU makes it today. */
function startOf(image: string): Uint8Array {
  if (image.startsWith('features/')) return readFileSync(`images/${image}.qcow2`);
  return makeImage('cluster_size=8k,backing_file=base,backing_fmt=raw', '-u').bytes;
}

describePeers(['qemu-img'], 'a crash while the first cluster is rewritten', () => {
  it.each([
    'QEMU',
    'features/backing-qcow2',
    'features/bitmaps',
    'features/version-2',
    'features/extension-unknown',
    'features/header-length-long',
    'features/cluster-size-1024',
  ])('leaves the old header or the new one: %s', (image) => {
    const start = startOf(image);
    fc.assert(
      fc.property(fc.array(rewrites, { minLength: 1, maxLength: 3 }), (changes) => {
        const { file, header, writer } = openWriter(start.subarray(0, 2 ** 16));
        for (const change of changes) {
          const before = Uint8Array.from(file.bytes);
          const { clusterSize } = header;
          file.log.length = 0;
          try {
            writer.rewrite(change);
          } catch (error) {
            expect(error).toMatchObject({ code: 'TOO_LARGE' });
            expect(file.log).toEqual([]);
            continue;
          }
          const old = meaning(before.subarray(0, clusterSize));
          const now = meaning(file.bytes.subarray(0, clusterSize));
          expect(meaning(before)).toEqual(old);
          expect(header).toEqual(decodeHeader(file.bytes));
          for (const state of crashStates(before, file.log)) {
            expect([old, now]).toContainEqual(meaning(state));
          }
        }
      }),
      { numRuns: 30 },
    );
  });

  it('or a failing write leaves an image whose header can be written on', () => {
    const bytes = startOf('QEMU');
    const change = { backingFile: 'y'.repeat(600), bitmaps: BITMAPS };
    for (let writes = 0; writes < 5; writes++) {
      const { file, header, writer } = openWriter(bytes);
      file.writesLeft = writes;
      expect(() => writer.rewrite(change)).toThrow('no space');
      file.writesLeft = Infinity;
      expect(header.backingFile === change.backingFile).toBe(writes >= 2);
      writer.update({ snapshotCount: 0 });
      expect(decodeHeader(file.bytes)).toEqual(header);
      writer.rewrite(change);
      const untroubled = openWriter(bytes);
      untroubled.writer.rewrite(change);
      expect(Buffer.from(file.bytes).equals(untroubled.file.bytes)).toBe(true);
    }
  });
});
