import { execFileSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, mkdirSync, readFileSync, rmSync, statSync, symlinkSync } from 'node:fs';
import { afterAll, describe, expect, test } from 'vitest';
import { command } from '../../src/cli/commands/convert.ts';
import { makeRaw, MiB, qemu, run, scratch } from '../operations/scratch.ts';
import { describePeers, itPeers } from '../support/peers.ts';
import { runCommand } from './run-command.ts';
import { signalWhenHeard } from './signals.ts';

const convert = (...args: string[]) => runCommand(command, args);
const noise = randomBytes(MiB);
const success = { exitCode: 0, stdout: '', stderr: '' };

/** Makes a qcow2 image of 8 MiB with two snapshots, each of other content. */
function makeImage(): string {
  const path = scratch('disk.qcow2');
  qemu('qemu-img', 'create', '-q', '-f', 'qcow2', path, '8M');
  const write = (...commands: string[]) =>
    qemu('qemu-io', '-f', 'qcow2', ...commands.flatMap((step) => ['-c', step]), path);
  write('write -P 1 0 64k', 'write -c -P 2 1M 64k', 'write -P 9 7M 1M');
  qemu('qemu-img', 'snapshot', '-c', 'first', path);
  write('write -P 3 2M 70k', 'write -z 0 64k');
  qemu('qemu-img', 'snapshot', '-c', 'second,2', path);
  write('write -P 0 3M 1M', 'write -P 5 4M 1k');
  return path;
}

/** Runs both programs with `args` and an output of its own each, and compares the outputs. */
async function expectAsQemu(...args: string[]): Promise<void> {
  const [ours, theirs] = [scratch('ours.raw'), scratch('theirs.raw')];
  for (const path of [ours, theirs]) rmSync(path, { force: true });
  expect(await convert(...args, ours)).toEqual(success);
  qemu('qemu-img', 'convert', '-O', 'raw', ...args, theirs);
  expect(run('cmp', [ours, theirs])).toEqual({ status: 0, stdout: '', stderr: '' });
  const [ourBlocks, theirBlocks] = [statSync(ours).blocks, statSync(theirs).blocks];
  expect(Math.abs(ourBlocks - theirBlocks)).toBeLessThanOrEqual(32 + theirBlocks * 0.02);
}

describePeers(['qemu-img', 'qemu-io', 'cmp'], 'as qemu-img convert', () => {
  test('an image, whole and several times over', async () => {
    const image = makeImage();
    await expectAsQemu(image);
    await expectAsQemu('-f', 'qcow2', '-S', '64k', image);
    await expectAsQemu('-S', '0', '-W', '-m', '3', '-U', '-q', image);
    await expectAsQemu('-t', 'none', '-T', 'writeback', image, image);
  });

  test.each([
    '1',
    'first',
    'second,2',
    'snapshot.id=1',
    'snapshot.name=first',
    'snapshot.name=second,,2',
    'snapshot.id=2,snapshot.name=second,,2',
  ])('the snapshot %s', async (snapshot) => {
    await expectAsQemu('-l', snapshot, makeImage());
  });

  test.each(['3', 'snapshot.id=1,snapshot.name=second,,2', 'snapshot.name=', 'first,second'])(
    'there is no snapshot %s',
    async (snapshot) => {
      const image = makeImage();
      const output = scratch('none.raw');
      const { exitCode, stderr } = await convert('-l', snapshot, image, output);
      expect(exitCode).toBe(1);
      expect(stderr).toContain('snapshot');
      expect(stderr.split('\n')).toHaveLength(2);
      expect(existsSync(output)).toBe(false);
      const theirs = run('qemu-img', ['convert', '-l', snapshot, '-O', 'raw', image, output]);
      expect(theirs.status).toBe(1);
    },
  );

  test('the output must be neither an image nor its backing file', async () => {
    const base = makeRaw('base.raw', MiB, [[0, noise]]);
    const overlay = scratch('overlay.qcow2');
    qemu('qemu-img', 'create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', overlay);
    const link = scratch('link.raw');
    symlinkSync(base, link);
    const data = scratch('data.raw');
    const options = ['-q', '-f', 'qcow2', '-o', `data_file=${data}`];
    qemu('qemu-img', 'create', ...options, scratch('external.qcow2'), '1M');
    expect((await convert(scratch('external.qcow2'), data)).stderr).toContain('the output is');
    for (const output of [base, link, overlay]) {
      for (const flags of [[], ['-n']]) {
        const { exitCode, stderr } = await convert(...flags, overlay, output);
        expect(exitCode).toBe(1);
        expect(stderr).toMatch(/the output is .*; nothing was written\n$/);
      }
    }
    expect(readFileSync(base).equals(noise)).toBe(true);
  });

  test('a sparse disk of 1 TiB takes less than two seconds', async () => {
    const image = scratch('large.qcow2');
    qemu('qemu-img', 'create', '-q', '-f', 'qcow2', image, '1T');
    qemu('qemu-io', '-f', 'qcow2', '-c', 'write -P 1 512G 64k', image);
    const output = scratch('large.raw');
    const start = performance.now();
    expect(await convert(image, output)).toEqual(success);
    expect(performance.now() - start).toBeLessThan(2000);
    expect(statSync(output).size).toBe(2 ** 40);
    expect(statSync(output).blocks * 512).toBeLessThan(MiB);
    rmSync(output);
  });
});

describe('progress', () => {
  test("is told in qemu-img's words", async () => {
    const source = makeRaw('source.raw', 8 * MiB, [[0, noise]]);
    const { stdout } = await convert('-p', '-f', 'raw', source, scratch('out.raw'));
    expect(stdout).toBe('    (0.00/100%)\r    (12.50/100%)\r    (100.00/100%)\r\n');
    const quiet = await convert('-p', '-q', '-f', 'raw', source, scratch('out.raw'));
    expect(quiet).toEqual(success);
  });

  test('is a bar on a terminal', async () => {
    const source = makeRaw('source.raw', 2 * MiB, [[0, noise]]);
    const args = ['-p', '-f', 'raw', source, scratch('out.raw')];
    const { stdout } = await runCommand(command, args, { isTerminal: true });
    expect(stdout).toBe(
      `[${' '.repeat(40)}]   0.0%\r[${'='.repeat(20)}${' '.repeat(20)}]  50.0%\r` +
        `[${'='.repeat(40)}] 100.0%\r\n`,
    );
  });
});

describe('signals', () => {
  /** Copies for some tenths of a second, and gets `signal` in the middle of it. */
  async function interruptedBy(signal: NodeJS.Signals, output: string) {
    const pieces = Array.from({ length: 400 }, (_, index) => [index * MiB, noise] as const);
    const source = makeRaw('long.raw', 400 * MiB, pieces);
    const timer = signalWhenHeard(signal);
    const result = await convert('-f', 'raw', source, output);
    clearInterval(timer);
    rmSync(source);
    return result;
  }

  test.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
    ['SIGHUP', 129],
  ] as const)('%s removes a new output', async (signal, exitCode) => {
    const output = scratch('interrupted.raw');
    expect(await interruptedBy(signal, output)).toEqual({
      exitCode,
      stdout: '',
      stderr: `qcow2: interrupted; the incomplete ${output} was removed\n`,
    });
    expect(existsSync(output)).toBe(false);
    expect(process.listenerCount(signal)).toBe(0);
  });

  test('SIGINT leaves an output that existed before, and says that it is incomplete', async () => {
    const output = makeRaw('interrupted.raw', 10);
    expect(await interruptedBy('SIGINT', output)).toMatchObject({
      exitCode: 130,
      stderr: `qcow2: interrupted; ${output} is incomplete\n`,
    });
    rmSync(output);
  });

  test('SIGUSR1 tells how far it is', async () => {
    const output = scratch('told.raw');
    const { exitCode, stderr } = await interruptedBy('SIGUSR1', output);
    expect(exitCode).toBe(0);
    expect(stderr).toMatch(/^ {4}\(\d+\.\d\d\/100%\)\n$/);
    rmSync(output);
  });
});

describe('bad use', () => {
  test.each([
    [['-O', 'vmdk', 'a', 'b'], "-O must be one of qcow2, raw, not 'vmdk'"],
    [['-f', 'vmdk', 'a', 'b'], "-f must be one of qcow2, raw, not 'vmdk'"],
    [['-S', '100', 'a', 'b'], "-S must be 0 or a multiple of 512 up to 16M, not '100'"],
    [['-S', '17M', 'a', 'b'], "-S must be 0 or a multiple of 512 up to 16M, not '17M'"],
    [['-S', 'x', 'a', 'b'], "the sparse size 'x' is not a size"],
    [['-m', '0', 'a', 'b'], "-m must be 1 to 16, not '0'"],
    [['-m', '17', 'a', 'b'], "-m must be 1 to 16, not '17'"],
    [['-t', 'odd', 'a', 'b'], '-t must be one of'],
    [['-T', 'odd', 'a', 'b'], '-T must be one of'],
    [['--target-is-zero', 'a', 'b'], '--target-is-zero requires -n'],
    [['-l', 'x', 'a', 'b', 'c'], '-l reads a snapshot of one image; there are several'],
    [['a'], 'expected IMAGE… OUTPUT'],
    [['-c', 'a', 'b'], '-c is for -O qcow2: a raw image cannot be compressed'],
    [['-O', 'qcow2', '-c', '-o', 'preallocation=full', 'a', 'b'], '-c cannot be with prealloc'],
    [['-O', 'qcow2', '-c', '-o', 'data_file=d', 'a', 'b'], '-c cannot be with data_file'],
    [['-C', '-S', '4k', 'a', 'b'], '-C cannot be with -S'],
    [['-O', 'qcow2', '-C', '-c', 'a', 'b'], '-C cannot be with -c'],
    [['-C', '--salvage', 'a', 'b'], '-C cannot be with --salvage'],
    [['-B', 'x', '-F', 'raw', 'a', 'b'], 'a raw image has no backing file'],
    [['-O', 'qcow2', '-B', 'x', '-F', 'raw', 'a', 'b', 'c'], '-B is for one image'],
    [['-n', '-o', 'compat=v3', '-O', 'qcow2', 'a', 'b'], '-o has no effect with -n'],
    [['-n', '--target-is-zero', '-O', 'qcow2', '-B', 'x', 'a', 'b'], 'cannot be with -B'],
    [['-O', 'qcow2', '-o', 'odd=1', 'a', 'b'], "a qcow2 image has no option 'odd'"],
    [['-o', 'preallocation=metadata', 'a', 'b'], 'must be one of'],
    [['--bitmaps', 'a', 'b'], '--bitmaps is for -O qcow2'],
    [['--bitmaps', '-O', 'qcow2', 'a', 'b', 'c'], '--bitmaps is for one image'],
    [['--skip-broken-bitmaps', 'a', 'b'], '--skip-broken-bitmaps requires --bitmaps'],
    [['-r', 'odd', 'a', 'b'], "the rate limit 'odd' is not a size"],
    [['--image-opts', 'a', 'b'], "Cannot find device='a'"],
    [['--target-image-opts', 'a', 'b'], '--target-image-opts requires use of -n'],
    [['--object', 'secret', 'a', 'b'], '--object is not supported here'],
  ])('%j', async (args, message) => {
    const { exitCode, stdout, stderr } = await convert(...args);
    expect({ exitCode, stdout }).toEqual({ exitCode: 1, stdout: '' });
    expect(stderr).toContain(message);
  });

  test('-l that is malformed', async () => {
    const source = makeRaw('source.raw', MiB);
    const { exitCode, stderr } = await convert('-l', 'snapshot.odd=1', source, scratch('x.raw'));
    expect(exitCode).toBe(1);
    expect(stderr).toContain("not 'snapshot.odd=1'");
  });

  test('a source that is missing leaves no output', async () => {
    const output = scratch('missing-out.raw');
    const { exitCode, stderr } = await convert(scratch('missing.raw'), output);
    expect(exitCode).toBe(1);
    expect(stderr).toContain('no such file or directory');
    expect(existsSync(output)).toBe(false);
  });

  test('-n into what is missing or too small', async () => {
    const source = makeRaw('source.raw', MiB);
    const missing = await convert('-n', '-f', 'raw', source, scratch('missing.raw'));
    expect(missing.exitCode).toBe(1);
    const small = await convert('-n', '-f', 'raw', source, makeRaw('small.raw', 1000));
    expect(small.stderr).toContain(
      'the output has 1000 bytes, fewer than the 1048576 of the input',
    );
  });
});

describe('where the output goes', () => {
  const folder = scratch('mounted');
  let loopDevice = '';
  afterAll(() => {
    if (loopDevice !== '') execFileSync('losetup', ['-d', loopDevice]);
  });

  itPeers(
    ['root', 'mount'],
    'a full filesystem is one line, and the output is removed',
    async () => {
      const source = makeRaw(
        'source.raw',
        4 * MiB,
        [0, 1, 2, 3].map((at) => [at * MiB, noise]),
      );
      mkdirSync(folder);
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', folder]);
      try {
        const output = `${folder}/out.raw`;
        const { exitCode, stdout, stderr } = await convert('-f', 'raw', source, output);
        expect({ exitCode, stdout }).toEqual({ exitCode: 1, stdout: '' });
        expect(stderr).toMatch(
          /^qcow2: .*: cannot write \d+ bytes at offset \d+: no space left on the device; the incomplete .* was removed\n$/,
        );
        expect(existsSync(output)).toBe(false);
        const whole = await convert('-S', '0', '-f', 'raw', source, output);
        expect(whole.stderr).toMatch(
          /: no space left on the device; the incomplete .* was removed\n$/,
        );
      } finally {
        execFileSync('umount', [folder]);
      }
    },
  );

  itPeers(['loop', 'mkfs.ext4', 'mount'], 'a block device, unless it is mounted', async () => {
    const source = makeRaw('source.raw', 3 * MiB, [[MiB, noise]]);
    const disk = makeRaw(
      'disk.raw',
      4 * MiB,
      [0, 1, 2, 3].map((at) => [at * MiB, noise]),
    );
    loopDevice = execFileSync('losetup', ['--find', '--show', disk], { encoding: 'utf8' }).trim();
    for (const flags of [[], ['-n'], ['-S', '0']]) {
      expect(await convert(...flags, '-f', 'raw', source, loopDevice)).toEqual(success);
      const written = readFileSync(loopDevice);
      expect(written.subarray(0, 3 * MiB).equals(readFileSync(source))).toBe(true);
      expect(written.subarray(3 * MiB).equals(noise)).toBe(true);
    }
    execFileSync('mkfs.ext4', ['-q', '-F', loopDevice], { stdio: 'ignore' });
    mkdirSync(folder, { recursive: true });
    execFileSync('mount', [loopDevice, folder]);
    try {
      const { exitCode, stderr } = await convert('-f', 'raw', source, loopDevice);
      expect(exitCode).toBe(1);
      expect(stderr).toBe(`qcow2: ${loopDevice}: the block device is mounted or in use\n`);
    } finally {
      execFileSync('umount', [folder]);
    }
  });
});
