import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import type { ChainedQcow2Image, OpenImageOptions } from '../../src/chain/open.ts';
import { commitImage, commitSteps, findBacking } from '../../src/operations/commit.ts';
import { RateLimit } from '../../src/operations/rate-limit.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo, run } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';

/** `0.raw` of 2 MiB and overlays `1.qcow2` to `3.qcow2`, each with 64 KiB at its number in MiB / 4. */
function makeChain(): string {
  const directory = temporaryDirectory();
  const path = (name: string) => join(directory, name);
  qemuImg('create', '-q', '-f', 'raw', path('0.raw'), '2M');
  for (const [below, name] of [
    ['0.raw', '1.qcow2'],
    ['1.qcow2', '2.qcow2'],
    ['2.qcow2', '3.qcow2'],
  ] as const) {
    const format = below.endsWith('raw') ? 'raw' : 'qcow2';
    qemuImg('create', '-q', '-f', 'qcow2', '-b', below, '-F', format, path(name));
    qemuIo(path(name), [`write -q -P ${name[0]!} ${Number(name[0]) * 256}k 64k`]);
  }
  return directory;
}

function openQcow2(path: string, options: OpenImageOptions = {}): ChainedQcow2Image {
  const image = openImage(path, options);
  if (image.format === 'qcow2') return image;
  throw new Error(`${path} is not a qcow2 image`);
}

describePeers(['qemu-img', 'qemu-io'], 'committing', () => {
  it('writes what several layers have to any layer below', () => {
    for (const depth of [1, 2, 3]) {
      const directory = makeChain();
      const top = join(directory, '3.qcow2');
      const before = join(directory, 'before.raw');
      qemuImg('convert', '-O', 'raw', top, before);
      {
        using image = openQcow2(top, { writable: true, writableBacking: depth });
        commitImage(image, { depth });
      }
      const base = ['2.qcow2', '1.qcow2', '0.raw'][depth - 1]!;
      const format = base.endsWith('raw') ? 'raw' : 'qcow2';
      qemuImg('compare', '-f', 'raw', '-F', format, before, join(directory, base));
      qemuImg('compare', '-F', 'raw', top, before);
      run('qemu-img', ['check', '-q', top]);
    }
  });

  it('leaves the image as it reads, however far it comes', () => {
    const directory = makeChain();
    const top = join(directory, '3.qcow2');
    const before = join(directory, 'before.raw');
    qemuImg('convert', '-O', 'raw', top, before);
    for (let steps = 0; ; steps++) {
      let done = false;
      {
        using image = openQcow2(top, { writable: true, writableBacking: true });
        const running = commitSteps(image);
        for (let step = 0; step < steps && !done; step++) done = running.next().done === true;
      }
      qemuImg('compare', '-q', '-F', 'raw', top, before);
      if (done) break;
    }
    qemuImg('compare', '-q', '-F', 'raw', join(directory, '2.qcow2'), before);
  });

  it('refuses what cannot be committed', () => {
    const directory = makeChain();
    const top = join(directory, '3.qcow2');
    const refusal = (options: OpenImageOptions, depth?: number): string => {
      using image = openQcow2(top, options);
      try {
        commitImage(image, { depth });
      } catch (error) {
        return (error as Error).message;
      }
      return '';
    };
    expect(refusal({})).toContain('3.qcow2: it was not opened for writing');
    expect(refusal({ writable: true })).toContain('2.qcow2: it was not opened for writing');
    const both = { writable: true, writableBacking: true };
    expect(refusal(both, 2)).toContain('1.qcow2: it was not opened for writing');
    expect(refusal(both, 4)).toContain('it has no layer that is 4 below it');
    expect(refusal(both, 0)).toContain('it has no layer that is 0 below it');
    const alone = { writable: true, withoutBacking: true };
    expect(refusal(alone)).toContain('it has no backing file to commit to');
    qemuIo(top, ['read -P 3 768k 64k', 'read -P 2 512k 64k']);
  });

  it('finds layers by the names that they are called by', () => {
    const directory = makeChain();
    using image = openQcow2(join(directory, '3.qcow2'));
    expect(findBacking(image, '2.qcow2')).toBe(1);
    expect(findBacking(image, './1.qcow2')).toBe(2);
    expect(findBacking(image, join(directory, '0.raw'))).toBe(3);
    expect(findBacking(image, '3.qcow2')).toBeUndefined();
    expect(findBacking(image, 'missing')).toBeUndefined();
  });
});

it('a rate limit spreads bytes over time, and does not save up for later', () => {
  const limit = new RateLimit(1_000_000);
  const spend = (bytes: number) => [...limit.spend(bytes, { done: 1, total: 2 })];
  const start = performance.now();
  expect(spend(100_000).length).toBeGreaterThan(2);
  expect(performance.now() - start).toBeGreaterThan(70);
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 150);
  const later = performance.now();
  spend(100_000);
  expect(performance.now() - later).toBeGreaterThan(70);
  expect([...new RateLimit(0).spend(1e12, { done: 1, total: 2 })]).toEqual([]);
});
