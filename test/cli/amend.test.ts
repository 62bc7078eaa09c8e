import { copyFileSync, readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import { command } from '../../src/cli/commands/amend.ts';
import { createImage } from '../../src/operations/create.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuImgJson, qemuIo, run, tryRun } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';
import { runCommand } from './run-command.ts';
import { signalWhenHeard } from './signals.ts';
import { expectAsQemu, expectClean, expectSameImage, makeTwins, runTwins } from './twins.ts';
import type { Twins } from './twins.ts';

const amended = { exitCode: 0, stdout: '', stderr: '' };

const DATA = ['write -q -P 1 1M 300k', 'write -q -P 2 9M 1M'];
const ZEROES = ['write -q -z 9M 192k', 'write -q -z -u 4200k 300k'];
const COMPRESSED = ['write -q -c -P 3 4M 64k'];

/** `disk.qcow2` of 10 MiB with data, zero clusters and compressed ones. */
function makeDisk(layout = ''): Twins {
  return makeFilled(layout, [...DATA, ...ZEROES, ...COMPRESSED]);
}

function makeFilled(layout: string, writes: readonly string[]): Twins {
  return makeTwins((directory) => {
    const path = join(directory, 'disk.qcow2');
    const options = layout === '' ? [] : ['-o', layout];
    qemuImg('create', '-q', '-f', 'qcow2', ...options, path, '10M');
    qemuIo(path, writes);
  });
}

/** `disk.qcow2` over a backing file full of data, with zero clusters of both kinds. */
function makeOverlay(layout = ''): Twins {
  return makeTwins((directory) => {
    qemuImg('create', '-q', '-f', 'raw', join(directory, 'base.raw'), '3M');
    qemuIo(join(directory, 'base.raw'), ['write -q -P 9 0 3M'], 'raw');
    const path = join(directory, 'disk.qcow2');
    const backing = ['-F', 'raw', '-b', 'base.raw', ...(layout === '' ? [] : ['-o', layout])];
    qemuImg('create', '-q', '-f', 'qcow2', ...backing, path, '4M');
    qemuIo(path, ['write -q -P 1 0 300k', 'write -q -z 64k 128k', 'write -q -z -u 1M 1M']);
    qemuIo(path, ['write -q -z -u 3M 256k']);
  });
}

async function amendBoth(twins: Twins, ...lists: string[]): Promise<void> {
  const args = lists.flatMap((list) => ['-o', list]);
  expect(await expectAsQemu(command, twins, [...args, 'DIR/disk.qcow2'])).toEqual(amended);
  expectSameImage(twins, 'disk.qcow2');
}

/** Expects both to refuse, and ours to leave the image untouched. */
async function refuseBoth(twins: Twins, ...args: string[]): Promise<string> {
  const path = join(twins.ours, 'disk.qcow2');
  const before = readFileSync(path);
  const { exitCode, stderr } = await expectAsQemu(command, twins, [...args, 'DIR/disk.qcow2']);
  expect(exitCode).toBe(1);
  expect(readFileSync(path).equals(before)).toBe(true);
  return stderr;
}

describePeers(['qemu-img', 'qemu-io'], 'as qemu-img amend', () => {
  test.each([
    ['compat=0.10'],
    ['compat=v2'],
    ['compat=1.1'],
    ['compat=v3'],
    ['lazy_refcounts=on'],
    ['lazy_refcounts'],
    ['nolazy_refcounts'],
    ['size=20M'],
    ['size=12M,compat=0.10'],
    ['size=0'],
    ['size=10M'],
    ['data_file_raw=off'],
    ['compat=0.10,refcount_bits=16,lazy_refcounts=off'],
  ])('-o %s', async (list) => {
    await amendBoth(makeDisk(), list);
  });

  test('one after the other', async () => {
    const twins = makeDisk('compat=0.10,cluster_size=4k');
    for (const list of [
      'compat=1.1,lazy_refcounts=on,refcount_bits=8',
      'refcount_bits=64',
      'size=11M,lazy_refcounts=off',
      'compat=0.10,refcount_bits=16',
      'compat=0.10',
      'compat=1.1,refcount_bits=8,size=20M',
    ]) {
      await amendBoth(twins, list);
    }
    await amendBoth(twins, 'refcount_bits=16', 'compat=0.10');
  });

  test.each([
    'cluster_size=512',
    'cluster_size=2M',
    'cluster_size=1k,refcount_bits=1',
    'cluster_size=8k,refcount_bits=64',
    'lazy_refcounts=on',
    'preallocation=metadata',
  ])('an image with %s', async (layout) => {
    await amendBoth(makeFilled(layout, [...DATA, ...ZEROES]), 'compat=0.10,refcount_bits=16');
  });

  // QEMU takes seconds to look at a large block of narrow counts.
  test.each([
    ['cluster_size=512', [32, 8, 4, 2, 1, 64]],
    ['cluster_size=1k,refcount_bits=1', [2, 4, 64, 1, 32]],
    ['cluster_size=4k,refcount_bits=64', [1, 32, 2, 16]],
    ['cluster_size=64k', [32]],
    ['cluster_size=16k,extended_l2=on', [64]],
    ['cluster_size=4k,compat=0.10', [16]],
  ])('refcounts of an image with %s: %j', async (layout, widths) => {
    const twins = makeFilled(layout, [...DATA, ...ZEROES]);
    for (const bits of widths) await amendBoth(twins, `refcount_bits=${bits}`);
  });

  describe.each(['', 'cluster_size=1k', 'refcount_bits=8,cluster_size=16k'])(
    'overlays with %j',
    (layout) => {
      test('zero clusters that hide a backing file get clusters of zeroes', async () => {
        const twins = makeOverlay(layout);
        await amendBoth(twins, 'compat=0.10,refcount_bits=16');
        qemuIo(join(twins.ours, 'disk.qcow2'), [
          'read -P 1 0 64k',
          'read -P 0 64k 128k',
          'read -P 9 300k 700k',
          'read -P 0 1M 1M',
          'read -P 9 2M 1M',
          'read -P 0 3M 1M',
        ]);
      });
    },
  );

  test('snapshots keep what they show', async () => {
    for (const make of [makeDisk, makeOverlay]) {
      const twins = make('cluster_size=16k');
      for (const directory of [twins.ours, twins.theirs]) {
        const path = join(directory, 'disk.qcow2');
        qemuImg('snapshot', '-c', 'one', path);
        qemuImg('snapshot', '-c', 'two', path);
        qemuIo(path, ['write -q -P 5 2M 100k', 'write -q -z -u 1100k 64k']);
      }
      await amendBoth(twins, 'compat=0.10');
      for (const name of ['one', 'two']) {
        const [ours, theirs] = [twins.ours, twins.theirs].map((directory) => {
          const raw = join(directory, `${name}.raw`);
          qemuImg('convert', '-O', 'raw', '-l', name, join(directory, 'disk.qcow2'), raw);
          return readFileSync(raw);
        });
        expect(ours!.equals(theirs!)).toBe(true);
      }
      await amendBoth(twins, 'compat=1.1');
    }
  });

  test('a zero cluster that keeps the space of a snapshot: its data, which QEMU overwrites', async () => {
    for (const make of [makeDisk, makeOverlay]) {
      const path = join(make().ours, 'disk.qcow2');
      qemuIo(path, ['write -q -P 1 0 1M']);
      qemuImg('snapshot', '-c', 'one', path);
      const before = `${path}.before`;
      qemuIo(path, ['write -q -z 0 512k', 'write -q -P 4 768k 64k']);
      const after = `${path}.after`;
      qemuImg('convert', '-O', 'raw', '-l', 'one', path, before);
      qemuImg('convert', '-O', 'raw', path, after);
      expect(await runCommand(command, ['-o', 'compat=0.10', path])).toEqual(amended);
      qemuImg('compare', '-F', 'raw', path, after);
      qemuImg('convert', '-O', 'raw', '-l', 'one', path, `${before}.2`);
      expect(readFileSync(`${before}.2`).equals(readFileSync(before))).toBe(true);
      expectClean(path);
    }
  });

  test('a cluster that becomes the disk’s own again is flagged so', async () => {
    const path = join(makeDisk().ours, 'disk.qcow2');
    qemuIo(path, ['write -q -P 1 0 64k']);
    qemuImg('snapshot', '-c', 'data', path);
    qemuIo(path, ['write -q -z 0 64k']);
    qemuImg('snapshot', '-c', 'zero', path);
    qemuImg('snapshot', '-a', 'data', path);
    qemuImg('snapshot', '-d', 'data', path);
    expectClean(path);
    expect(await runCommand(command, ['-o', 'compat=0.10', path])).toEqual(amended);
    expectClean(path);
    qemuIo(path, ['read -P 1 0 64k', 'write -q -P 2 0 64k']);
    qemuImg('snapshot', '-a', 'zero', path);
    qemuIo(path, ['read -P 0 0 64k']);
    expectClean(path);
  });

  test('refused, with the image untouched', async () => {
    const twins = makeDisk();
    for (const list of [
      'cluster_size=65536',
      'encryption=off',
      'preallocation=off',
      'extended_l2=off',
      'compression_type=zlib',
      'encrypt.format=luks',
      'odd=1',
      'compat=0.11',
      'compat=',
      'compat',
      '',
      'refcount_bits=7',
      'refcount_bits=0',
      'refcount_bits=128',
      'refcount_bits=x',
      'size=1000000',
      'size=x',
      'data_file=x',
      'data_file=',
      'data_file_raw=on',
      'lazy_refcounts=odd',
      'backing_file=x',
      'backing_fmt=raw',
      'backing_file=,backing_fmt=',
      'compat=0.10,lazy_refcounts=on',
      'compat=0.10,refcount_bits=8',
    ]) {
      await refuseBoth(twins, '-o', list);
    }
    await refuseBoth(twins);
    await refuseBoth(twins, '-o', 'compat=0.10', '-t', 'odd');
    await refuseBoth(twins, '-o', 'compat=0.10', '-f', 'odd');
    expect(await refuseBoth(twins, '-o', 'compat=0.10', '-f', 'raw')).toContain('raw image');
    expectSameImage(twins, 'disk.qcow2');
  });

  test.each([
    ['refcount_bits=8', 'compat=0.10', 'add refcount_bits=16'],
    ['extended_l2=on', 'compat=0.10', 'no extended L2 entries'],
    ['compat=0.10', 'lazy_refcounts=on', 'need compat=1.1'],
    ['compat=0.10', 'refcount_bits=1', 'needs compat=1.1'],
  ])('an image with %s and -o %s', async (layout, list, message) => {
    const twins = makeTwins((directory) => {
      const path = join(directory, 'disk.qcow2');
      qemuImg('create', '-q', '-f', 'qcow2', '-o', layout, path, '10M');
    });
    expect(await refuseBoth(twins, '-o', list)).toContain(message);
  });

  test('a backing file can be named as it is only', async () => {
    const twins = makeOverlay();
    await amendBoth(twins, 'backing_file=base.raw,backing_fmt=raw,lazy_refcounts=on');
    await refuseBoth(twins, '-o', 'backing_file=base.raw');
    await refuseBoth(twins, '-o', 'backing_fmt=raw');
    await refuseBoth(twins, '-o', 'backing_file=,backing_fmt=');
    await refuseBoth(twins, '-o', 'backing_file=other,backing_fmt=raw');
  });

  test('snapshots that keep an image from getting narrow refcounts, or from version 2', async () => {
    const twins = makeDisk('cluster_size=4k');
    for (const directory of [twins.ours, twins.theirs]) {
      const path = join(directory, 'disk.qcow2');
      qemuImg('snapshot', '-c', 'one', path);
      qemuImg('snapshot', '-c', 'two', path);
    }
    expect(await refuseBoth(twins, '-o', 'refcount_bits=1')).toMatch(
      /refcount \(at offset \d+\): a refcount of \d+ does not fit into 1 bits/,
    );
    await amendBoth(twins, 'refcount_bits=8');
    await refuseBoth(twins, '-o', 'size=12M,compat=0.10');
    await refuseBoth(twins, '-o', 'compat=0.10');
    await amendBoth(twins, 'size=12M');
    expect(await refuseBoth(twins, '-o', 'compat=0.10,refcount_bits=16')).toContain('snapshot');
  });

  test('version 2 with snapshots gets another size only with version 3', async () => {
    const twins = makeDisk('compat=0.10');
    for (const directory of [twins.ours, twins.theirs]) {
      qemuImg('snapshot', '-c', 'one', join(directory, 'disk.qcow2'));
    }
    expect(await refuseBoth(twins, '-o', 'size=12M')).toContain('add compat=1.1');
    await amendBoth(twins, 'size=12M,compat=1.1');
  });

  test('options of the command', async () => {
    const twins = makeDisk();
    for (const args of [
      ['-f', 'qcow2', '-o', 'compat=0.10'],
      ['-t', 'none', '-o', 'compat=1.1'],
      ['--force', '-o', 'compat=0.10'],
      ['-q', '-p', '-o', 'compat=1.1'],
    ]) {
      expect(await expectAsQemu(command, twins, [...args, 'DIR/disk.qcow2'])).toEqual(amended);
      expectSameImage(twins, 'disk.qcow2');
    }
  });

  test('-o help', async () => {
    const twins = makeDisk();
    const known = (text: string): string => text.replaceAll(/^ {2}encrypt\..*\n/gm, '');
    for (const args of [
      ['-f', 'qcow2', '-o', 'help'],
      ['-o', 'help', 'DIR/disk.qcow2'],
    ]) {
      const { ours, theirs } = await runTwins(command, twins, args);
      expect(ours).toEqual({ ...theirs, stdout: known(theirs.stdout) });
      expect(ours.stdout).toContain('refcount_bits');
    }
    await expectAsQemu(command, twins, ['-o', 'help']);
    await expectAsQemu(command, twins, ['-f', 'raw', '-o', 'help']);
  });
});

describePeers(['qemu-img', 'qemu-io'], 'where QEMU loses something', () => {
  test('clusters compressed by zstd cannot be read with version 2', async () => {
    const path = join(makeDisk('compression_type=zstd').ours, 'disk.qcow2');
    const { exitCode, stderr } = await runCommand(command, ['-o', 'compat=0.10', path]);
    expect(exitCode).toBe(1);
    expect(stderr).toContain('no clusters compressed by zstd');
    const twins = makeTwins((directory) => {
      const other = join(directory, 'disk.qcow2');
      qemuImg('create', '-q', '-f', 'qcow2', '-o', 'compression_type=zstd', other, '10M');
    });
    await amendBoth(twins, 'compat=0.10');
  });

  test('a smaller size deletes data, and needs --force', async () => {
    const twins = makeDisk();
    const args = ['-o', 'size=5M', join(twins.ours, 'disk.qcow2')];
    const { exitCode, stderr } = await runCommand(command, args);
    expect({ exitCode, stderr }).toEqual({
      exitCode: 1,
      stderr: expect.stringContaining('--force') as string,
    });
    expectSameImage(twins, 'disk.qcow2');
    await expectAsQemu(command, twins, ['--force', '-o', 'size=5M', 'DIR/disk.qcow2']);
    expectSameImage(twins, 'disk.qcow2');
  });

  test('bitmaps are removed with all that they have', async () => {
    const twins = makeDisk();
    for (const directory of [twins.ours, twins.theirs]) {
      const path = join(directory, 'disk.qcow2');
      qemuImg('bitmap', '--add', path, 'one');
      qemuImg('bitmap', '--add', '--disable', path, 'two');
      qemuIo(path, ['write -q -P 7 3M 200k']);
    }
    const { ours } = await runTwins(command, twins, ['-o', 'compat=0.10', 'DIR/disk.qcow2']);
    const path = join(twins.ours, 'disk.qcow2');
    expect(ours).toEqual({
      exitCode: 0,
      stdout: '',
      stderr: `qcow2: warning: ${path}: its 2 bitmaps were removed, compat=0.10 has none\n`,
    });
    expectSameImage(twins, 'disk.qcow2');
    expect(tryRun('qemu-img', ['info', path]).stderr).toBe('');
    expect(await runCommand(command, ['-o', 'compat=1.1', path])).toEqual(amended);
  });

  test('bitmaps stay when refcounts change', async () => {
    const twins = makeDisk('cluster_size=8k');
    for (const directory of [twins.ours, twins.theirs]) {
      const path = join(directory, 'disk.qcow2');
      qemuImg('bitmap', '--add', path, 'one');
      qemuIo(path, ['write -q -P 7 3M 200k']);
    }
    await amendBoth(twins, 'refcount_bits=32,lazy_refcounts=on');
    const path = join(twins.ours, 'disk.qcow2');
    qemuImg('bitmap', '--add', path, 'copy');
    qemuImg('bitmap', '--merge', 'one', path, 'copy');
  });
});

describePeers(['qemu-img', 'qemu-io'], 'external data files', () => {
  function makeWithData(...options: string[]): string {
    const directory = temporaryDirectory();
    const layout = ['data_file=disk.data', ...options].join();
    const cwd = { cwd: directory };
    run('qemu-img', ['create', '-q', '-f', 'qcow2', '-o', layout, 'disk.qcow2', '1M'], cwd);
    run('qemu-io', ['-c', 'write -q -P 1 0 300k', 'disk.qcow2'], cwd);
    return directory;
  }

  test('get another name', async () => {
    const directory = makeWithData('data_file_raw=on');
    const path = join(directory, 'disk.qcow2');
    const args = ['-o', 'data_file=moved.data,data_file_raw=on,refcount_bits=8', path];
    expect(await runCommand(command, args)).toEqual(amended);
    renameSync(join(directory, 'disk.data'), join(directory, 'moved.data'));
    run('qemu-io', ['-c', 'read -P 1 0 300k', 'disk.qcow2'], { cwd: directory });
    run('qemu-img', ['check', 'disk.qcow2'], { cwd: directory });
    const info = qemuImgJson('info', path) as { 'format-specific': { data: object } };
    expect(info['format-specific'].data).toMatchObject({
      'data-file': 'moved.data',
      'data-file-raw': true,
      'refcount-bits': 8,
    });
  });

  test('need not stay raw, cannot become so, and keep a name', async () => {
    const directory = makeWithData('data_file_raw=on');
    const path = join(directory, 'disk.qcow2');
    expect(await runCommand(command, ['-o', 'data_file_raw=off', path])).toEqual(amended);
    const info = qemuImgJson('info', path) as { 'format-specific': { data: object } };
    expect(info['format-specific'].data).toMatchObject({ 'data-file-raw': false });
    for (const [list, message] of [
      ['data_file_raw=on', 'cannot be switched on'],
      ['data_file=', 'is empty'],
      ['compat=0.10', 'no external data files'],
    ]) {
      copyFileSync(path, `${path}.before`);
      const { exitCode, stderr } = await runCommand(command, ['-o', list!, path]);
      expect(exitCode).toBe(1);
      expect(stderr).toContain(message);
      expect(readFileSync(path).equals(readFileSync(`${path}.before`))).toBe(true);
    }
  });
});

describePeers(['qemu-img', 'qemu-io'], 'how far it is', () => {
  /** 256 MiB of zero clusters that hide what is behind them, in 512 tables. */
  function makeLong(): string {
    const path = join(temporaryDirectory(), 'disk.qcow2');
    const size = 256 * 1024 * 1024;
    createImage(`${path}.base`, { format: 'raw', size });
    createImage(path, {
      clusterSize: 2048,
      backingFile: `${path}.base`,
      backingFormat: 'raw',
    });
    using image = openImage(path, { writable: true });
    image.writeZeroes(0, size, { mayUnmap: true });
    return path;
  }

  test('-p', async () => {
    const path = makeLong();
    const { exitCode, stdout } = await runCommand(command, ['-p', '-o', 'compat=0.10', path]);
    expect(exitCode).toBe(0);
    expect(stdout).toMatch(/^ {4}\(0\.00\/100%\)\r( {4}\(\d+\.\d\d\/100%\)\r){50,}\n$/);
    expect(stdout).toMatch(/ {4}\(100\.00\/100%\)\r\n$/);
    const quick = await runCommand(command, ['-p', '-o', 'compat=1.1', path]);
    expect(quick.stdout).toBe('    (0.00/100%)\r    (100.00/100%)\r\n');
  });

  test('interrupted, it is not amended', async () => {
    const path = makeLong();
    const timer = signalWhenHeard('SIGINT');
    const args = ['-o', 'compat=0.10,size=300M', path];
    const result = await runCommand(command, args);
    clearInterval(timer);
    expect(result).toEqual({
      exitCode: 130,
      stdout: '',
      stderr: `qcow2: interrupted; ${path} has its new size, and is not amended otherwise\n`,
    });
    qemuIo(path, ['read -P 0 0 300M']);
    expectClean(path);
    const info = qemuImgJson('info', path) as { 'format-specific': { data: object } };
    expect(info['format-specific'].data).toMatchObject({ compat: '1.1' });
    expect(await runCommand(command, ['-o', 'compat=0.10', path])).toEqual(amended);
    expectClean(path);
  });
});

describe('bad use', () => {
  test.each([
    [['-o', 'compat=1.1'], 'expected IMAGE'],
    [['a'], 'say what to change'],
    [['-o', 'compat=1.1', 'a', 'b'], "unexpected argument 'b'"],
    [['-o', 'lazy_refcont=on', 'a'], 'did you mean lazy_refcounts?'],
    [['-o', 'cluster_size=4k', 'a'], '-o cluster_size is for new images'],
    [['-o', 'encrypt.state=active', 'a'], 'encrypted images'],
  ])('%j', async (args, message) => {
    const { exitCode, stdout, stderr } = await runCommand(command, args);
    expect({ exitCode, stdout }).toEqual({ exitCode: 1, stdout: '' });
    expect(stderr).toContain(message);
    expect(stderr).toMatch(/^qcow2: .+\n$/);
  });
});
