import { randomBytes } from 'node:crypto';
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import { command } from '../../src/cli/commands/convert.ts';
import { makeRaw, MiB, scratch } from '../operations/scratch.ts';
import { describePeers, itPeers } from '../support/peers.ts';
import { qemuImg, qemuImgJson, qemuIo, run, tryRun } from '../support/qemu.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { runCommand } from './run-command.ts';
import { expectAsQemu, expectClean, expectSameImage, makeTwins, runTwins } from './twins.ts';
import type { Twins } from './twins.ts';

const template = sharedTemporaryDirectory();

/** Images of up to 8 MiB: data, pieces of clusters, written zeroes and holes. */
function makeSources(directory: string): void {
  if (readdirSync(template).length === 0) makeTemplate();
  run('cp', ['-a', '--sparse=always', `${template}/.`, directory]);
}

function makeTemplate(): void {
  const at = (name: string) => join(template, name);
  qemuImg('create', '-q', '-f', 'qcow2', at('base.qcow2'), '6M');
  qemuIo(at('base.qcow2'), ['write -P 3 0 1M', 'write -P 4 2M 200k', 'write -P 5 5M 1M']);
  const backing = ['-b', 'base.qcow2', '-F', 'qcow2'];
  qemuImg('create', '-q', '-f', 'qcow2', ...backing, at('top.qcow2'), '8M');
  qemuIo(at('top.qcow2'), [
    'write -P 6 64k 64k',
    'write -P 7 1M 100k',
    'write -z 2M 64k',
    'write -P 0 3M 256k',
    'write -c -P 8 4M 64k',
    'write -P 9 7M 512',
  ]);
  qemuImg('convert', '-O', 'raw', at('top.qcow2'), at('disk.raw'));
  qemuImg('create', '-q', '-f', 'raw', at('odd.raw'), '3000000');
  qemuIo(at('odd.raw'), ['write -P 1 2M 100k', 'write -P 2 2999000 1000'], 'raw');
}

/** Converts with both programs, and expects equal images. */
async function expectSame(twins: Twins, ...args: string[]): Promise<void> {
  const { exitCode } = await expectAsQemu(command, twins, [...args, 'DIR/out']);
  expect(exitCode).toBe(0);
  const format = args[args.indexOf('-O') + 1]!;
  // What of a raw file is a hole depends on its filesystem.
  expectSameImage(twins, 'out', { format, allocation: format === 'qcow2' });
}

describePeers(['qemu-img', 'qemu-io'], 'as qemu-img convert', () => {
  test.each([
    [],
    ['-c'],
    ['-S', '0'],
    ['-S', '64k'],
    ['-c', '-S', '0'],
    ['-m', '1'],
    ['-m', '16', '-W'],
    ['-C'],
    ['-t', 'writeback', '-T', 'none'],
    ['-U', '-q'],
    ['-r', '100M'],
    ['--salvage'],
    ['-o', 'compat=0.10'],
    ['-o', 'cluster_size=4k'],
    ['-o', 'cluster_size=512', '-c'],
    ['-o', 'cluster_size=2M'],
    ['-o', 'cluster_size=2M', '-c'],
    ['-o', 'refcount_bits=1'],
    ['-o', 'refcount_bits=1', '-c'],
    ['-o', 'lazy_refcounts=on'],
    ['-o', 'extended_l2=on', '-c'],
    ['-o', 'compression_type=zstd', '-c'],
    ['-o', 'preallocation=metadata'],
    ['-o', 'preallocation=falloc,cluster_size=1M'],
    ['-o', 'preallocation=full'],
    ['-o', 'size=1G'],
  ])('to qcow2 with %j', async (...args) => {
    const twins = makeTwins(makeSources);
    await expectSame(twins, '-O', 'qcow2', ...args, 'DIR/top.qcow2');
    await expectSame(twins, '-f', 'raw', '-O', 'qcow2', ...args, 'DIR/disk.raw');
  });

  test.each([[], ['-o', 'preallocation=falloc'], ['-o', 'preallocation=full'], ['-S', '0']])(
    'to raw with %j',
    async (...args) => {
      const twins = makeTwins(makeSources);
      await expectSame(twins, '-f', 'qcow2', '-O', 'raw', ...args, 'DIR/top.qcow2');
      const [ours, theirs] = [twins.ours, twins.theirs].map((directory) => {
        return statSync(join(directory, 'out')).blocks;
      });
      expect(Math.abs(ours! - theirs!)).toBeLessThanOrEqual(64);
    },
  );

  test.each([[], ['data_file_raw=on']])('into an external data file with %j', async (...more) => {
    const twins = makeTwins(makeSources);
    const options = [...more, 'data_file=DIR/data'].join(',');
    const args = ['-O', 'qcow2', '-o', options, 'DIR/top.qcow2', 'DIR/out'];
    expect((await runTwins(command, twins, args)).ours).toMatchObject({ exitCode: 0, stderr: '' });
    const [ours, theirs] = [join(twins.ours, 'out'), join(twins.theirs, 'out')];
    expect(qemuImg('compare', ours, theirs)).toBe('Images are identical.\n');
    expectClean(ours);
    if (more.length > 0) {
      const data = [twins.ours, twins.theirs].map((each) => readFileSync(join(each, 'data')));
      expect(data[0]!.equals(data[1]!)).toBe(true);
    }
  });

  test.each([[], ['-c'], ['-o', 'compat=0.10'], ['-o', 'cluster_size=4k'], ['-S', '0']])(
    'what the image does not hold is left to the backing file, with %j',
    async (...args) => {
      const twins = makeTwins(makeSources);
      const backing = ['-B', 'base.qcow2', '-F', 'qcow2'];
      await expectSame(twins, '-O', 'qcow2', ...backing, ...args, 'DIR/top.qcow2');
    },
  );

  test('the backing file as a creation option', async () => {
    const twins = makeTwins(makeSources);
    const backing = ['-o', 'backing_file=base.qcow2,backing_fmt=qcow2'];
    await expectSame(twins, '-O', 'qcow2', ...backing, 'DIR/top.qcow2');
  });

  test('several images one behind the other', async () => {
    const twins = makeTwins(makeSources);
    const images = ['DIR/odd.raw', 'DIR/disk.raw', 'DIR/odd.raw'];
    await expectSame(twins, '-f', 'raw', '-O', 'qcow2', ...images);
    await expectSame(twins, '-f', 'raw', '-O', 'qcow2', '-c', ...images);
    await expectSame(twins, '-f', 'raw', '-O', 'raw', ...images);
  });

  test('a disk whose size is no multiple of a sector', async () => {
    const twins = makeTwins(makeSources);
    await expectSame(twins, '-f', 'raw', '-O', 'qcow2', 'DIR/odd.raw');
    await expectSame(twins, '-f', 'raw', '-O', 'qcow2', '-c', 'DIR/odd.raw');
  });

  test('a snapshot', async () => {
    const twins = makeTwins((directory) => {
      makeSources(directory);
      qemuImg('snapshot', '-c', 'before', join(directory, 'top.qcow2'));
      qemuIo(join(directory, 'top.qcow2'), ['write -P 99 0 8M']);
    });
    await expectSame(twins, '-O', 'qcow2', '-l', 'before', 'DIR/top.qcow2');
    await expectSame(twins, '-O', 'qcow2', '-c', '-l', 'snapshot.id=1', 'DIR/top.qcow2');
  });

  test.each([[], ['-S', '0'], ['-c'], ['--target-is-zero']])(
    '-n into an image that exists, with %j',
    async (...args) => {
      for (const options of [[], ['-o', 'compat=0.10'], ['-o', 'extended_l2=on']]) {
        const twins = makeTwins((directory) => {
          makeSources(directory);
          const out = join(directory, 'out');
          qemuImg('create', '-q', '-f', 'qcow2', ...options, out, '9M');
          // QEMU does not write compressed clusters over others.
          if (args.length === 0 || args[0] === '-S') qemuIo(out, ['write -P 77 0 9M']);
        });
        const call = ['-n', '-O', 'qcow2', ...args, 'DIR/top.qcow2', 'DIR/out'];
        expect((await expectAsQemu(command, twins, call)).exitCode).toBe(0);
        const [ours, theirs] = [join(twins.ours, 'out'), join(twins.theirs, 'out')];
        expect(qemuImg('compare', ours, theirs)).toBe('Images are identical.\n');
        expectClean(ours);
      }
    },
  );

  test('-n into an overlay, with and without -B', async () => {
    for (const flags of [[], ['-B', 'base.qcow2', '-F', 'qcow2']]) {
      const twins = makeTwins((directory) => {
        makeSources(directory);
        const backing = ['-b', 'base.qcow2', '-F', 'qcow2'];
        qemuImg('create', '-q', '-f', 'qcow2', ...backing, join(directory, 'out'), '8M');
      });
      const call = ['-n', '-O', 'qcow2', ...flags, 'DIR/top.qcow2', 'DIR/out'];
      expect((await expectAsQemu(command, twins, call)).exitCode).toBe(0);
      expect(qemuImg('compare', join(twins.ours, 'out'), join(twins.ours, 'top.qcow2'))).toBe(
        'Images are identical.\n',
      );
      expectClean(join(twins.ours, 'out'));
    }
  });

  test('an image that exists is replaced', async () => {
    const twins = makeTwins((directory) => {
      makeSources(directory);
      copyFileSync(join(directory, 'top.qcow2'), join(directory, 'out'));
    });
    await expectSame(twins, '-O', 'qcow2', 'DIR/base.qcow2');
  });

  test.each([
    ['-O', 'qcow2', '-B', 'base.qcow2', 'DIR/top.qcow2', 'DIR/out'],
    ['-O', 'qcow2', '-F', 'qcow2', 'DIR/top.qcow2', 'DIR/out'],
    ['-O', 'qcow2', '-B', 'missing', '-F', 'qcow2', 'DIR/top.qcow2', 'DIR/out'],
    ['-O', 'qcow2', '-n', 'DIR/top.qcow2', 'DIR/out'],
    ['-O', 'qcow2', '-n', 'DIR/top.qcow2', 'DIR/disk.raw'],
    ['-O', 'qcow2', '-n', 'DIR/top.qcow2', 'DIR/base.qcow2'],
    ['-O', 'qcow2', 'DIR/top.qcow2', 'DIR/top.qcow2'],
    ['-O', 'qcow2', '-n', 'DIR/top.qcow2', 'DIR/top.qcow2'],
    ['-O', 'qcow2', '-f', 'raw', 'DIR/disk.raw', 'DIR/disk.raw'],
    ['-O', 'qcow2', '-l', 'none', 'DIR/top.qcow2', 'DIR/out'],
    ['-O', 'qcow2', '-o', 'cluster_size=3k', 'DIR/top.qcow2', 'DIR/out'],
    ['-O', 'qcow2', '-c', '-o', 'preallocation=full', 'DIR/top.qcow2', 'DIR/out'],
    ['-O', 'raw', '-c', 'DIR/top.qcow2', 'DIR/out'],
    ['-O', 'qcow2', 'DIR/top.qcow2', 'DIR/missing/out'],
  ])('both refuse %j', async (...args) => {
    const twins = makeTwins(makeSources);
    expect((await expectAsQemu(command, twins, args)).exitCode).toBe(1);
    expect(existsSync(join(twins.ours, 'out'))).toBe(false);
    for (const name of ['top.qcow2', 'base.qcow2', 'disk.raw']) {
      const [ours, theirs] = [join(twins.ours, name), join(twins.theirs, name)];
      expect(readFileSync(ours).equals(readFileSync(theirs)), name).toBe(true);
    }
  });

  test.each(['-o help', '-O qcow2 -o help', '-O qcow2 -o help DIR/disk.raw DIR/out'])(
    '%s lists the creation options',
    async (call) => {
      const twins = makeTwins(makeSources);
      const { ours, theirs } = await runTwins(command, twins, call.split(' '));
      const known = theirs.stdout.split('\n').filter((line) => !line.includes('encrypt'));
      expect(ours.stdout.split('\n').filter((line) => !line.includes('encrypt'))).toEqual(known);
      expect(ours.exitCode).toBe(0);
    },
  );

  /** An image with an enabled, a disabled and an inconsistent bitmap. */
  function makeBitmaps(directory: string): void {
    const image = join(directory, 'bitmaps.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', image, '700M');
    qemuImg('bitmap', '--add', '-g', '512', image, 'fine');
    qemuImg('bitmap', '--add', image, 'coarse');
    qemuIo(image, ['write -P 1 1M 100k', 'write -P 2 600M 1M', 'write -P 3 734003000 200']);
    qemuImg('bitmap', '--disable', image, 'coarse');
    qemuImg('bitmap', '--add', image, 'empty');
  }

  test.each([[], ['-c'], ['-o', 'cluster_size=4k']])('bitmaps, with %j', async (...args) => {
    const twins = makeTwins(makeBitmaps);
    await expectSame(twins, '-O', 'qcow2', '--bitmaps', ...args, 'DIR/bitmaps.qcow2');
    const [a, b] = [twins.ours, twins.theirs].map((each) => {
      using image = openImage(join(each, 'out'));
      if (image.format !== 'qcow2') throw new Error('not qcow2');
      return image.bitmaps.map(({ name }) => [name, [...image.dirtyRanges(name)]]);
    });
    expect(a).toEqual(b);
    expect(a?.[0]?.[1]).toHaveLength(3);
  });

  test('bitmaps that are inconsistent are refused, or left out', async () => {
    const twins = makeTwins((directory) => {
      makeBitmaps(directory);
      const path = join(directory, 'bitmaps.qcow2');
      let offset: number;
      {
        using image = openImage(path);
        offset = image.format === 'qcow2' ? image.bitmaps[0]!.offset : 0;
      }
      const bytes = readFileSync(path);
      // The flag that it is in use, in the last byte of its flags.
      bytes[offset + 15] = bytes[offset + 15]! | 1;
      writeFileSync(path, bytes);
    });
    const refused = ['-O', 'qcow2', '--bitmaps', 'DIR/bitmaps.qcow2', 'DIR/out'];
    expect((await expectAsQemu(command, twins, refused)).exitCode).toBe(1);
    const skipped = ['-O', 'qcow2', '--bitmaps', '--skip-broken-bitmaps'];
    const { ours } = await runTwins(command, twins, [...skipped, 'DIR/bitmaps.qcow2', 'DIR/out']);
    expect(ours.exitCode).toBe(0);
    expect(ours.stderr).toMatch(
      /^qcow2: warning: .* bitmap 'fine' is inconsistent, and left out\n$/,
    );
    using image = openImage(join(twins.ours, 'out'));
    expect(image.format === 'qcow2' && image.bitmaps.map(({ name }) => name)).toEqual([
      'coarse',
      'empty',
    ]);
    expectClean(join(twins.ours, 'out'));
  });

  test('a damaged image is salvaged, with zeroes for what cannot be read', async () => {
    const twins = makeTwins((directory) => {
      const image = join(directory, 'bad.qcow2');
      qemuImg('create', '-q', '-f', 'qcow2', image, '4M');
      qemuIo(image, ['write -P 1 0 1M', 'write -c -P 2 1M 64k', 'write -P 3 2M 64k']);
      const [, compressed] = qemuImgJson('map', image) as { offset?: number }[];
      expect(compressed!.offset).toBeUndefined();
      // The compressed cluster comes after 16 of data: a block of deflate that there is not.
      const bytes = readFileSync(image);
      const at = bytes.length - 65536 - 65536;
      expect(bytes.subarray(at, at + 8).some((byte) => byte !== 0)).toBe(true);
      writeFileSync(image, bytes.fill(0xff, at, at + 64));
    });
    const failed = await expectAsQemu(command, twins, ['DIR/bad.qcow2', 'DIR/out']);
    expect(failed.exitCode).toBe(1);
    expect(failed.stderr).toMatch(
      /cannot be decompressed \(zlib\); the incomplete .* was removed\n$/,
    );
    const call = ['--salvage', '-f', 'qcow2', 'DIR/bad.qcow2', 'DIR/out'];
    const { ours, theirs } = await runTwins(command, twins, call);
    expect([ours.exitCode, theirs.exitCode]).toEqual([0, 0]);
    expect(ours.stderr).toMatch(
      /^qcow2: warning: zeroes take the place of bytes 1048576 to 1114111: .*\n$/,
    );
    const quiet = await runTwins(command, twins, ['-q', ...call]);
    expect(quiet.ours.stderr).toBe('');
    const [a, b] = [twins.ours, twins.theirs].map((each) => readFileSync(join(each, 'out')));
    expect(a!.equals(b!)).toBe(true);
  });
});

describe('limits', () => {
  test('the rate of writing', async () => {
    const source = makeRaw('source.raw', 4 * MiB, [[0, Buffer.alloc(4 * MiB, 1)]]);
    const start = performance.now();
    const args = ['-f', 'raw', '-O', 'qcow2', '-r', '8M', source, scratch('slow.qcow2')];
    expect(await runCommand(command, args)).toMatchObject({ exitCode: 0, stderr: '' });
    expect(performance.now() - start).toBeGreaterThan(450);
  });

  test('a sparse disk of 1 TiB takes less than two seconds', async () => {
    const source = makeRaw('huge.raw', 2 ** 40, [[2 ** 39, Buffer.alloc(MiB, 1)]]);
    for (const flags of [[], ['-c']]) {
      const start = performance.now();
      const args = ['-f', 'raw', '-O', 'qcow2', ...flags, source, scratch('huge.qcow2')];
      expect(await runCommand(command, args)).toMatchObject({ exitCode: 0, stderr: '' });
      expect(performance.now() - start).toBeLessThan(2000);
    }
    expectClean(scratch('huge.qcow2'));
  });
});

describe('an output that is not finished', () => {
  const noise = randomBytes(MiB);

  /** Converts for some tenths of a second, and gets SIGINT in the middle of it. */
  async function interrupted(output: string, ...flags: string[]) {
    const pieces = Array.from({ length: 200 }, (_, index) => [index * MiB, noise] as const);
    const source = makeRaw('long.raw', 200 * MiB, pieces);
    const args = ['-f', 'raw', '-O', 'qcow2', '-r', '100M', ...flags, source, output];
    const timer = setTimeout(() => process.emit('SIGINT', 'SIGINT'), 700);
    const result = await runCommand(command, args);
    clearTimeout(timer);
    rmSync(source);
    return result;
  }

  test.each([[], ['-c'], ['-m', '1']])('is removed if it is new, with %j', async (...flags) => {
    const output = scratch('interrupted.qcow2');
    expect(await interrupted(output, ...flags)).toEqual({
      exitCode: 130,
      stdout: '',
      stderr: `qcow2: interrupted; the incomplete ${output} was removed\n`,
    });
    expect(existsSync(output)).toBe(false);
    expect(process.listenerCount('SIGINT')).toBe(0);
  });

  test('is removed with its data file', async () => {
    const output = scratch('interrupted.qcow2');
    const data = scratch('interrupted.data');
    const { exitCode } = await interrupted(output, '-o', `data_file=${data}`);
    expect([exitCode, existsSync(output), existsSync(data)]).toEqual([130, false, false]);
  });

  test('is empty where there was a file before', async () => {
    const output = makeRaw('interrupted.qcow2', 10);
    expect((await interrupted(output)).stderr).toBe(
      `qcow2: interrupted; ${output}, which was incomplete, is empty now\n`,
    );
    expect(statSync(output).size).toBe(0);
  });

  itPeers(['qemu-img'], 'is still an image with -n, and said to be incomplete', async () => {
    const output = scratch('existing.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', output, '200M');
    expect((await interrupted(output, '-n')).stderr).toBe(
      `qcow2: interrupted; ${output} is incomplete\n`,
    );
    // What was not flushed may be lost, and leaked; nothing is wrong.
    expect([0, 3]).toContain(tryRun('qemu-img', ['check', '-f', 'qcow2', output]).exitCode);
    rmSync(output);
  });

  itPeers(['qemu-img'], 'is left alone if somebody has it open', async () => {
    const output = scratch('used.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', output, '1M');
    const before = readFileSync(output);
    const source = makeRaw('source.raw', MiB, [[0, noise]]);
    const user = openImage(output);
    try {
      for (const flags of [[], ['-n'], ['-n', '-O', 'raw'], ['-O', 'raw']]) {
        const args = ['-f', 'raw', '-O', 'qcow2', ...flags, source, output];
        const { exitCode, stderr } = await runCommand(command, args);
        expect(exitCode, stderr).toBe(1);
        expect(stderr).toMatch(/it is in use: this process itself .*\n$/);
      }
    } finally {
      user.close();
    }
    expect(readFileSync(output).equals(before)).toBe(true);
  });

  itPeers(['root', 'mount'], 'is removed if the filesystem is full', async () => {
    const source = makeRaw('source.raw', 4 * MiB, [[0, randomBytes(4 * MiB)]]);
    const folder = scratch('full');
    mkdirSync(folder);
    run('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', folder]);
    try {
      for (const flags of [[], ['-c'], ['-o', 'preallocation=full']]) {
        const output = `${folder}/out.qcow2`;
        const args = ['-f', 'raw', '-O', 'qcow2', ...flags, source, output];
        const { exitCode, stderr } = await runCommand(command, args);
        expect(exitCode).toBe(1);
        expect(stderr).toMatch(/^qcow2: .*: no space left on the device.*\n$/);
        expect(existsSync(output)).toBe(false);
      }
    } finally {
      run('umount', [folder]);
    }
  });
});
