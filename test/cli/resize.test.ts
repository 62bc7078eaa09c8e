import { randomBytes } from 'node:crypto';
import { statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { command } from '../../src/cli/commands/resize.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo, run } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';
import { runCommand } from './run-command.ts';
import { signalWhenHeard } from './signals.ts';
import { expectAsQemu, expectClean, expectSameImage, makeTwins, runTwins } from './twins.ts';
import type { Twins } from './twins.ts';

const MiB = 1024 * 1024;
const resized = { exitCode: 0, stdout: 'Image resized.\n', stderr: '' };

/** `disk.qcow2` of 10 MiB with some data, up to its end. */
function makeDisk(...options: string[]): Twins {
  return makeTwins((directory) => {
    const path = join(directory, 'disk.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', ...options, path, '10M');
    qemuIo(path, ['write -q -P 1 1M 300k', 'write -q -P 2 9M 1M']);
  });
}

/** `disk.raw` of 3000 bytes. */
function makeRaw(): Twins {
  return makeTwins((directory) => {
    writeFileSync(join(directory, 'disk.raw'), randomBytes(3000));
  });
}

/** `disk.qcow2` of 10 MiB, over a backing file of 20 MiB of data. */
function makeOverlay(...options: string[]): Twins {
  return makeTwins((directory) => {
    const base = join(directory, 'base.raw');
    writeFileSync(base, randomBytes(20 * MiB));
    const path = join(directory, 'disk.qcow2');
    const backing = ['-F', 'raw', '-b', 'base.raw'];
    qemuImg('create', '-q', '-f', 'qcow2', ...backing, ...options, path, '10M');
  });
}

function qemuInDirectory(cwd: string, args: readonly string[]): string {
  return run('qemu-img', args, { cwd });
}

describePeers(['qemu-img', 'qemu-io'], 'as qemu-img resize', () => {
  test.each([
    [['20M']],
    [['+1M']],
    [['+512']],
    [['-f', 'qcow2', '1.5G']],
    [['--shrink', '5M']],
    [['--shrink', '-5M']],
    [['--shrink', '--', '-1M']],
    [['-q', '12M']],
    [['--preallocation=off', '0x1000000']],
    [['--preallocation=metadata', '+3M']],
    [['--preallocation', 'falloc', '+3M']],
    [['--preallocation=full', '+3M']],
    [['10M']],
    [['-3M']],
    [['5M']],
    [['1000']],
    [['+1000']],
    [['0']],
    [['--shrink', '0']],
    [['--shrink', '-1G']],
    [['odd']],
    [['']],
    [['+']],
    [['7E']],
    [['--preallocation=odd', '20M']],
    [['--preallocation=metadata', '10M']],
    [['--preallocation=metadata', '--shrink', '9M']],
    [['-f', 'odd', '20M']],
    [['--odd', '20M']],
  ])('a qcow2 image: %j', async (args) => {
    const twins = makeDisk();
    await expectAsQemu(command, twins, [...args.slice(0, -1), 'DIR/disk.qcow2', args.at(-1)!]);
    expectSameImage(twins, 'disk.qcow2');
  });

  test.each([
    [['3072']],
    [['+1']],
    [['+1M']],
    [['--shrink', '1000']],
    [['--shrink', '-512']],
    [['1000']],
    [['--preallocation=falloc', '1M']],
    [['--preallocation=full', '1M']],
    [['--preallocation=metadata', '1M']],
  ])('a raw image: %j', async (args) => {
    const twins = makeRaw();
    const options = ['-f', 'raw', ...args.slice(0, -1)];
    await expectAsQemu(command, twins, [...options, 'DIR/disk.raw', args.at(-1)!]);
    expectSameImage(twins, 'disk.raw', { format: 'raw' });
    const [ours, theirs] = [
      statSync(join(twins.ours, 'disk.raw')),
      statSync(join(twins.theirs, 'disk.raw')),
    ];
    expect(ours.size).toBe(theirs.size);
    expect(Math.abs(ours.blocks - theirs.blocks)).toBeLessThanOrEqual(8);
  });

  test('what is taken for raw unasked gets a warning', async () => {
    const twins = makeRaw();
    const { stdout, stderr } = await expectAsQemu(command, twins, ['DIR/disk.raw', '1M']);
    expect(stdout).toBe('Image resized.\n');
    expect(stderr).toMatch(/^qcow2: warning: .*say -f raw if it is\n$/);
  });

  describe.each(['off', 'metadata', 'falloc', 'full'])('preallocation %s', (mode) => {
    const variants: Record<string, string[]> = {
      plain: [],
      'small clusters': ['-o', 'cluster_size=4k'],
      'extended L2': ['-o', 'extended_l2=on,cluster_size=32k'],
      'wide refcounts': ['-o', 'refcount_bits=64'],
      'lazy refcounts': ['-o', 'lazy_refcounts=on'],
    };
    test.each(Object.keys(variants))('%s', async (name) => {
      const twins = makeDisk(...variants[name]!);
      await expectAsQemu(command, twins, [`--preallocation=${mode}`, 'DIR/disk.qcow2', '+5M']);
      expectSameImage(twins, 'disk.qcow2');
      const [ours, theirs] = [twins.ours, twins.theirs].map((directory) =>
        statSync(join(directory, 'disk.qcow2')),
      );
      expect(ours!.blocks / 2048).toBeCloseTo(theirs!.blocks / 2048, 0);
    });

    test.each([[[]], [['-o', 'extended_l2=on']]])(
      'over a longer backing file %j',
      async (options) => {
        const twins = makeOverlay(...options);
        await expectAsQemu(command, twins, [`--preallocation=${mode}`, 'DIR/disk.qcow2', '+5M']);
        expectSameImage(twins, 'disk.qcow2');
      },
    );

    test('an external data file', async () => {
      const twins = makeTwins((directory) => {
        const options = ['-q', '-f', 'qcow2', '-o', 'data_file=disk.data'];
        qemuInDirectory(directory, ['create', ...options, 'disk.qcow2', '10M']);
      });
      const args = [`--preallocation=${mode}`, 'disk.qcow2', '+5M'];
      // QEMU finds the data file in its working directory only.
      qemuInDirectory(twins.theirs, ['resize', ...args]);
      const path = join(twins.ours, 'disk.qcow2');
      expect(await runCommand(command, [args[0]!, path, '+5M'])).toEqual(resized);
      for (const directory of [twins.ours, twins.theirs]) {
        const { size, blocks } = statSync(join(directory, 'disk.data'));
        expect(size).toBe(15 * MiB);
        if (mode === 'falloc' || mode === 'full') expect(blocks).toBeGreaterThanOrEqual(10240);
        else expect(blocks).toBeLessThan(2048);
        qemuInDirectory(directory, ['check', 'disk.qcow2']);
      }
      const [ours, theirs] = [twins.ours, twins.theirs].map((directory) => {
        const map = qemuInDirectory(directory, ['map', '--output=json', 'disk.qcow2']);
        const entries = JSON.parse(map) as { length: number; data: boolean }[];
        // Which of the stored bytes are holes is for the host's filesystem to say.
        const stored = entries.filter(({ data }) => data);
        return stored.reduce((sum, { length }) => sum + length, 0);
      });
      expect(ours).toBe(theirs);
    });
  });

  test('space that was freed before is not shown by preallocated clusters', async () => {
    const path = join(temporaryDirectory(), 'disk.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', path, '10M');
    qemuIo(path, ['write -q -P 7 0 8M', 'write -q -P 9 9M 64k']);
    qemuImg('snapshot', '-c', 'old', path);
    qemuIo(path, ['write -q -P 8 0 8M']);
    qemuImg('snapshot', '-d', 'old', path);
    for (const mode of ['metadata', 'falloc', 'full']) {
      expect(await runCommand(command, [`--preallocation=${mode}`, path, '+2M'])).toEqual(resized);
    }
    qemuIo(path, ['read -P 8 0 8M', 'read -P 9 9M 64k', 'read -P 0 10M 6M']);
    expectClean(path);
  });

  test('version 2: what the backing file would show is overwritten, where QEMU fails', async () => {
    const twins = makeOverlay('-o', 'compat=0.10');
    for (const mode of ['off', 'metadata']) {
      const args = [`--preallocation=${mode}`, 'DIR/disk.qcow2', '+2M'];
      const { ours, theirs } = await runTwins(command, twins, args);
      expect(ours).toEqual(resized);
      expect(theirs.exitCode).toBe(1);
    }
    const path = join(twins.ours, 'disk.qcow2');
    qemuIo(path, ['read -P 0 10M 4M']);
    expectClean(path);
  });
});

describePeers(['qemu-img'], 'resizing what cannot be', () => {
  test('version 2 with snapshots', async () => {
    const twins = makeTwins((directory) => {
      const path = join(directory, 'disk.qcow2');
      qemuImg('create', '-q', '-f', 'qcow2', '-o', 'compat=0.10', path, '10M');
      qemuImg('snapshot', '-c', 'one', path);
    });
    const { stderr } = await expectAsQemu(command, twins, ['DIR/disk.qcow2', '+1M']);
    expect(stderr).toContain('snapshots');
    expectSameImage(twins, 'disk.qcow2');
  });

  test('no space left: the size is the old one, and nothing is lost', async () => {
    const twins = makeDisk();
    const path = join(twins.ours, 'disk.qcow2');
    // More than any filesystem has.
    for (const mode of ['falloc', 'full']) {
      const result = await runCommand(command, [`--preallocation=${mode}`, path, '512T']);
      expect(result).toMatchObject({ exitCode: 1, stdout: '' });
      expect(result.stderr).toContain('no space left on the device');
    }
    expectSameImage(twins, 'disk.qcow2');
  });

  test('interrupted preallocation leaves the old size', async () => {
    const twins = makeDisk();
    const path = join(twins.ours, 'disk.qcow2');
    const timer = signalWhenHeard('SIGINT');
    const result = await runCommand(command, ['--preallocation=metadata', path, '8T']);
    clearInterval(timer);
    expect(result).toEqual({
      exitCode: 130,
      stdout: '',
      stderr: `qcow2: interrupted; ${path} has its old size again\n`,
    });
    expectSameImage(twins, 'disk.qcow2');
  });

  test('progress of preallocation', async () => {
    const path = join(makeDisk().ours, 'disk.qcow2');
    const { stdout } = await runCommand(command, ['-p', '--preallocation=full', path, '138M']);
    expect(stdout).toBe('    (0.00/100%)\r    (50.00/100%)\r    (100.00/100%)\r\nImage resized.\n');
  });
});

describe('bad use', () => {
  test.each([
    [['--image-opts', 'driver=qcow2', '1G'], 'A block device must be specified'],
    [['--object', 'secret', 'a', '1G'], '--object is not supported here'],
    [['a'], 'expected IMAGE [+|-]SIZE'],
    [['a', 'b', '1G'], "unexpected argument '1G'"],
    [['-f', 'vmdk', 'a', '1G'], "-f must be one of qcow2, raw, not 'vmdk'"],
    [['a', '99999999999999999999'], 'is too large'],
  ])('%j', async (args, message) => {
    const { exitCode, stdout, stderr } = await runCommand(command, args);
    expect({ exitCode, stdout }).toEqual({ exitCode: 1, stdout: '' });
    expect(stderr).toContain(message);
  });

  test('a directory', async () => {
    const { exitCode, stderr } = await runCommand(command, [temporaryDirectory(), '1G']);
    expect(exitCode).toBe(1);
    expect(stderr).toMatch(/^qcow2: .+\n$/);
  });
});
