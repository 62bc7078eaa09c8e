import { randomBytes } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { command } from '../../src/cli/commands/bench.ts';
import { openImage } from '../../src/index.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo, tryRun } from '../support/qemu.ts';
import type { RunResult } from '../support/qemu.ts';
import { runCommand } from './run-command.ts';
import { signalWhenHeard } from './signals.ts';
import { expectClean, expectSameImage, makeTwins, runTwins } from './twins.ts';
import type { Twins } from './twins.ts';

/** `disk.qcow2` of 1 MiB, half of which has data, and `disk.raw` of 10,000 bytes. */
function makeDisks(): Twins {
  return makeTwins((directory) => {
    const path = join(directory, 'disk.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', path, '1M');
    qemuIo(path, ['write -q -P 9 0 512k']);
    writeFileSync(join(directory, 'disk.raw'), randomBytes(10_000));
  });
}

/** What was printed, whatever the time was. */
function untimed({ exitCode, stdout }: RunResult) {
  expect(stdout).toMatch(/^$|^Sending \d+ (read|write) requests, /);
  return { exitCode, stdout: stdout.replace(/in \d+\.\d{3} seconds/, 'in some seconds') };
}

async function expectSameBench(twins: Twins, args: readonly string[]): Promise<RunResult> {
  const { ours, theirs } = await runTwins(command, twins, args);
  expect(untimed(ours), `${args.join(' ')}: ${ours.stderr}`).toEqual(untimed(theirs));
  expect(ours.stderr === '').toBe(theirs.stderr === '');
  if (ours.exitCode !== 0) expect(ours.stderr).toMatch(/^qcow2: .+\n$/);
  return ours;
}

describePeers(['qemu-img', 'qemu-io'], 'as qemu-img bench', () => {
  test('reading', async () => {
    const twins = makeDisks();
    for (const options of [
      ['-c', '10'],
      ['-c', '0x10', '-d', '1'],
      ['-c', '010', '-q'],
      ['-c', '0'],
      ['-c', '0', '-d', '0'],
      ['-c', '300', '-f', 'qcow2'],
      ['-c', '10', '-o', '1020k'],
      ['-c', '10', '-s', '0'],
      ['-c', '10', '-s', '100', '-S', '300'],
      ['-c', '10', '-S', '0'],
      ['-c', '10', '-s', '64k', '-S', '1M'],
      ['-c', '10', '-s', '1M'],
      ['-c', '10', '-i', 'threads', '-t', 'writethrough'],
      ['-c', '10', '-t', 'unsafe', '--pattern=0xff', '--no-drain'],
      ['-c', '10', '--flush-interval=0', '-U'],
    ]) {
      const { exitCode } = await expectSameBench(twins, [...options, 'DIR/disk.qcow2']);
      expect(exitCode).toBe(0);
    }
    const byOptions = 'driver=qcow2,file.filename=DIR/disk.qcow2';
    await expectSameBench(twins, ['-c', '2', '--image-opts', byOptions]);
    const raw = ['-f', 'raw', 'DIR/disk.raw'];
    await expectSameBench(twins, ['-c', '30', '-s', '512', ...raw]);
    await expectSameBench(twins, ['-c', '30', '-s', '1000', '-S', '1024', ...raw]);
  });

  test('requests that leave the disk fail when it is their turn', async () => {
    const twins = makeDisks();
    for (const options of [
      ['-o', '1M'],
      ['-o', '2M'],
      ['-o', '1022k'],
      ['-s', '2M'],
      ['-s', '3k', '-c', '1000'],
    ]) {
      const result = await expectSameBench(twins, ['-c', '10', ...options, 'DIR/disk.qcow2']);
      expect(result).toMatchObject({ exitCode: 1 });
      expect(result.stdout).not.toContain('completed');
      expect(result.stderr).toContain('does not lie within the disk');
    }
    await expectSameBench(twins, ['-c', '3', '-s', '10000', '-f', 'raw', 'DIR/disk.raw']);
  });

  test('writing leaves the same image', async () => {
    for (const options of [
      ['-c', '20'],
      ['-c', '20', '--pattern=0xab', '-s', '1000', '-S', '3000', '-o', '300k'],
      ['-c', '300', '--pattern=255', '-t', 'unsafe'],
      ['-c', '10', '--pattern', '7', '-t', 'writethrough'],
      ['-c', '10', '-d', '2', '--flush-interval=4', '--pattern=1'],
      ['-c', '10', '-d', '2', '--flush-interval=4', '--no-drain', '--pattern=2'],
      ['-c', '1', '-o', '1048000', '-s', '500', '--pattern=3'],
    ]) {
      const twins = makeDisks();
      const { exitCode } = await expectSameBench(twins, ['-w', ...options, 'DIR/disk.qcow2']);
      expect(exitCode).toBe(0);
      expectSameImage(twins, 'disk.qcow2');
    }
  });

  test('writing to a raw image, up to the end of its last sector', async () => {
    const twins = makeDisks();
    const raw = ['-f', 'raw', 'DIR/disk.raw'];
    await expectSameBench(twins, ['-w', '-c', '40', '-s', '512', '--pattern=0x44', ...raw]);
    const [ours, theirs] = [twins.ours, twins.theirs].map((at) => join(at, 'disk.raw'));
    expect(readFileSync(ours!).equals(readFileSync(theirs!))).toBe(true);
  });

  test('what is refused', async () => {
    const twins = makeDisks();
    const before = readFileSync(join(twins.ours, 'disk.qcow2'));
    for (const options of [
      ['-c', '10', '--flush-interval=4'],
      ['-w', '-c', '10', '-d', '5', '--flush-interval=4'],
      ['-c', '-1'],
      ['-c', '1k'],
      ['-c', '08'],
      ['-c', '2147483648'],
      ['-d', '-3'],
      ['-d', '99999999999'],
      ['-o', '-1'],
      ['-o', 'odd'],
      ['-s', '2G'],
      ['-S', '2G'],
      ['-w', '--pattern=256'],
      ['-w', '--pattern=-1'],
      ['-w', '--pattern=x'],
      ['-i', 'odd'],
      ['-i', 'native'],
      ['-n'],
      ['-t', 'odd'],
      ['-w', '-U'],
      ['--flush-interval=x'],
      ['-f', 'odd'],
      ['--odd'],
      ['DIR/disk.raw'],
    ]) {
      const { exitCode, stdout } = await expectSameBench(twins, [...options, 'DIR/disk.qcow2']);
      expect([exitCode, stdout]).toEqual([1, '']);
    }
    expect(await expectSameBench(twins, [])).toMatchObject({ exitCode: 1 });
    expect(await expectSameBench(twins, ['DIR/missing'])).toMatchObject({ exitCode: 1 });
    expect(readFileSync(join(twins.ours, 'disk.qcow2')).equals(before)).toBe(true);
  });

  test('a raw image whose format is guessed gets a warning when it is written', async () => {
    const twins = makeDisks();
    const { stderr } = await expectSameBench(twins, ['-w', '-c', '1', 'DIR/disk.raw']);
    expect(stderr).toMatch(/^qcow2: warning: /);
  });
});

describePeers(['qemu-img', 'qemu-io'], 'otherwise than qemu-img bench', () => {
  test('a disk of no bytes is told of, and does not end the program', async () => {
    const path = join(makeDisks().ours, 'none.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', path, '0');
    expect(tryRun('qemu-img', ['bench', '-c', '1', path]).exitCode).not.toBe(1);
    const { exitCode, stderr } = await runCommand(command, ['-c', '1', path]);
    expect([exitCode, stderr]).toEqual([
      1,
      expect.stringContaining('does not lie within') as string,
    ]);
  });

  test('an interrupt ends it, with the image as sound as ever', async () => {
    const path = join(makeDisks().ours, 'disk.qcow2');
    const timer = signalWhenHeard('SIGINT');
    const { exitCode, stderr } = await runCommand(command, ['-w', '-c', '2000000000', path]);
    clearInterval(timer);
    expect(exitCode).toBe(130);
    expect(stderr).toBe(`qcow2: interrupted; not all requests were made to ${path}\n`);
    expectClean(path);
    using image = openImage(path);
    expect(image.size).toBe(1024 * 1024);
  });
});

describe('what would not be what it says', () => {
  test.each([
    [['-d', '0', '-c', '1', 'disk'], /-d must be at least 1/],
    [
      ['-t', 'none', 'disk'],
      /-t none cannot be: files are read and written through the page cache/,
    ],
    [['-t', 'directsync', 'disk'], /-t directsync cannot be/],
    [['-i', 'io_uring', 'disk'], /-i io_uring cannot be: requests are made one after the other/],
    [['-n', '-t', 'writeback', 'disk'], /-n cannot be/],
  ])('%j', async (args, message) => {
    const { exitCode, stderr } = await runCommand(command, args);
    expect(exitCode).toBe(1);
    expect(stderr).toMatch(message);
  });
});
