import { join } from 'node:path';
import { beforeEach, expect, it } from 'vitest';
import { openImage } from '../../src/index.ts';
import type { OpenImageOptions } from '../../src/index.ts';
import { holdWithQemuIo, lockedBytes } from '../support/lock-holder.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo, tryRun } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';

const directory = temporaryDirectoryPerTest();

/** Paths of a chain `top` → `middle` → `base` (raw), and of `split` with its data in `data`. */
let files: Record<'top' | 'middle' | 'base' | 'split' | 'data', string>;

function makeImages(): void {
  const path = (name: string): string => join(directory(), name);
  files = {
    top: path('top.qcow2'),
    middle: path('middle.qcow2'),
    base: path('base.raw'),
    split: path('split.qcow2'),
    data: path('data.raw'),
  };
  qemuImg('create', '-q', '-f', 'raw', files.base, '1M');
  qemuImg('create', '-q', '-f', 'qcow2', '-b', files.base, '-F', 'raw', files.middle);
  qemuImg('create', '-q', '-f', 'qcow2', '-b', files.middle, '-F', 'qcow2', files.top);
  qemuImg('create', '-q', '-f', 'qcow2', '-o', `data_file=${files.data}`, files.split, '1M');
}

function tryOpen(path: string, options: OpenImageOptions = {}): void {
  openImage(path, options).close();
}

function locksOn(pid: number | 'self'): Record<string, number[]> {
  return Object.fromEntries(
    Object.entries(files).map(([name, path]) => [name, lockedBytes(pid, path)]),
  );
}

describePeers(['qemu-img', 'qemu-io', 'koffi'], 'image locks', () => {
  beforeEach(makeImages);

  it.each([
    ['top', 'reading', { top: [100, 201, 203], middle: [100, 201, 203], base: [100] }],
    ['top', 'writing', { top: [100, 101, 103, 201, 203], middle: [100, 201, 203], base: [100] }],
    ['split', 'reading', { split: [100, 201, 203], data: [100, 203] }],
    ['split', 'writing', { split: [100, 101, 103, 201, 203], data: [100, 101, 103, 203] }],
    ['base', 'reading', { base: [100] }],
  ] as const)("on %s for %s are QEMU's", async (name, mode, expected) => {
    const none = { top: [], middle: [], base: [], split: [], data: [] };
    const format = name === 'base' ? 'raw' : 'qcow2';
    const readOnly = mode === 'reading' ? ['-r'] : [];
    {
      await using holder = await holdWithQemuIo([...readOnly, '-f', format, files[name]]);
      expect(locksOn(holder.pid)).toEqual({ ...none, ...expected });
    }
    {
      using image = openImage(files[name], { format, writable: mode === 'writing' });
      expect(image.path).toBe(files[name]);
      expect(locksOn('self')).toEqual({ ...none, ...expected });
    }
    expect(locksOn('self')).toEqual(none);
  });

  it('tell which process writes an image, and let it be read all the same', async () => {
    await using holder = await holdWithQemuIo(['-f', 'qcow2', files.top]);
    const who = `it is in use: process ${holder.pid} (qemu-io) writes to it; wait until it is closed there`;
    expect(() => tryOpen(files.top)).toThrow(
      expect.objectContaining({
        code: 'LOCKED',
        message: `${files.top}: ${who}, or read it all the same with --force-share`,
      }),
    );
    expect(() => tryOpen(files.top, { writable: true })).toThrow(
      expect.objectContaining({ code: 'LOCKED', message: `${files.top}: ${who}` }),
    );
    tryOpen(files.top, { forceShare: true });
    tryOpen(files.top, { writable: true, lock: false });
    // Its backing file is only read there.
    tryOpen(files.middle);
    expect(() => tryOpen(files.middle, { writable: true })).toThrow(
      `process ${holder.pid} (qemu-io) reads it and needs it unchanged`,
    );
    // Nothing of what was refused is left.
    expect(lockedBytes('self', files.top)).toEqual([]);
    expect(lockedBytes('self', files.middle)).toEqual([]);
  });

  it('let QEMU and this package read together, and nobody write', async () => {
    await using holder = await holdWithQemuIo(['-r', '-f', 'qcow2', files.split]);
    tryOpen(files.split);
    expect(() => tryOpen(files.split, { writable: true })).toThrow(
      `${files.split}: it is in use: process ${holder.pid} (qemu-io) reads it and needs it unchanged`,
    );
    expect(() => tryOpen(files.data, { format: 'raw', writable: true })).toThrow(
      `${files.data}: it is in use: process ${holder.pid} (qemu-io) needs its size unchanged`,
    );
  });

  it('keep QEMU from what is written here', () => {
    using image = openImage(files.top, { writable: true });
    expect(image.path).toBe(files.top);
    const refusal = /Failed to get (?:shared )?"write" lock/;
    expect(tryRun('qemu-img', ['info', files.top]).stderr).toMatch(refusal);
    expect(tryRun('qemu-img', ['check', files.top]).stderr).toMatch(refusal);
    expect(() => qemuIo(files.top, ['length'])).toThrow(refusal);
    expect(() => qemuIo(files.middle, ['length'])).toThrow(refusal);
    qemuImg('info', '-U', files.top);
    qemuImg('info', files.middle);
  });

  it('keep QEMU from writing what is read here', () => {
    const image = openImage(files.top);
    expect(() => qemuIo(files.top, ['length'])).toThrow(/Failed to get "write" lock/);
    expect(() => qemuIo(files.middle, ['length'])).toThrow(/Failed to get "write" lock/);
    qemuImg('check', files.top);
    image.close();
    qemuIo(files.top, ['write 0 64k']);
    using shared = openImage(files.top, { forceShare: true });
    expect(shared.path).toBe(files.top);
    qemuIo(files.top, ['write 0 64k']);
  });

  it('keep writers of a raw image apart, as virtual machines do', async () => {
    {
      using image = openImage(files.base, { format: 'raw', writable: true });
      expect(image.readOnly).toBe(false);
      expect(() => qemuIo(files.base, ['length'], 'raw')).toThrow(/Failed to get "write" lock/);
      tryOpen(files.base);
    }
    await using holder = await holdWithQemuIo(['-f', 'raw', files.base]);
    expect(() => tryOpen(files.base, { format: 'raw', writable: true })).toThrow(
      `process ${holder.pid} (qemu-io) writes to it`,
    );
  });

  it('hold between two images of one process', () => {
    const writer = openImage(files.top, { writable: true });
    const own = expect.objectContaining({
      code: 'LOCKED',
      message: expect.stringContaining('in use: this process itself writes to it') as string,
    }) as Error;
    expect(() => tryOpen(files.top, { writable: true })).toThrow(own);
    expect(() => tryOpen(files.top)).toThrow(own);
    writer.close();
    using first = openImage(files.top);
    using second = openImage(files.top);
    expect([first.size, second.size]).toEqual([1024 * 1024, 1024 * 1024]);
    expect(() => tryOpen(files.top, { writable: true })).toThrow(
      'in use: this process itself reads it and needs it unchanged',
    );
  });

  it('are not compatible with sharing what is written', () => {
    expect(() => tryOpen(files.top, { writable: true, forceShare: true })).toThrow(
      expect.objectContaining({ code: 'INVALID_OPTION' }),
    );
  });
});
