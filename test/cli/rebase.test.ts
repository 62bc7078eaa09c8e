import { cpSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { command } from '../../src/cli/commands/rebase.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuImgJson, qemuIo, run, tryRun } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';
import { ProgramFile } from './killed-command.ts';
import { runCommand } from './run-command.ts';
import { signalWhenHeard } from './signals.ts';
import { expectAsQemu, expectClean, expectSameImage, makeTwins } from './twins.ts';
import type { Twins } from './twins.ts';

const success = { exitCode: 0, stdout: '', stderr: '' };

/** How the images are made. */
interface ImageOptions {
  mid?: string[];
  top?: string[];
  topSize?: string;
}

/**
 * `base.raw` below `mid.qcow2` below `top.qcow2`, each with some data; and `other.raw`, which is
 * `base.raw` with changes, `short.raw` and `long.qcow2`.
 */
function makeChain({ mid = [], top = [], topSize = '6M' }: ImageOptions = {}): Twins {
  return makeTwins((directory) => {
    const path = (name: string) => join(directory, name);
    const create = (name: string, size: string, ...options: string[]) => {
      const format = name.endsWith('.raw') ? 'raw' : 'qcow2';
      qemuImg('create', '-q', '-f', format, ...options, path(name), size);
    };
    create('base.raw', '4M');
    qemuIo(path('base.raw'), ['write -q -P 9 0 3M'], 'raw');
    create('mid.qcow2', '4M', '-b', 'base.raw', '-F', 'raw', ...mid);
    qemuIo(path('mid.qcow2'), ['write -q -P 1 1M 100k', 'write -q -z 256k 128k']);
    create('top.qcow2', topSize, '-b', 'mid.qcow2', '-F', 'qcow2', ...top);
    qemuIo(path('top.qcow2'), ['write -q -P 2 2M 100k', 'write -q -z 640k 64k']);
    cpSync(path('base.raw'), path('other.raw'));
    qemuIo(path('other.raw'), ['write -q -P 7 2500k 70k', 'write -q -P 6 3500k 30k'], 'raw');
    create('short.raw', '1M');
    qemuIo(path('short.raw'), ['write -q -P 9 0 900k'], 'raw');
    create('long.qcow2', '8M');
    qemuIo(path('long.qcow2'), ['write -q -P 5 0 8M', 'write -q -P 9 128k 256k']);
  });
}

/** What `top.qcow2` reads as. */
function contentOf(directory: string): string {
  const raw = join(temporaryDirectory(), 'content.raw');
  qemuImg('convert', '-O', 'raw', join(directory, 'top.qcow2'), raw);
  return run('sha256sum', [raw]).slice(0, 64);
}

/** Bytes that the overlay itself holds. */
function storedBytes(directory: string): number {
  const entries = qemuImgJson('map', join(directory, 'top.qcow2')) as {
    length: number;
    depth: number;
    data: boolean;
  }[];
  const own = entries.filter(({ depth, data }) => depth === 0 && data);
  return own.reduce((sum, { length }) => sum + length, 0);
}

/** Expects the same of both images, except that ours may have zero clusters instead of zeroes. */
function expectSameOverlay(twins: Twins): void {
  expectSameImage(twins, 'top.qcow2', { allocation: false });
  expect(storedBytes(twins.ours)).toBeLessThanOrEqual(storedBytes(twins.theirs));
}

const TARGETS = [
  ['-b', 'base.raw', '-F', 'raw'],
  ['-b', 'other.raw', '-F', 'raw'],
  ['-b', 'short.raw', '-F', 'raw'],
  ['-b', 'long.qcow2', '-F', 'qcow2'],
  ['-b', 'mid.qcow2', '-F', 'qcow2'],
  ['-b', ''],
];

describePeers(['qemu-img', 'qemu-io'], 'as qemu-img rebase', () => {
  describe('the safe mode', () => {
    test.each(TARGETS.map((target) => [target]))('%j', async (target) => {
      const twins = makeChain();
      const before = contentOf(twins.ours);
      expect(await expectAsQemu(command, twins, [...target, 'DIR/top.qcow2'])).toEqual(success);
      expect(contentOf(twins.ours)).toBe(before);
      expectSameOverlay(twins);
    });

    const variants: Record<string, ImageOptions> = {
      'version 2': { top: ['-o', 'compat=0.10'] },
      'small clusters': { top: ['-o', 'cluster_size=512'], mid: ['-o', 'cluster_size=4k'] },
      'large clusters': { top: ['-o', 'cluster_size=1M'] },
      'extended L2': { top: ['-o', 'extended_l2=on'] },
      'lazy refcounts': { top: ['-o', 'lazy_refcounts=on'] },
      'a shorter disk': { topSize: '2600k' },
      'a disk that does not end with a cluster': { topSize: '3407360' },
      'a zstd image': { top: ['-o', 'compression_type=zstd'], mid: ['-o', 'extended_l2=on'] },
    };
    describe.each(Object.keys(variants))('%s', (name) => {
      test('one backing file after the other', async () => {
        const twins = makeChain(variants[name]);
        const before = contentOf(twins.ours);
        for (const target of TARGETS) {
          const result = await expectAsQemu(command, twins, [...target, 'DIR/top.qcow2']);
          expect(result).toEqual(success);
          expect(contentOf(twins.ours), target.join()).toBe(before);
          expectSameOverlay(twins);
        }
      });
    });

    test.each([['-f', 'qcow2'], ['-t', 'none'], ['-T', 'none'], ['-q', '-p'], ['-U']])(
      '%s %s',
      async (...options) => {
        const twins = makeChain();
        const flags = options.filter((option) => option !== undefined);
        const args = [...flags, '-b', 'other.raw', '-F', 'raw', 'DIR/top.qcow2'];
        expect(await expectAsQemu(command, twins, args)).toEqual(success);
        expectSameOverlay(twins);
      },
    );

    test('bitmaps are kept, and note what was copied', async () => {
      const twins = makeChain();
      for (const directory of [twins.ours, twins.theirs]) {
        qemuImg('bitmap', '--add', join(directory, 'top.qcow2'), 'changes');
      }
      await expectAsQemu(command, twins, ['-b', 'other.raw', '-F', 'raw', 'DIR/top.qcow2']);
      expectSameOverlay(twins);
    });

    test('an image in another directory', async () => {
      const twins = makeTwins((directory) => {
        for (const name of ['base.raw', 'other.raw']) {
          qemuImg('create', '-q', '-f', 'raw', join(directory, name), '1M');
          qemuIo(join(directory, name), [`write -q -P ${name.length} 0 1M`], 'raw');
        }
        run('mkdir', [join(directory, 'sub')]);
        const path = join(directory, 'sub/top.qcow2');
        qemuImg('create', '-q', '-f', 'qcow2', '-b', '../base.raw', '-F', 'raw', path);
      });
      for (const name of ['../other.raw', 'DIR/base.raw', 'other.raw']) {
        await expectAsQemu(command, twins, ['-b', name, '-F', 'raw', 'DIR/sub/top.qcow2']);
        qemuIo(join(twins.ours, 'sub/top.qcow2'), ['read -P 8 0 1M']);
        expectClean(join(twins.ours, 'sub/top.qcow2'));
      }
    });
  });

  describe('the unsafe mode', () => {
    test.each([
      [['-b', 'base.raw', '-F', 'raw']],
      [['-b', 'gone/nowhere.qcow2', '-F', 'qcow2']],
      [['-b', '']],
      [[]],
      [['-b', 'base.raw']],
      [['-b', 'x'.repeat(1024), '-F', 'raw']],
      [['-b', 'x'.repeat(1023), '-F', 'raw']],
    ])('%j', async (target) => {
      const twins = makeChain();
      const args = ['-u', ...target, 'DIR/top.qcow2'];
      await expectAsQemu(command, twins, args);
      const info = (directory: string) => {
        const path = join(directory, 'top.qcow2');
        const document = qemuImgJson('info', path) as Record<string, unknown>;
        return { ...document, filename: '', 'full-backing-filename': '', 'actual-size': 0 };
      };
      expect(info(twins.ours)).toEqual(info(twins.theirs));
    });

    test('the old backing file may be gone', async () => {
      const twins = makeChain();
      for (const directory of [twins.ours, twins.theirs]) run('rm', [join(directory, 'mid.qcow2')]);
      await expectAsQemu(command, twins, ['-b', 'base.raw', '-F', 'raw', 'DIR/top.qcow2']);
      await expectAsQemu(command, twins, ['-u', '-b', 'base.raw', '-F', 'raw', 'DIR/top.qcow2']);
      expectSameImage(twins, 'top.qcow2');
    });
  });

  test.each([
    [['-b', 'base.raw'], '-F qcow2 or -F raw'],
    [[], "-b '' for none"],
    [['-b', 'missing', '-F', 'raw'], 'no such file or directory'],
    [['-b', 'top.qcow2', '-F', 'qcow2'], 'it would be its own backing file'],
    [['-b', 'base.raw', '-F', 'odd'], '-F must be one of'],
    [['-t', 'odd', '-b', ''], '-t must be one of'],
    [['-T', 'odd', '-b', ''], '-T must be one of'],
  ])('refused: %j', async (args, message) => {
    const twins = makeChain();
    const { exitCode, stderr } = await expectAsQemu(command, twins, [...args, 'DIR/top.qcow2']);
    expect(exitCode).toBe(1);
    expect(stderr).toContain(message);
    expectSameImage(twins, 'top.qcow2', { allocation: false });
  });

  test('raw images have no backing file', async () => {
    const twins = makeChain();
    const args = ['-f', 'raw', '-b', 'base.raw', '-F', 'raw', 'DIR/other.raw'];
    const { stderr } = await expectAsQemu(command, twins, args);
    expect(stderr).toContain('a raw image cannot have a backing file');
  });
});

describePeers(['qemu-img', 'qemu-io'], 'beyond qemu-img 7.2', () => {
  test('-c compresses what is copied', async () => {
    for (const top of [[], ['-o', 'compression_type=zstd'], ['-o', 'extended_l2=on']]) {
      const twins = makeChain({ top });
      const before = contentOf(twins.ours);
      const path = join(twins.ours, 'top.qcow2');
      expect(await runCommand(command, ['-c', '-b', '', path])).toEqual(success);
      expect(contentOf(twins.ours)).toBe(before);
      const check = qemuImgJson('check', path) as Record<string, number>;
      expect(check['compressed-clusters']).toBeGreaterThan(40);
      expectClean(path);
    }
  });

  test('snapshots are warned of', async () => {
    const twins = makeChain();
    const path = join(twins.ours, 'top.qcow2');
    qemuImg('snapshot', '-c', 'one', path);
    const { exitCode, stderr } = await runCommand(command, ['-b', '', path]);
    expect(exitCode).toBe(0);
    expect(stderr).toMatch(/^qcow2: warning: .*its 1 snapshots are not rebased.*\n$/);
  });

  test('a format that the new backing file has not is found out', async () => {
    const twins = makeChain();
    const path = join(twins.ours, 'top.qcow2');
    const { exitCode, stderr } = await runCommand(command, ['-b', 'base.raw', '-F', 'qcow2', path]);
    expect(exitCode).toBe(1);
    expect(stderr).toContain('base.raw: header (at offset 0): it is not a qcow2 image');
    expectSameImage(twins, 'top.qcow2');
    // And what the other way round is no error changes nothing of what the overlay reads as.
    const before = contentOf(twins.ours);
    expect(await runCommand(command, ['-b', 'mid.qcow2', '-F', 'raw', path])).toEqual(success);
    expect(contentOf(twins.ours)).toBe(before);
  });

  test('an overlay of the image cannot become its backing file', async () => {
    const twins = makeChain();
    const path = join(twins.ours, 'mid.qcow2');
    const { exitCode, stderr } = await runCommand(command, [
      '-b',
      'top.qcow2',
      '-F',
      'qcow2',
      path,
    ]);
    expect({ exitCode, stderr }).toEqual({
      exitCode: 1,
      stderr: `qcow2: ${path}: it would be its own backing file, through 'top.qcow2'\n`,
    });
  });

  test('progress', async () => {
    const path = join(makeChain().ours, 'top.qcow2');
    const { stdout } = await runCommand(command, ['-p', '-b', '', path]);
    expect(stdout).toMatch(/^ {4}\(0\.00\/100%\)\r( {4}\(\d+\.\d\d\/100%\)\r)+\n$/);
    expect(stdout).toContain('(100.00/100%)\r\n');
  });

  test('an image with a raw external data file gets none', async () => {
    const directory = temporaryDirectory();
    const options = ['-q', '-f', 'qcow2', '-o', 'data_file=data.raw,data_file_raw=on'];
    run('qemu-img', ['create', ...options, 'top.qcow2', '1M'], { cwd: directory });
    qemuImg('create', '-q', '-f', 'raw', join(directory, 'base.raw'), '1M');
    const args = ['-u', '-b', 'base.raw', '-F', 'raw', join(directory, 'top.qcow2')];
    const { exitCode, stderr } = await runCommand(command, args);
    expect(exitCode).toBe(1);
    expect(stderr).toContain('its raw data file holds the whole disk already');
  });
});

describePeers(['qemu-img', 'qemu-io'], 'interrupted at any moment', () => {
  let program: ProgramFile;
  beforeAll(async () => {
    program = await ProgramFile.create();
  });
  afterAll(() => program.dispose());

  /** An overlay with 24 MiB of differences in small clusters between old and new backing file. */
  function makeLong(directory: string, dataMiB = 24): void {
    const path = (name: string) => join(directory, name);
    for (const name of ['old.raw', 'new.raw']) {
      qemuImg('create', '-q', '-f', 'raw', path(name), `${dataMiB + 8}M`);
      const pattern = name.length + name.charCodeAt(0);
      qemuIo(path(name), [`write -q -P ${pattern} 0 ${dataMiB}M`], 'raw');
    }
    const options = ['-q', '-f', 'qcow2', '-o', 'cluster_size=4k', '-b', 'old.raw', '-F', 'raw'];
    qemuImg('create', ...options, path('top.qcow2'));
    qemuIo(path('top.qcow2'), ['write -q -P 3 5M 3M', 'write -q -z 14M 2M']);
  }

  function expectAsBefore(directory: string, content: string): void {
    expect(contentOf(directory)).toBe(content);
    const { exitCode, stdout } = tryRun('qemu-img', ['check', join(directory, 'top.qcow2')]);
    // Leaks are what a kill may leave.
    expect([0, 3], stdout).toContain(exitCode);
  }

  test('killed, the overlay reads as before and can be rebased again', async () => {
    const original = temporaryDirectory();
    makeLong(original);
    const content = contentOf(original);
    const target = ['-b', 'new.raw', '-F', 'raw'];
    const copy = () => {
      const directory = join(temporaryDirectory(), 'copy');
      cpSync(original, directory, { recursive: true });
      return directory;
    };
    const args = (directory: string) => ['rebase', ...target, join(directory, 'top.qcow2')];
    const whole = copy();
    const { duration, ...ending } = await program.run(args(whole));
    expect(ending).toEqual({ ...success, signal: null });
    expectAsBefore(whole, content);
    let killed = 0;
    let shortest = duration;
    for (let round = 0; round < 5 || (killed < 2 && round < 20); round++) {
      const directory = copy();
      // Starting takes a part of the time.
      const killAfterMs = shortest * (0.2 + 0.85 * Math.random());
      const { signal, duration: taken } = await program.run(args(directory), { killAfterMs });
      if (signal === 'SIGKILL') killed++;
      else shortest = Math.min(shortest, taken);
      expectAsBefore(directory, content);
      const again = await runCommand(command, [...target, join(directory, 'top.qcow2')]);
      expect(again).toEqual(success);
      expectAsBefore(directory, content);
    }
    expect(killed).toBeGreaterThan(1);
  }, 180_000);

  test('Ctrl-C says what is left, and SIGUSR1 how far it is', async () => {
    const directory = temporaryDirectory();
    // Longer than a turn, between which signals are heard.
    makeLong(directory, 160);
    const content = contentOf(directory);
    const path = join(directory, 'top.qcow2');
    const args = ['-b', 'new.raw', '-F', 'raw', path];
    const interrupt = signalWhenHeard('SIGINT');
    const interrupted = await runCommand(command, args);
    clearInterval(interrupt);
    expect(interrupted).toEqual({
      exitCode: 130,
      stdout: '',
      stderr: `qcow2: interrupted; ${path} still has its old backing file, and reads as before\n`,
    });
    expectAsBefore(directory, content);
    expect(qemuImgJson('info', path)).toMatchObject({ 'backing-filename': 'old.raw' });
    const timer = signalWhenHeard('SIGUSR1');
    const { exitCode, stderr } = await runCommand(command, args);
    clearInterval(timer);
    expect({ exitCode, stderr }).toEqual({
      exitCode: 0,
      stderr: expect.stringMatching(/^ {4}\(\d+\.\d\d\/100%\)\n$/) as string,
    });
    expectAsBefore(directory, content);
  }, 60_000);
});

describe('bad use', () => {
  test.each([
    [['--image-opts', '-b', '', 'driver=qcow2'], 'A block device must be specified'],
    [['--object', 'secret', '-b', '', 'a'], '--object is not supported here'],
    [['-b', ''], 'expected IMAGE'],
    [['-b', '', 'a', 'b'], "unexpected argument 'b'"],
    [['-b', '', '/missing/image'], 'no such file or directory'],
  ])('%j', async (args, message) => {
    const { exitCode, stdout, stderr } = await runCommand(command, args);
    expect({ exitCode, stdout }).toEqual({ exitCode: 1, stdout: '' });
    expect(stderr).toContain(message);
  });
});
