import { copyFileSync, cpSync, existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { command } from '../../src/cli/commands/bitmap.ts';
import { openImage } from '../../src/index.ts';
import { dirtyAccordingToQemu } from '../qcow2/bitmap-oracle.ts';
import { describePeers } from '../support/peers.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { qemuImg, qemuImgJson, qemuIo, tryRun } from '../support/qemu.ts';
import { runCommand } from './run-command.ts';
import { expectAsQemu, expectClean, expectSameImage, makeTwins, runTwins } from './twins.ts';
import type { Twins } from './twins.ts';

/** Sequences for each kind of image; set it higher, with a seed, for a longer run. */
const RUNS = Number(process.env.QCOW2_BITMAP_RUNS ?? 1);
const SEED = Number(process.env.QCOW2_BITMAP_SEED ?? Date.now() % 1_000_000);
const DISK_BYTES = 30 * 1024 * 1024 + 512;
const PEERS = ['qemu-img', 'qemu-io', 'qemu-nbd', 'nbdinfo'] as const;

interface ListedBitmap {
  name: string;
  granularity: number;
  flags: string[];
}

/** The bitmaps of an image, as QEMU lists them. */
function bitmapsOf(path: string): ListedBitmap[] {
  const info = qemuImgJson('info', '-f', 'qcow2', path) as {
    'format-specific': { data: { bitmaps?: ListedBitmap[] } };
  };
  return info['format-specific'].data.bitmaps ?? [];
}

/** What QEMU finds in the bitmaps of an image that it can use. */
async function contentOf(path: string): Promise<Record<string, unknown>> {
  const content: Record<string, unknown> = {};
  for (const { name, flags } of bitmapsOf(path)) {
    if (!flags.includes('in-use')) content[name] = await dirtyAccordingToQemu(path, name);
  }
  return content;
}

/** Expects both images to be sound, and to have the same bitmaps with the same content. */
async function expectSameBitmaps(twins: Twins, name = 'disk.qcow2'): Promise<void> {
  expectSameImage(twins, name);
  const [ours, theirs] = [join(twins.ours, name), join(twins.theirs, name)];
  const content = await contentOf(ours);
  expect(content).toEqual(await contentOf(theirs));
  using image = openImage(ours);
  if (image.format !== 'qcow2') throw new Error('it is qcow2');
  const usable = image.bitmaps.filter(({ isInconsistent }) => !isInconsistent);
  const read = usable.map(({ name: bitmap }) => [bitmap, [...image.dirtyRanges(bitmap)]]);
  expect(Object.fromEntries(read)).toEqual(content);
}

const cache = sharedTemporaryDirectory();

/** `disk.qcow2` of 30 MiB and a bit with bitmaps that mark something, and `other.qcow2`. */
function makeDisk(options = 'cluster_size=64k'): Twins {
  return makeTwins((directory) => {
    const made = join(cache, options);
    if (!existsSync(made)) makeDisks(made, options);
    cpSync(made, directory, { recursive: true });
  });
}

function makeDisks(directory: string, options: string): void {
  mkdirSync(directory);
  for (const name of ['disk.qcow2', 'other.qcow2']) {
    const path = join(directory, name);
    qemuImg('create', '-q', '-f', 'qcow2', '-o', options, path, `${DISK_BYTES}`);
    qemuImg('bitmap', '--add', '-g', '64k', path, 'coarse');
    qemuImg('bitmap', '--add', '-g', '512', path, 'fine');
    qemuImg('bitmap', '--add', '--disable', path, 'still');
    const shift = name === 'disk.qcow2' ? 0 : 3;
    qemuIo(path, [
      `write -q ${1 + shift}M 300k`,
      `write -q ${20480 * (1 + shift)} 512`,
      'write -q 30M 512',
    ]);
  }
}

describePeers(PEERS, 'as qemu-img bitmap', () => {
  test.each([
    [['--add', 'DIR/disk.qcow2', 'new']],
    [['--add', '-f', 'qcow2', '-g', '512', 'DIR/disk.qcow2', 'new']],
    [['--add', '--disable', '-g', '0x1000', 'DIR/disk.qcow2', 'new']],
    [['-g', '2G', '--add', 'DIR/disk.qcow2', 'new']],
    [['-g', '0', '--remove', 'DIR/disk.qcow2', 'fine']],
    [['--remove', 'DIR/disk.qcow2', 'coarse']],
    [['--clear', 'DIR/disk.qcow2', 'fine']],
    [['--clear', 'DIR/disk.qcow2', 'still']],
    [['--disable', 'DIR/disk.qcow2', 'fine']],
    [['--enable', 'DIR/disk.qcow2', 'still']],
    [['--enable', 'DIR/disk.qcow2', 'fine']],
    [['--merge', 'fine', 'DIR/disk.qcow2', 'still']],
    [['--merge', 'coarse', 'DIR/disk.qcow2', 'fine']],
    [['--merge', 'fine', 'DIR/disk.qcow2', 'coarse']],
    [['--merge', 'fine', 'DIR/disk.qcow2', 'fine']],
    [['--merge', 'fine', '-b', 'DIR/other.qcow2', '-F', 'qcow2', 'DIR/disk.qcow2', 'coarse']],
    [['--merge=coarse', '-b', 'DIR/other.qcow2', 'DIR/disk.qcow2', 'fine']],
    [['--add', '--merge', 'fine', '--merge', 'coarse', 'DIR/disk.qcow2', 'both']],
    [['--merge', 'coarse', '--clear', '--merge', 'fine', '--enable', 'DIR/disk.qcow2', 'still']],
    [['--add', '--remove', '--add', '--disable', 'DIR/disk.qcow2', 'again']],
    [['--remove', '--add', '-g', '1M', 'DIR/disk.qcow2', 'fine']],
    [['--add', '--image-opts', 'driver=qcow2,file.filename=DIR/disk.qcow2', 'new']],
    // What was done before the action that fails stays.
    [['--add', '--add', 'DIR/disk.qcow2', 'half']],
    [['--clear', '--merge', 'odd', 'DIR/disk.qcow2', 'fine']],
    [['--remove', '--clear', 'DIR/disk.qcow2', 'fine']],
  ])('%j', async (args) => {
    const twins = makeDisk();
    const { stdout } = await expectAsQemu(command, twins, args);
    expect(stdout).toBe('');
    await expectSameBitmaps(twins);
  });

  test('what cannot be changes nothing', async () => {
    const twins = makeDisk();
    const path = join(twins.ours, 'disk.qcow2');
    const before = readFileSync(path);
    for (const args of [
      ['--add', 'DIR/disk.qcow2', 'fine'],
      ['--add', 'DIR/disk.qcow2', ''],
      ['--add', 'DIR/disk.qcow2', 'x'.repeat(1024)],
      ['--remove', 'DIR/disk.qcow2', 'odd'],
      ['--clear', 'DIR/disk.qcow2', 'odd'],
      ['--enable', 'DIR/disk.qcow2', 'odd'],
      ['--disable', 'DIR/disk.qcow2', 'odd'],
      ['--merge', 'odd', 'DIR/disk.qcow2', 'fine'],
      ['--merge', 'fine', 'DIR/disk.qcow2', 'odd'],
      ['--merge', 'odd', '-b', 'DIR/other.qcow2', 'DIR/disk.qcow2', 'fine'],
      ['--merge', 'fine', '-b', 'DIR/disk.qcow2', 'DIR/disk.qcow2', 'coarse'],
      ['--merge', 'fine', '-b', 'DIR/missing', 'DIR/disk.qcow2', 'coarse'],
      ['--merge', 'fine', '-b', 'DIR/other.qcow2', '-F', 'raw', 'DIR/disk.qcow2', 'coarse'],
      ['--add', '-f', 'raw', 'DIR/disk.qcow2', 'new'],
      ['--add', '-f', 'odd', 'DIR/disk.qcow2', 'new'],
      ['--add', 'DIR/missing', 'new'],
      ['--add', '-g', '256', 'DIR/disk.qcow2', 'new'],
      ['--add', '-g', '1000', 'DIR/disk.qcow2', 'new'],
      ['--add', '-g', '1.5k', 'DIR/disk.qcow2', 'new'],
      ['--add', '-g', '4G', 'DIR/disk.qcow2', 'new'],
      ['--add', '-g', '-1', 'DIR/disk.qcow2', 'new'],
      ['--add', '-g', '8E', 'DIR/disk.qcow2', 'new'],
      ['--add', '-g', 'odd', 'DIR/disk.qcow2', 'new'],
      ['--add', '-g', '', 'DIR/disk.qcow2', 'new'],
      ['--clear', '-g', '64k', 'DIR/disk.qcow2', 'fine'],
      ['--add', '-F', 'qcow2', 'DIR/disk.qcow2', 'new'],
      ['--add', '-b', 'DIR/other.qcow2', 'DIR/disk.qcow2', 'new'],
      ['DIR/disk.qcow2', 'fine'],
      ['--add', 'DIR/disk.qcow2'],
      ['--add', 'DIR/disk.qcow2', 'new', 'more'],
      ['--add'],
      ['--odd', 'DIR/disk.qcow2', 'fine'],
      ['-q', '--clear', 'DIR/disk.qcow2', 'fine'],
      ['-U', '--clear', 'DIR/disk.qcow2', 'fine'],
    ]) {
      const { exitCode } = await expectAsQemu(command, twins, args);
      expect(exitCode, args.join(' ')).toBe(1);
      expect(readFileSync(path).equals(before)).toBe(true);
    }
  });

  test('version 2 has no bitmaps', async () => {
    const twins = makeTwins((directory) => {
      const path = join(directory, 'old.qcow2');
      qemuImg('create', '-q', '-f', 'qcow2', '-o', 'compat=0.10', path, '1M');
    });
    for (const action of ['--add', '--remove', '--clear']) {
      const { stderr } = await expectAsQemu(command, twins, [action, 'DIR/old.qcow2', 'b']);
      expect(stderr).toMatch(action === '--add' ? /compat=1\.1/ : /there is no bitmap 'b'/);
    }
  });

  test('disks of other sizes', async () => {
    const twins = makeTwins((directory) => {
      for (const size of ['1M', '2M']) {
        const path = join(directory, `${size}.qcow2`);
        qemuImg('create', '-q', '-f', 'qcow2', path, size);
        qemuImg('bitmap', '--add', path, 'b');
      }
    });
    const args = ['--merge', 'b', '-b', 'DIR/2M.qcow2', 'DIR/1M.qcow2', 'b'];
    const { stderr } = await expectAsQemu(command, twins, args);
    expect(stderr).toMatch(/has 2097152 bytes, and this one 1048576/);
  });

  test('a disk of no bytes, whose bitmap QEMU loses', async () => {
    const twins = makeTwins((directory) => {
      qemuImg('create', '-q', '-f', 'qcow2', join(directory, 'none.qcow2'), '0');
    });
    const { ours, theirs } = await runTwins(command, twins, ['--add', 'DIR/none.qcow2', 'b']);
    expect(ours.exitCode).toBe(1);
    expect(ours.stderr).toContain('no bytes');
    expect(theirs.stderr).toContain('Lost persistent bitmaps');
    expectSameImage(twins, 'none.qcow2');
  });

  test('names of all lengths, and in all scripts', async () => {
    const twins = makeDisk('cluster_size=4k');
    for (const name of ['x', 'x'.repeat(1023), 'ä😀 b', 'a,b=c', '-']) {
      await expectAsQemu(command, twins, ['--add', '--', 'DIR/disk.qcow2', name]);
    }
    expect(bitmapsOf(join(twins.ours, 'disk.qcow2'))).toHaveLength(8);
    await expectSameBitmaps(twins);
  });

  test.each([['512'], ['1k'], ['32k'], ['2M']])(
    'the default granularity with clusters of %s',
    async (size) => {
      const twins = makeTwins((directory) => {
        const options = ['-q', '-f', 'qcow2', '-o', `cluster_size=${size}`];
        qemuImg('create', ...options, join(directory, 'disk.qcow2'), '3M');
      });
      await expectAsQemu(command, twins, ['--add', 'DIR/disk.qcow2', 'b']);
      await expectSameBitmaps(twins);
    },
  );

  test.each([
    ['bitmap-in-use', 'lost'],
    ['bitmaps-autoclear-unset', 'stale'],
  ])('what was not saved properly: %s', async (image, name) => {
    for (const args of [
      ['--clear', 'DIR/disk.qcow2', name],
      ['--enable', 'DIR/disk.qcow2', name],
      ['--disable', 'DIR/disk.qcow2', name],
      ['--merge', name, 'DIR/disk.qcow2', name],
      ['--add', 'DIR/disk.qcow2', name],
      ['--add', '--merge', name, 'DIR/disk.qcow2', 'fresh'],
      ['--add', 'DIR/disk.qcow2', 'fresh'],
      ['--remove', 'DIR/disk.qcow2', name],
    ]) {
      const twins = makeTwins((directory) => {
        copyFileSync(`images/features/${image}.qcow2`, join(directory, 'disk.qcow2'));
      });
      const [ours, theirs] = [twins.ours, twins.theirs].map((at) => join(at, 'disk.qcow2'));
      const results = await runTwins(command, twins, args);
      expect(results.ours.exitCode, args.join(' ')).toBe(results.theirs.exitCode);
      expect(bitmapsOf(ours!)).toEqual(bitmapsOf(theirs!));
      expect(await contentOf(ours!)).toEqual(await contentOf(theirs!));
      // What nobody knows of any more stays leaked, with both.
      const check = (path: string) => tryRun('qemu-img', ['check', '-q', path]).exitCode;
      expect(check(ours!)).toBe(check(theirs!));
    }
  });

  test.each([[['-o', 'data_file=DIR/data']], [['-o', 'data_file=DIR/data,data_file_raw=on']]])(
    'an image with an external data file: %j',
    async (options) => {
      const twins = makeTwins(() => undefined);
      for (const directory of [twins.ours, twins.theirs]) {
        const given = options.map((option) => option.replaceAll('DIR/', `${directory}/`));
        qemuImg('create', '-q', '-f', 'qcow2', ...given, join(directory, 'disk.qcow2'), '1M');
        qemuImg('bitmap', '--add', join(directory, 'disk.qcow2'), 'all');
        qemuIo(join(directory, 'disk.qcow2'), ['write -q 100k 300k']);
      }
      await expectAsQemu(command, twins, ['--add', '--merge', 'all', 'DIR/disk.qcow2', 'b']);
      const path = join(twins.ours, 'disk.qcow2');
      expect(await contentOf(path)).toEqual(await contentOf(join(twins.theirs, 'disk.qcow2')));
      expectClean(path);
    },
  );

  test('a backing file that is missing has no say in it', async () => {
    const twins = makeTwins((directory) => {
      const path = join(directory, 'disk.qcow2');
      qemuImg('create', '-q', '-u', '-f', 'qcow2', '-b', 'gone', '-F', 'raw', path, '1M');
    });
    await expectAsQemu(command, twins, ['--add', 'DIR/disk.qcow2', 'b']);
    const [ours, theirs] = [twins.ours, twins.theirs].map((at) => join(at, 'disk.qcow2'));
    expect(bitmapsOf(ours!)).toHaveLength(1);
    expect(bitmapsOf(ours!)).toEqual(bitmapsOf(theirs!));
  });

  test('an image that is in use', async () => {
    const twins = makeDisk();
    const path = join(twins.ours, 'disk.qcow2');
    using held = openImage(path);
    const { exitCode, stderr } = await runCommand(command, ['--clear', held.path, 'fine']);
    expect(exitCode).toBe(1);
    expect(stderr).toMatch(/^qcow2: .*disk\.qcow2: .*\n$/);
  });
});

const ACTIONS = ['add', 'remove', 'clear', 'enable', 'disable', 'merge', 'mergeOther'] as const;
const action = fc.record({
  action: fc.constantFrom(...ACTIONS),
  bitmap: fc.constantFrom('a', 'b', 'fine', 'coarse'),
  source: fc.constantFrom('a', 'fine', 'coarse', 'still'),
  granularity: fc.constantFrom('512', '4k', '64k', '16M'),
});
type RandomAction = typeof action extends fc.Arbitrary<infer T> ? T : never;

function argumentsFor(one: RandomAction): string[] {
  const target = ['DIR/disk.qcow2', one.bitmap];
  if (one.action === 'add') return ['--add', '-g', one.granularity, ...target];
  if (one.action === 'merge') return ['--merge', one.source, ...target];
  if (one.action === 'mergeOther') {
    return ['--merge', one.source, '-b', 'DIR/other.qcow2', '-F', 'qcow2', ...target];
  }
  return [`--${one.action}`, ...target];
}

describePeers(PEERS, `any actions, and writes in between, from seed ${SEED}`, () => {
  test.each([
    ['cluster_size=512'],
    ['cluster_size=4k,refcount_bits=1'],
    ['lazy_refcounts=on'],
    ['extended_l2=on,cluster_size=16k'],
  ])(
    '%s',
    async (options) => {
      const write = fc.record({ offset: fc.nat({ max: 58_000 }), length: fc.nat({ max: 2000 }) });
      const list = fc.array(fc.oneof({ weight: 4, arbitrary: action }, write), {
        minLength: 12,
        maxLength: 20,
      });
      for (const steps of fc.sample(list, { numRuns: RUNS, seed: SEED })) {
        const twins = makeDisk(options);
        for (const step of steps) {
          if ('action' in step) {
            await expectAsQemu(command, twins, argumentsFor(step));
            continue;
          }
          const [offset, length] = [step.offset * 512, (step.length + 1) * 512];
          const inDisk = Math.min(length, DISK_BYTES - offset);
          qemuIo(join(twins.theirs, 'disk.qcow2'), [`write -q -P 7 ${offset} ${inDisk}`]);
          using image = openImage(join(twins.ours, 'disk.qcow2'), { writable: true });
          image.write(new Uint8Array(inDisk).fill(7), offset);
        }
        await expectSameBitmaps(twins).catch((error: unknown) => {
          throw new Error(`after ${JSON.stringify(steps)}`, { cause: error });
        });
      }
    },
    60_000,
  );
});

describe('bad use', () => {
  test.each([
    [['disk.qcow2', 'b'], /say what to do: --add, --remove/],
    [['--clear', '-g', '64k', 'disk.qcow2', 'b'], /-g is for --add only/],
  ])('%j', async (args, message) => {
    const { exitCode, stderr } = await runCommand(command, args);
    expect(exitCode).toBe(1);
    expect(stderr).toMatch(message);
  });
});
