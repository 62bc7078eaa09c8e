import { join } from 'node:path';
import { describe, expect, test, vi } from 'vitest';
import { command } from '../../src/cli/commands/snapshot.ts';
import { Qcow2Image } from '../../src/qcow2/image.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo, run } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';
import { runCommand } from './run-command.ts';
import { expectAsQemu, expectClean, expectSameImage, makeTwins, runTwins } from './twins.ts';
import type { Twins } from './twins.ts';

const success = { exitCode: 0, stdout: '', stderr: '' };

/** `disk.qcow2` with two snapshots of different content and size, and data since. */
function makeDisk(...options: string[]): Twins {
  return makeTwins((directory) => {
    const path = join(directory, 'disk.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', ...options, path, '10M');
    qemuIo(path, ['write -q -P 1 1M 300k', 'write -q -P 2 9M 1M']);
    qemuImg('snapshot', '-c', 'first', path);
    if (!options.includes('compat=0.10')) qemuImg('resize', '-q', path, '12M');
    qemuIo(path, ['write -q -P 3 1M 64k', 'write -q -z 9M 128k']);
    qemuImg('snapshot', '-c', '1', path);
    qemuIo(path, ['write -q -P 4 5M 1M', 'discard -q 9M 1M']);
  });
}

/** A list without its dates. */
function undated(list: string): string {
  return list.replace(/\d{4}-\d\d-\d\d \d\d:\d\d:\d\d/g, 'DATE');
}

async function expectSameList(twins: Twins): Promise<string> {
  const { ours, theirs } = await runTwins(command, twins, ['-l', 'DIR/disk.qcow2']);
  expect(undated(ours.stdout)).toBe(undated(theirs.stdout));
  return ours.stdout;
}

describePeers(['qemu-img', 'qemu-io'], 'as qemu-img snapshot', () => {
  describe.each([
    [[]],
    [['-o', 'compat=0.10']],
    [['-o', 'extended_l2=on,cluster_size=16k']],
    [['-o', 'lazy_refcounts=on,refcount_bits=64']],
  ])('%j', (options) => {
    test.each([
      [['-c', 'new']],
      [['-q', '-c', 'a name with spaces']],
      [['-c', 'first']],
      [['-c', 'ÄÖÜ€']],
      [['-a', 'first']],
      [['-a', '1']],
      [['-a', '2']],
      [['-d', 'first']],
      [['-d', '1']],
      [['-d', '2']],
    ])('%j', async (args) => {
      const twins = makeDisk(...options);
      await expectAsQemu(command, twins, [...args, 'DIR/disk.qcow2']);
      await expectSameList(twins);
      expectSameImage(twins, 'disk.qcow2');
    });
  });

  test('what changes nothing', async () => {
    const twins = makeDisk();
    const calls = ['-d missing', '-a missing', '-U -c new', '-l -c new', '-c a -d b', '-c a -c b'];
    for (const call of [...calls, '--odd']) {
      const { exitCode } = await expectAsQemu(command, twins, [
        ...call.split(' '),
        'DIR/disk.qcow2',
      ]);
      expect(exitCode).toBe(1);
    }
    for (const call of ['-l', '-U -l', '-q -l']) {
      const { ours, theirs } = await runTwins(command, twins, [
        ...call.split(' '),
        'DIR/disk.qcow2',
      ]);
      expect(ours).toMatchObject({ exitCode: 0, stderr: '' });
      expect(undated(ours.stdout)).toBe(undated(theirs.stdout));
    }
    expectSameImage(twins, 'disk.qcow2');
  });

  test('one change after the other', async () => {
    const twins = makeDisk();
    const steps = ['-a 1', '-c new', '-d first', '-a new', '-d 1', '-d new', '-c last', '-a 1'];
    for (const step of steps) {
      await expectAsQemu(command, twins, [...step.split(' '), 'DIR/disk.qcow2']);
      await expectSameList(twins);
      expectSameImage(twins, 'disk.qcow2');
    }
  });

  test('the list of an image without snapshots, and of a raw image, is empty', async () => {
    const twins = makeTwins((directory) => {
      qemuImg('create', '-q', '-f', 'qcow2', join(directory, 'disk.qcow2'), '1M');
      qemuImg('create', '-q', '-f', 'raw', join(directory, 'disk.raw'), '1M');
    });
    for (const name of ['disk.qcow2', 'disk.raw']) {
      expect(await expectAsQemu(command, twins, ['-l', `DIR/${name}`])).toEqual(success);
    }
  });

  test('raw images have none to change', async () => {
    const twins = makeTwins((directory) => {
      qemuImg('create', '-q', '-f', 'raw', join(directory, 'disk.raw'), '1M');
    });
    for (const action of ['-c', '-a', '-d']) {
      const { stderr } = await expectAsQemu(command, twins, [action, 'x', 'DIR/disk.raw']);
      expect(stderr).toContain('a raw image has no snapshots');
    }
  });

  test('an external data file, or bitmaps', async () => {
    const twins = makeTwins((directory) => {
      const options = ['-q', '-f', 'qcow2', '-o', 'data_file=data.raw', 'external.qcow2', '1M'];
      run('qemu-img', ['create', ...options], { cwd: directory });
      const path = join(directory, 'disk.qcow2');
      qemuImg('create', '-q', '-f', 'qcow2', path, '1M');
      qemuImg('bitmap', '--add', path, 'changes');
      qemuImg('snapshot', '-c', 'one', path);
    });
    const external = await expectAsQemu(command, twins, ['-c', 'x', 'DIR/external.qcow2']);
    expect(external.stderr).toContain('data file');
    const bitmaps = await expectAsQemu(command, twins, ['-a', 'one', 'DIR/disk.qcow2']);
    expect(bitmaps.stderr).toContain('bitmaps');
    await expectAsQemu(command, twins, ['-d', 'one', 'DIR/disk.qcow2']);
    expectSameImage(twins, 'disk.qcow2');
  });

  test('the snapshots of overlays, whose backing file stays as it is', async () => {
    const twins = makeTwins((directory) => {
      const base = join(directory, 'base.raw');
      qemuImg('create', '-q', '-f', 'raw', base, '4M');
      qemuIo(base, ['write -q -P 9 0 4M'], 'raw');
      const path = join(directory, 'disk.qcow2');
      qemuImg('create', '-q', '-f', 'qcow2', '-b', 'base.raw', '-F', 'raw', path);
      qemuIo(path, ['write -q -P 1 1M 300k']);
    });
    for (const args of [
      ['-c', 'one'],
      ['-a', 'one'],
      ['-d', 'one'],
    ]) {
      await expectAsQemu(command, twins, [...args, 'DIR/disk.qcow2']);
      expectSameImage(twins, 'disk.qcow2');
    }
    qemuIo(join(twins.ours, 'disk.qcow2'), ['read -P 9 0 1M', 'read -P 1 1M 300k']);
  });
});

describePeers(['qemu-img'], 'where it is better than qemu-img snapshot', () => {
  test('without an action it lists', async () => {
    const path = join(makeDisk().ours, 'disk.qcow2');
    const { stdout } = await runCommand(command, [path]);
    expect(stdout).toContain('first');
    expect(await runCommand(command, ['-f', 'qcow2', '-l', path])).toMatchObject({ stdout });
  });

  test('names that would be cut off or could not be seen are refused', async () => {
    const twins = makeDisk();
    const path = join(twins.ours, 'disk.qcow2');
    for (const name of ['', 'x'.repeat(256)]) {
      const { exitCode, stderr } = await runCommand(command, ['-c', name, path]);
      expect(exitCode).toBe(1);
      expect(stderr).toContain('255');
    }
    expectSameImage(twins, 'disk.qcow2');
  });

  test('an ID given to -d is answered with the name', async () => {
    const path = join(makeDisk().ours, 'disk.qcow2');
    const { exitCode, stderr } = await runCommand(command, ['-d', '2', path]);
    expect(exitCode).toBe(1);
    expect(stderr).toContain("no snapshot named '2'; the one with ID 2 is named '1'");
  });

  test('a missing backing file does not matter', async () => {
    const path = join(temporaryDirectory(), 'disk.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', '-u', '-b', 'gone.raw', '-F', 'raw', path, '1M');
    expect(await runCommand(command, ['-c', 'one', path])).toEqual(success);
    expect((await runCommand(command, ['-l', path])).stdout).toContain('one');
    expect(await runCommand(command, ['-d', 'one', path])).toEqual(success);
    qemuImg('rebase', '-u', '-b', '', path);
    expectClean(path);
  });

  test('a signal waits until the change is done', async () => {
    const twins = makeDisk();
    const listeners = process.listenerCount('SIGINT');
    const make = vi.spyOn(Qcow2Image.prototype, 'createSnapshot').mockImplementationOnce(function (
      this: Qcow2Image,
      name,
    ) {
      expect(process.listenerCount('SIGINT')).toBe(listeners + 1);
      process.emit('SIGINT', 'SIGINT');
      return this.createSnapshot(name);
    });
    const path = join(twins.ours, 'disk.qcow2');
    expect(await runCommand(command, ['-c', 'new', path])).toEqual(success);
    expect(make).toHaveBeenCalledTimes(2);
    make.mockRestore();
    expect(process.listenerCount('SIGINT')).toBe(listeners);
    qemuImg('snapshot', '-c', 'new', join(twins.theirs, 'disk.qcow2'));
    expectSameImage(twins, 'disk.qcow2');
  });
});

describe('bad use', () => {
  test.each([
    [['--image-opts', 'driver=qcow2'], 'A block device must be specified'],
    [['--object', 'secret', 'a'], '--object is not supported here'],
    [[], 'expected IMAGE'],
    [['a', 'b'], "unexpected argument 'b'"],
    [['-c', 'x', '-a', 'y', 'b'], 'only one of -l, -a, -c and -d'],
    [['-c'], 'needs a value'],
  ])('%j', async (args, message) => {
    const { exitCode, stdout, stderr } = await runCommand(command, args);
    expect({ exitCode, stdout }).toEqual({ exitCode: 1, stdout: '' });
    expect(stderr).toContain(message);
  });
});
