import { execFileSync } from 'node:child_process';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import { createImage, createSteps } from '../../src/operations/create.ts';
import type { CreateOptions } from '../../src/operations/create.ts';
import { holdWithQemuIo } from '../support/lock-holder.ts';
import { itPeers } from '../support/peers.ts';
import { qemuImgJson } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';

const MiB = 1024 * 1024;

const folder = temporaryDirectoryPerTest();
const inFolder = (name: string): string => join(folder(), name);

/** A file with content that must stay. */
function makeFile(name: string): string {
  writeFileSync(inFolder(name), 'precious');
  return inFolder(name);
}

function refusal(path: string, options: CreateOptions): unknown {
  try {
    createImage(path, options);
  } catch (error) {
    return error;
  }
  return undefined;
}

describe('what is in use is not overwritten', () => {
  it.each(['qcow2', 'raw'] as const)(
    'an image that another writes to: by a %s one',
    async (format) => {
      const path = inFolder('disk');
      createImage(path, { size: MiB });
      const before = readFileSync(path);
      await using holder = await holdWithQemuIo(['-f', 'qcow2', path]);
      expect(refusal(path, { format, size: 2 * MiB })).toMatchObject({
        code: 'LOCKED',
        file: path,
        problem: `it is in use: process ${holder.pid} (qemu-io) writes to it`,
      });
      expect(readFileSync(path).equals(before)).toBe(true);
    },
  );

  it('an image that another reads, this process included', () => {
    const path = inFolder('disk');
    createImage(path, { size: MiB });
    using image = openImage(path);
    expect(refusal(path, { size: 2 * MiB })).toMatchObject({ code: 'LOCKED', file: path });
    expect(image.size).toBe(MiB);
    expect(qemuImgJson('info', path)).toMatchObject({ 'virtual-size': MiB });
  });

  it('a data file of an image in use, and then the image is not made either', () => {
    createImage(inFolder('used'), { size: MiB, dataFile: 'data' });
    using image = openImage(inFolder('used'), { writable: true });
    const options = { size: 2 * MiB, dataFile: 'data' };
    expect(refusal(inFolder('new'), options)).toMatchObject({ code: 'LOCKED' });
    expect(existsSync(inFolder('new'))).toBe(false);
    expect(statSync(inFolder('data')).size).toBe(image.size);
  });

  it('with `lock: false` it is', async () => {
    const path = inFolder('disk');
    createImage(path, { size: MiB });
    await using holder = await holdWithQemuIo(['-r', '-f', 'qcow2', path]);
    expect(holder.pid).toBeGreaterThan(0);
    createImage(path, { size: 2 * MiB, lock: false });
    expect(qemuImgJson('info', '-U', path)).toMatchObject({ 'virtual-size': 2 * MiB });
  });
});

describe('what the image refers to is not overwritten', () => {
  const overlay = { backingFile: 'base', backingFormat: 'qcow2' };

  it('itself as the backing file, by whatever name', () => {
    createImage(inFolder('base'), { size: MiB });
    symlinkSync('base', inFolder('link'));
    for (const [path, withoutBacking] of [
      ['base', false],
      ['link', false],
      ['link', true],
    ] as const) {
      expect(refusal(inFolder(path), { ...overlay, size: MiB, withoutBacking })).toMatchObject({
        code: 'REFUSED',
        problem: 'an image cannot be its own backing file',
      });
    }
    expect(
      refusal(inFolder('new'), { ...overlay, backingFile: 'new', withoutBacking: true }),
    ).toMatchObject({ code: 'REFUSED' });
    expect(qemuImgJson('info', inFolder('base'))).not.toHaveProperty('backing-filename');
  });

  it('a file further down the chain', () => {
    createImage(inFolder('base'), { size: MiB });
    createImage(inFolder('middle'), overlay);
    const before = readFileSync(inFolder('base'));
    const options = { backingFile: 'middle', backingFormat: 'qcow2' };
    expect(refusal(inFolder('base'), options)).toMatchObject({ code: 'REFUSED' });
    expect(readFileSync(inFolder('base')).equals(before)).toBe(true);
  });

  it('itself as the data file, new or not, and its backing file as the data file', () => {
    createImage(inFolder('base'), { size: MiB });
    const before = readFileSync(inFolder('base'));
    const itself = { size: MiB, dataFile: 'new' };
    expect(refusal(inFolder('new'), itself)).toMatchObject({ code: 'REFUSED' });
    expect(existsSync(inFolder('new'))).toBe(false);
    expect(refusal(inFolder('base'), { size: MiB, dataFile: 'base' })).toMatchObject({
      code: 'REFUSED',
    });
    expect(refusal(inFolder('new'), { ...overlay, dataFile: 'base' })).toMatchObject({
      code: 'REFUSED',
    });
    expect(readFileSync(inFolder('base')).equals(before)).toBe(true);
    expect(readdirSync(folder())).toEqual(['base']);
  });
});

describe('an image that is not finished', () => {
  it('leaves nothing behind, with bad options not even a changed file', () => {
    const path = makeFile('existing');
    const bad: CreateOptions[] = [
      { size: MiB, clusterSize: 3000 },
      { size: MiB, clusterSize: 256 },
      { size: MiB, clusterSize: 2 ** 22 },
      { size: MiB, refcountBits: 3 },
      { size: MiB, refcountBits: 128 },
      { size: MiB, refcountBits: 0 },
      { size: MiB, extendedL2: true, clusterSize: 8192 },
      { size: MiB, extendedL2: true, compat: '0.10' },
      { size: MiB, lazyRefcounts: true, compat: '0.10' },
      { size: MiB, refcountBits: 8, compat: '0.10' },
      { size: MiB, compressionType: 'zstd', compat: '0.10' },
      { size: MiB, dataFile: 'data', compat: '0.10' },
      { size: MiB, dataFileRaw: true },
      { size: MiB, dataFile: '' },
      { size: MiB, backingFormat: 'qcow2' },
      { size: MiB, backingFile: 'base' },
      { size: MiB, backingFile: '', backingFormat: 'qcow2' },
      { size: MiB, format: 'raw', backingFile: 'base', backingFormat: 'raw' },
      { size: MiB, format: 'raw', preallocation: 'metadata' },
      { size: -512 },
      { size: 0.5 },
      {},
    ];
    for (const options of bad) {
      expect([options, refusal(path, options)]).toMatchObject([{}, { code: 'INVALID_OPTION' }]);
      expect(refusal(inFolder('new'), options)).toMatchObject({ code: 'INVALID_OPTION' });
    }
    const large: CreateOptions[] = [
      { size: 2 ** 53 },
      { size: 2 ** 40, clusterSize: 512 },
      { size: MiB, clusterSize: 512, dataFile: 'x'.repeat(600) },
      { size: MiB, backingFile: 'x'.repeat(1024), backingFormat: 'raw', withoutBacking: true },
      { size: 2 ** 37, clusterSize: 512, refcountBits: 64, preallocation: 'metadata' },
    ];
    for (const options of large) {
      expect([options, refusal(path, options)]).toMatchObject([{}, { code: 'TOO_LARGE' }]);
    }
    expect(readFileSync(path, 'latin1')).toBe('precious');
    expect(readdirSync(folder())).toEqual(['existing']);
  });

  it('is removed, or emptied, with its data file', () => {
    const path = makeFile('existing');
    const options = { size: 100 * MiB, preallocation: 'full' } as const;
    for (const [name, kept] of [
      ['existing', true],
      ['new', false],
    ] as const) {
      const steps = createSteps(inFolder(name), { ...options, dataFile: 'data' });
      expect(steps.next().done).toBe(false);
      expect(statSync(inFolder('data')).size).toBeGreaterThan(0);
      steps.return();
      expect(existsSync(inFolder(name))).toBe(kept);
      expect(existsSync(inFolder('data'))).toBe(false);
    }
    expect(statSync(path).size).toBe(0);
  });

  it('has no header before all else is on the disk', () => {
    const steps = createSteps(inFolder('new'), { size: 10 * MiB, preallocation: 'metadata' });
    for (let next = steps.next(); next.done !== true; next = steps.next()) {
      expect(readFileSync(inFolder('new')).subarray(0, 4)).not.toEqual(
        Buffer.from('QFI\xfb', 'latin1'),
      );
    }
    expect(readFileSync(inFolder('new')).subarray(0, 4)).toEqual(Buffer.from('QFI\xfb', 'latin1'));
  });

  it('cannot be where a directory is, or in a directory that is not there', () => {
    mkdirSync(inFolder('sub'));
    expect(refusal(inFolder('sub'), { size: MiB })).toMatchObject({ file: inFolder('sub') });
    expect(refusal(inFolder('none/x'), { size: MiB })).toMatchObject({ code: 'HOST' });
    expect(readdirSync(folder())).toEqual(['sub']);
  });

  itPeers(['root', 'mount'], 'on a full filesystem is removed', () => {
    const mounted = inFolder('full');
    mkdirSync(mounted);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'tmpfs', mounted]);
    try {
      for (const preallocation of ['full', 'falloc'] as const) {
        const error = refusal(join(mounted, 'new'), { size: 10 * MiB, preallocation });
        expect(error).toMatchObject({ code: 'HOST' });
        expect(String(error)).toContain('no space left');
      }
      expect(readdirSync(mounted)).toEqual([]);
    } finally {
      execFileSync('umount', [mounted]);
    }
  });
});

it('a symbolic link stays one, and what it points to is made', () => {
  symlinkSync('target', inFolder('link'));
  createImage(inFolder('link'), { size: MiB });
  expect(readdirSync(folder()).sort()).toEqual(['link', 'target']);
  createImage(inFolder('link'), { size: 2 * MiB });
  expect(qemuImgJson('info', inFolder('target'))).toMatchObject({ 'virtual-size': 2 * MiB });
});

it('an existing file is made as short as the new image', () => {
  const path = makeFile('existing');
  truncateSync(path, 10 * MiB);
  createImage(path, { size: MiB });
  expect(statSync(path).size).toBe(196_616);
});

describe('raw images', () => {
  it.each(['off', 'falloc', 'full'] as const)('with preallocation=%s', (preallocation) => {
    const path = makeFile('raw');
    createImage(path, { format: 'raw', size: 3 * MiB + 100, preallocation });
    const { size, blocks } = statSync(path);
    expect(size).toBe(3 * MiB + 512);
    expect(blocks * 512 >= 3 * MiB).toBe(preallocation !== 'off');
    expect(readFileSync(path).every((byte) => byte === 0)).toBe(true);
  });
});

describe('block devices', () => {
  function withLoopDevice(use: (device: string) => void): void {
    writeFileSync(inFolder('device'), Buffer.alloc(10 * MiB, 0xaa));
    const text = execFileSync('losetup', ['--find', '--show', inFolder('device')], {
      encoding: 'utf8',
    });
    try {
      use(text.trim());
    } finally {
      execFileSync('losetup', ['-d', text.trim()]);
    }
  }

  itPeers(['loop'], 'hold qcow2 images, whatever was there before', () => {
    withLoopDevice((device) => {
      createImage(device, { size: 2 ** 40 });
      expect(qemuImgJson('check', '-f', 'qcow2', device)).toMatchObject({ 'check-errors': 0 });
      createImage(device, { size: 5 * MiB, preallocation: 'metadata' });
      expect(qemuImgJson('check', device)).toMatchObject({ 'allocated-clusters': 80 });
      const tooLarge = { size: 20 * MiB, preallocation: 'metadata' } as const;
      expect(refusal(device, tooLarge)).toMatchObject({ code: 'HOST' });
      // Neither the old image nor half of a new one.
      expect(qemuImgJson('info', device)).toMatchObject({ format: 'raw' });
      expect(refusal(device, { size: MiB, preallocation: 'full' })).toMatchObject({
        code: 'INVALID_OPTION',
      });
    });
  });

  itPeers(['loop'], 'become raw images if they are large enough', () => {
    withLoopDevice((device) => {
      createImage(device, { size: MiB });
      createImage(device, { format: 'raw', size: 10 * MiB });
      expect(qemuImgJson('info', device)).toMatchObject({ format: 'raw' });
      expect(refusal(device, { format: 'raw', size: 11 * MiB })).toMatchObject({ code: 'HOST' });
    });
  });

  itPeers(['loop', 'mkfs.ext4', 'mount'], 'are refused while they are mounted', () => {
    withLoopDevice((device) => {
      execFileSync('mkfs.ext4', ['-q', '-F', device], { stdio: 'ignore' });
      mkdirSync(inFolder('mounted'));
      execFileSync('mount', [device, inFolder('mounted')]);
      try {
        expect(refusal(device, { size: MiB })).toMatchObject({ code: 'REFUSED' });
      } finally {
        execFileSync('umount', [inFolder('mounted')]);
      }
    });
  });
});
