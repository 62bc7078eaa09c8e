import { cpSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import { command } from '../../src/cli/commands/commit.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo, tryRun } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';
import { ProgramFile } from './killed-command.ts';
import { runCommand } from './run-command.ts';
import { signalWhenHeard } from './signals.ts';
import { expectAsQemu, expectClean, expectSameImage, makeTwins } from './twins.ts';
import type { Twins } from './twins.ts';

const committed = { exitCode: 0, stdout: 'Image committed.\n', stderr: '' };

/** How the layers of a chain are made. */
interface ChainOptions {
  base?: string[];
  mid?: string[];
  top?: string[];
  baseSize?: string;
  topSize?: string;
}

/** `base.raw` or `base.qcow2` below `mid.qcow2` below `top.qcow2`, each with some data. */
function makeChain(options: ChainOptions = {}, baseFormat = 'qcow2'): Twins {
  const { base = [], mid = [], top = [], baseSize = '4M', topSize = '6M' } = options;
  return makeTwins((directory) => {
    const path = (name: string) => join(directory, name);
    const baseName = `base.${baseFormat}`;
    qemuImg('create', '-q', '-f', baseFormat, ...base, path(baseName), baseSize);
    qemuIo(path(baseName), ['write -q -P 9 0 3M', `write -q -P 8 3584k 512k`], baseFormat);
    const midOptions = ['-b', baseName, '-F', baseFormat, ...mid];
    qemuImg('create', '-q', '-f', 'qcow2', ...midOptions, path('mid.qcow2'), '4M');
    qemuIo(path('mid.qcow2'), ['write -q -P 1 1M 100k', 'write -q -z 256k 128k']);
    const topOptions = ['-b', 'mid.qcow2', '-F', 'qcow2', ...top];
    qemuImg('create', '-q', '-f', 'qcow2', ...topOptions, path('top.qcow2'), topSize);
    const last = topSize === '6M' ? ['write -q -P 3 5M 64k'] : [];
    qemuIo(path('top.qcow2'), [
      'write -q -P 2 2M 100k',
      'write -q -P 4 1030k 7k',
      'write -q -z 640k 64k',
      'discard -q 768k 128k',
      ...last,
    ]);
  });
}

function expectSameChain(twins: Twins, { baseFormat = 'qcow2', allocation = true } = {}): void {
  expectSameImage(twins, 'top.qcow2', { allocation });
  expectSameImage(twins, 'mid.qcow2', { allocation });
  expectSameImage(twins, `base.${baseFormat}`, { format: baseFormat, allocation });
}

describePeers(['qemu-img', 'qemu-io'], 'as qemu-img commit', () => {
  test.each([
    [[]],
    [['-d']],
    [['-q']],
    [['-f', 'qcow2', '-t', 'none']],
    [['-t', 'writethrough']],
    [['-r', '100M']],
    [['-b', 'mid.qcow2']],
    [['-b', 'DIR/mid.qcow2']],
    [['-b', './mid.qcow2', '-d']],
    [['-b', 'base.qcow2']],
    [['-d', '-b', 'DIR/base.qcow2']],
    [['-b', 'missing.qcow2']],
    [['-b', 'top.qcow2']],
    [['-r', 'odd']],
    [['-t', 'odd']],
    [['-f', 'raw']],
    [['--odd']],
  ])('%j', async (args) => {
    const twins = makeChain();
    await expectAsQemu(command, twins, [...args, 'DIR/top.qcow2']);
    expectSameChain(twins);
  });

  const variants: Record<string, ChainOptions> = {
    'version 2': { base: ['-o', 'compat=0.10'], top: ['-o', 'compat=0.10'] },
    'small clusters above': { mid: ['-o', 'cluster_size=4k'], top: ['-o', 'cluster_size=512'] },
    'large clusters above': { base: ['-o', 'cluster_size=4k'], top: ['-o', 'cluster_size=1M'] },
    'extended L2': {
      base: ['-o', 'extended_l2=on'],
      top: ['-o', 'extended_l2=on,cluster_size=128k'],
    },
    'lazy refcounts': { base: ['-o', 'lazy_refcounts=on'], top: ['-o', 'lazy_refcounts=on'] },
    'a base that is longer than all': { baseSize: '8M' },
    'a base of the same size': { baseSize: '6M' },
    'a top that is shorter': { topSize: '3M' },
  };
  // Zeroes that are no whole cluster below are told or written at another grain than QEMU's.
  const unlike = ['version 2', 'small clusters above', 'large clusters above'];
  describe.each(Object.keys(variants))('%s', (name) => {
    test.each([[[]], [['-b', 'base.qcow2']]])('%j', async (args) => {
      const twins = makeChain(variants[name]);
      await expectAsQemu(command, twins, [...args, 'DIR/top.qcow2']);
      expectSameChain(twins, { allocation: !unlike.includes(name) });
    });
  });

  test('to a raw image, and down all the way', async () => {
    const twins = makeChain({}, 'raw');
    await expectAsQemu(command, twins, ['-b', 'base.raw', 'DIR/top.qcow2']);
    expectSameChain(twins, { baseFormat: 'raw' });
    const again = makeChain({}, 'raw');
    await expectAsQemu(command, again, ['DIR/top.qcow2']);
    await expectAsQemu(command, again, ['DIR/mid.qcow2']);
    expectSameChain(again, { baseFormat: 'raw' });
    const { size } = statSync(join(again.ours, 'base.raw'));
    expect(size).toBe(6 * 1024 * 1024);
  });

  test('an overlay with snapshots and bitmaps, a base with bitmaps', async () => {
    const twins = makeChain();
    for (const directory of [twins.ours, twins.theirs]) {
      qemuImg('snapshot', '-c', 'before', join(directory, 'top.qcow2'));
      qemuImg('bitmap', '--add', join(directory, 'top.qcow2'), 'changes');
      qemuImg('bitmap', '--add', join(directory, 'mid.qcow2'), 'changes');
    }
    await expectAsQemu(command, twins, ['DIR/top.qcow2']);
    expectSameChain(twins);
    const [ours, theirs] = [twins.ours, twins.theirs].map((directory) => {
      const raw = join(directory, 'before.raw');
      qemuImg('convert', '-l', 'before', '-O', 'raw', join(directory, 'top.qcow2'), raw);
      return raw;
    });
    expect(tryRun('cmp', [ours!, theirs!]).exitCode).toBe(0);
  });

  test('what has no backing file', async () => {
    const twins = makeChain({}, 'raw');
    const { stderr } = await expectAsQemu(command, twins, ['-f', 'raw', 'DIR/base.raw']);
    expect(stderr).toContain('no backing file');
  });

  test('a backing file that somebody else reads is left alone', async () => {
    const twins = makeChain();
    using reader = openImage(join(twins.ours, 'mid.qcow2'));
    const { exitCode, stderr } = await runCommand(command, [join(twins.ours, 'top.qcow2')]);
    expect(exitCode).toBe(1);
    expect(stderr).toContain(reader.path);
    expectSameChain(twins);
  });
});

describePeers(['qemu-img', 'qemu-io'], 'progress and rate', () => {
  test('-p tells of it, unless -q', async () => {
    const twins = makeChain();
    const path = join(twins.ours, 'top.qcow2');
    const { stdout } = await runCommand(command, ['-p', '-d', path]);
    expect(stdout).toMatch(
      /^ {4}\(0\.00\/100%\)\r( {4}\(\d+\.\d\d\/100%\)\r)+\nImage committed\.\n$/,
    );
    expect(stdout).toContain('(100.00/100%)\r\n');
    expect(await runCommand(command, ['-p', '-q', path])).toEqual({ ...committed, stdout: '' });
  });

  test('-r holds it back', async () => {
    const path = join(makeChain().ours, 'top.qcow2');
    const start = performance.now();
    // 256 KiB of data.
    expect(await runCommand(command, ['-r', '512k', path])).toEqual(committed);
    expect(performance.now() - start).toBeGreaterThan(350);
  });
});

describePeers(['qemu-img', 'qemu-io'], 'interrupted at any moment', () => {
  let program: ProgramFile;
  beforeAll(async () => {
    program = await ProgramFile.create();
  });
  afterAll(() => program.dispose());

  /** An overlay of 16 MiB of data in small clusters, and its content as a raw image. */
  function makeLong(directory: string): void {
    const [base, top] = [join(directory, 'base.qcow2'), join(directory, 'top.qcow2')];
    const options = ['-q', '-f', 'qcow2', '-o', 'cluster_size=4k'];
    qemuImg('create', ...options, base, '32M');
    qemuIo(base, ['write -q -P 1 0 20M']);
    qemuImg('create', ...options, '-b', 'base.qcow2', '-F', 'qcow2', top);
    qemuIo(top, ['write -q -P 2 8M 8M', 'write -q -z 1M 1M', 'write -q -P 3 21M 8M']);
    qemuImg('convert', '-O', 'raw', top, join(directory, 'content.raw'));
  }

  /** Expects of both images that nothing is wrong with them, apart from leaks. */
  function expectValid(directory: string): void {
    for (const name of ['base.qcow2', 'top.qcow2']) {
      const { exitCode, stdout } = tryRun('qemu-img', ['check', join(directory, name)]);
      expect([0, 3], stdout).toContain(exitCode);
    }
    const [top, content] = [join(directory, 'top.qcow2'), join(directory, 'content.raw')];
    qemuImg('compare', '-q', '-F', 'raw', top, content);
  }

  test('killed, the overlay reads as before and can be committed again', async () => {
    const original = temporaryDirectory();
    makeLong(original);
    const copy = () => {
      const directory = join(temporaryDirectory(), 'copy');
      cpSync(original, directory, { recursive: true });
      return directory;
    };
    const whole = copy();
    const args = (directory: string) => ['commit', '-r', '40M', join(directory, 'top.qcow2')];
    const { duration, ...ending } = await program.run(args(whole));
    expect(ending).toEqual({ ...committed, signal: null });
    expectValid(whole);
    let killed = 0;
    let shortest = duration;
    for (let round = 0; round < 6 || (killed < 3 && round < 20); round++) {
      const directory = copy();
      // Starting takes a part of the time.
      const killAfterMs = shortest * (0.2 + 0.85 * Math.random());
      const { signal, duration: taken } = await program.run(args(directory), { killAfterMs });
      if (signal === 'SIGKILL') killed++;
      else shortest = Math.min(shortest, taken);
      expectValid(directory);
      expect(await runCommand(command, [join(directory, 'top.qcow2')])).toEqual(committed);
      expectValid(directory);
      qemuImg('compare', '-q', join(directory, 'base.qcow2'), join(whole, 'base.qcow2'));
    }
    expect(killed).toBeGreaterThan(2);
  }, 120_000);

  test('Ctrl-C says what is left, and SIGUSR1 how far it is', async () => {
    const directory = temporaryDirectory();
    makeLong(directory);
    const path = join(directory, 'top.qcow2');
    const args = ['commit', '-r', '4M', path];
    const { exitCode, stdout, stderr } = await program.run(args, {
      killAfterMs: 4000,
      signal: 'SIGINT',
    });
    expect({ exitCode, stdout, stderr }).toEqual({
      exitCode: 130,
      stdout: '',
      stderr: `qcow2: interrupted; ${path} still has all its data, and can be committed again\n`,
    });
    expectValid(directory);
    expectClean(path);
    const timer = signalWhenHeard('SIGUSR1');
    const result = await runCommand(command, ['-r', '100M', path]);
    clearInterval(timer);
    expect(result.stderr).toMatch(/^ {4}\(\d+\.\d\d\/100%\)\n$/);
    expect(result).toMatchObject({ exitCode: 0, stdout: 'Image committed.\n' });
  }, 60_000);
});

describe('bad use', () => {
  test.each([
    [['--image-opts', 'driver=qcow2'], 'A block device must be specified'],
    [['--object', 'secret', 'a'], '--object is not supported here'],
    [[], 'expected IMAGE'],
    [['a', 'b'], "unexpected argument 'b'"],
    [['-t', 'odd', 'a'], '-t must be one of none, writeback'],
    [['-r', 'odd', 'a'], "the rate 'odd' is not a size"],
    [['/missing/image'], 'no such file or directory'],
  ])('%j', async (args, message) => {
    const { exitCode, stdout, stderr } = await runCommand(command, args);
    expect({ exitCode, stdout }).toEqual({ exitCode: 1, stdout: '' });
    expect(stderr).toContain(message);
  });
});
