import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import type { ChainedQcow2Image } from '../../src/chain/open.ts';
import { rebaseImage, rebaseSteps } from '../../src/operations/rebase.ts';
import type { RebaseOptions, RebaseTarget } from '../../src/operations/rebase.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo, tryRun } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';

const KiB = 1024;

/** A sequence of numbers below a bound that a seed decides. */
function numbers(seed: number): (bound: number) => number {
  let state = seed;
  return (bound) => {
    state = (Math.imul(state, 1_103_515_245) + 12_345) >>> 0;
    return Math.floor((state / 2 ** 32) * bound);
  };
}

/** An image of a random format with random writes. */
function makeImage(path: string, next: (bound: number) => number, backing: string[] = []): string {
  const isRaw = backing.length === 0 && next(2) === 0;
  const format = isRaw ? 'raw' : 'qcow2';
  const size = 512 * (1 + next(3000));
  const layout = ['cluster_size=512', 'cluster_size=4k', 'extended_l2=on,cluster_size=16k', ''];
  const options = isRaw ? [] : ['-o', `compat=1.1,${layout[next(4)]!}`.replace(/,$/, '')];
  qemuImg('create', '-q', '-f', format, ...backing, ...options, path, String(size));
  const commands = Array.from({ length: 4 + next(6) }, () => {
    const offset = 512 * next(size / 512);
    const length = Math.min(size - offset, 512 * (1 + next(400)));
    const flags = ['-P 1', '-P 1', '-P 2', '-P 0', '-z', '-z -u'][next(6)]!;
    return `write -q ${flags} ${offset} ${length}`;
  });
  qemuIo(path, commands, format);
  return format;
}

function openQcow2(path: string, writable = false): ChainedQcow2Image {
  const image = openImage(path, { writable });
  if (image.format === 'qcow2') return image;
  throw new Error(`${path} is not a qcow2 image`);
}

function contentOf(path: string): Buffer {
  using image = openQcow2(path);
  const content = Buffer.alloc(image.size);
  image.read(content, 0);
  return content;
}

/** Rebases, or begins to: stops after so many steps. Returns whether it came to the end. */
function rebase(
  path: string,
  target: { file: string | null; format: string | null; path?: string },
  { steps = Infinity, ...options }: RebaseOptions & { steps?: number } = {},
): boolean {
  using image = openQcow2(path, true);
  const format = target.format === 'raw' ? 'raw' : 'qcow2';
  using backing = target.path === undefined ? undefined : openImage(target.path, { format });
  const wanted: RebaseTarget = { file: target.file, format: target.format, backing };
  const running = rebaseSteps(image, wanted, options);
  for (let step = 0; step < steps; step++) if (running.next().done === true) return true;
  return false;
}

describePeers(['qemu-img', 'qemu-io'], 'rebasing', () => {
  it.each(Array.from({ length: 40 }, (_, seed) => [seed]))(
    'random images, stopped anywhere: seed %i',
    (seed) => {
      const next = numbers(seed + 1);
      const directory = temporaryDirectory();
      const path = (name: string) => join(directory, name);
      const oldFormat = makeImage(path('old'), next);
      const newFormat = makeImage(path('new'), next);
      const isBacked = next(5) > 0;
      makeImage(path('top'), next, isBacked ? ['-b', 'old', '-F', oldFormat] : ['-u']);
      const before = contentOf(path('top'));
      const isToNone = next(5) === 0;
      const target = isToNone
        ? { file: null, format: null }
        : { file: 'new', format: newFormat, path: path('new') };
      const compress = next(4) === 0;
      rebase(path('top'), target, { compress, steps: next(4) });
      expect(contentOf(path('top')).equals(before)).toBe(true);
      expect(rebase(path('top'), target, { compress })).toBe(true);
      expect(contentOf(path('top')).equals(before)).toBe(true);
      // And by QEMU's judgement.
      qemuImg('convert', '-O', 'raw', path('top'), path('content.raw'));
      using content = openImage(path('content.raw'), { format: 'raw' });
      const bytes = Buffer.alloc(content.size);
      content.read(bytes, 0);
      expect(bytes.equals(before)).toBe(true);
      expect(tryRun('qemu-img', ['check', path('top')])).toMatchObject({ exitCode: 0 });
    },
  );

  it('zeroes get entries of their own where the new backing file has data', () => {
    const directory = temporaryDirectory();
    const path = (name: string) => join(directory, name);
    qemuImg('create', '-q', '-f', 'raw', path('short'), '100k');
    qemuImg('create', '-q', '-f', 'raw', path('full'), '1M');
    qemuIo(path('full'), ['write -q -P 7 0 1M'], 'raw');
    for (const compat of ['0.10', '1.1']) {
      const options = ['-o', `compat=${compat}`, '-b', 'short', '-F', 'raw'];
      qemuImg('create', '-q', '-f', 'qcow2', ...options, path('top'), '1000k');
      rebase(path('top'), { file: 'full', format: 'raw', path: path('full') });
      expect(contentOf(path('top')).every((byte) => byte === 0)).toBe(true);
      using image = openQcow2(path('top'));
      const kind = compat === '1.1' ? 'zero' : 'data';
      for (const extent of image.extents(0, image.size)) {
        expect(extent).toMatchObject({ kind, depth: 0 });
      }
    }
  });

  it('reads nothing where both have the same bytes of the same file', () => {
    const directory = temporaryDirectory();
    const path = (name: string) => join(directory, name);
    qemuImg('create', '-q', '-f', 'raw', path('base'), '1M');
    qemuIo(path('base'), ['write -q -P 7 0 1M'], 'raw');
    qemuImg('create', '-q', '-f', 'qcow2', '-b', 'base', '-F', 'raw', path('mid'));
    qemuImg('create', '-q', '-f', 'qcow2', '-b', 'mid', '-F', 'qcow2', path('top'));
    using image = openQcow2(path('top'), true);
    using backing = openImage(path('base'), { format: 'raw' });
    const refuse = (): never => {
      throw new Error('it was read');
    };
    backing.read = refuse;
    rebaseImage(image, { file: 'base', format: 'raw', backing });
    expect(image.header.backingFile).toBe('base');
    expect(image.header.extensions.backingFormat).toBe('raw');
  });

  it('refuses before it begins', () => {
    const path = join(temporaryDirectory(), 'top');
    qemuImg('create', '-q', '-f', 'qcow2', path, '64k');
    const attempt = (file: string | null, format: string | null, writable = true) => {
      using image = openQcow2(path, writable);
      rebaseImage(image, { file, format, backing: undefined });
    };
    expect(() => attempt('a', null)).toThrow('the format of the new backing file is not given');
    expect(() => attempt('a'.repeat(1024), 'raw')).toThrow('longer than 1023');
    expect(() => attempt(null, null, false)).toThrow('it was not opened for writing');
  });

  it('pinned zeroes hide what comes to be behind them, to the last part of a cluster', () => {
    const directory = temporaryDirectory();
    const path = (name: string) => join(directory, name);
    qemuImg('create', '-q', '-f', 'raw', path('full'), '3M');
    qemuIo(path('full'), ['write -q -P 7 0 3M'], 'raw');
    for (const options of ['compat=0.10', 'cluster_size=4k', 'extended_l2=on']) {
      qemuImg('create', '-q', '-f', 'qcow2', '-o', options, path('top'), '3M');
      {
        using image = openQcow2(path('top'), true);
        image.pinZeroes(100 * KiB + 512, 1000 * KiB);
        image.pinZeroes(2 * 1024 * KiB, 0);
        image.setBacking({ file: 'full', format: 'raw' });
      }
      const content = contentOf(path('top'));
      const end = 1100 * KiB + 512;
      expect(content.subarray(100 * KiB + 512, end).every((byte) => byte === 0)).toBe(true);
      expect(content[64 * KiB - 1]).toBe(7);
      expect(content[2 * 1024 * KiB]).toBe(7);
      expect(tryRun('qemu-img', ['check', path('top')])).toMatchObject({ exitCode: 0 });
    }
  });
});
