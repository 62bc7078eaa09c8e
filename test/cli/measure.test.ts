import { execFileSync } from 'node:child_process';
import { truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, it } from 'vitest';
import { command } from '../../src/cli/commands/measure.ts';
import { holdWithQemuIo } from '../support/lock-holder.ts';
import { qemuImg, qemuIo, tryRun } from '../support/qemu.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { runCommand } from './run-command.ts';

const directory = sharedTemporaryDirectory();
const at = (name: string): string => join(directory, name);

beforeAll(() => {
  const create = (name: string, ...args: string[]): string =>
    qemuImg('create', '-q', '-f', 'qcow2', ...args.slice(0, -1), at(name), args.at(-1)!);
  create('data', '3G');
  qemuIo(at('data'), ['write 0 1M', 'write -z 1M 64k', 'write 100M 4k', 'write -c 300M 128k']);
  qemuImg('snapshot', '-c', 'first', at('data'));
  qemuIo(at('data'), ['write 200M 1M', 'discard 0 192k', 'write 2G 300k']);
  create('overlay', '-b', 'data', '-F', 'qcow2', '4G');
  qemuIo(at('overlay'), ['write 3500M 1M', 'write -z 0 1M', 'write 150000000 512']);
  create('bitmaps', '-o', 'cluster_size=4k', '100M');
  qemuImg('bitmap', '--add', '-g', '512', at('bitmaps'), 'fine');
  qemuImg('bitmap', '--add', '--disable', at('bitmaps'), 'a bitmap with a longer näme');
  create('old', '-o', 'compat=0.10', '100M');
  qemuIo(at('old'), ['write 5M 1M']);
  create('extended', '-o', 'extended_l2=on', '100M');
  qemuIo(at('extended'), ['write 5M 2k', 'write 6M 300k', 'write -z 6100k 8k']);
  create('allocated', '-o', 'preallocation=metadata', '10M');
  qemuIo(at('allocated'), ['write 3M 100k']);
  create('empty', '0');
  writeFileSync(at('sparse.raw'), Buffer.alloc(70_001, 7));
  execFileSync(
    'dd',
    ['if=/dev/urandom', `of=${at('sparse.raw')}`, 'bs=4k', 'seek=3000', 'count=99'],
    {
      stdio: 'ignore',
    },
  );
  truncateSync(at('sparse.raw'), 50_000_001);
});

async function expectSame(args: readonly string[], image?: string): Promise<string> {
  const all = image === undefined ? args : [...args, at(image)];
  const result = await runCommand(command, all);
  expect(result).toEqual(tryRun('qemu-img', ['measure', ...all]));
  expect(result).toMatchObject({ exitCode: 0, stderr: '' });
  return result.stdout;
}

const LISTS = [
  'cluster_size=64k',
  'cluster_size=512',
  'cluster_size=4k,refcount_bits=64',
  'cluster_size=2M,refcount_bits=1',
  'extended_l2=on',
  'extended_l2=on,cluster_size=16k',
  'compat=0.10',
  'compat=1.1,lazy_refcounts=on,compression_type=zstd',
  'preallocation=metadata',
  'preallocation=falloc',
  'preallocation=full,cluster_size=1M',
  'data_file=x,data_file_raw=on',
  'backing_file=x,backing_fmt=raw',
  'size=1M',
];

describe('an empty disk', () => {
  const sizes = ['0', '1', '1000', '1M', '3000000', '1.5G', '20G'];
  it.each(sizes.flatMap((size) => LISTS.map((list) => [size, list] as const)))(
    'of %s as qcow2 with %s',
    async (size, list) => {
      await expectSame(['-O', 'qcow2', '--size', size, '-o', list]);
    },
  );

  it.each(sizes)('of %s as raw', async (size) => {
    await expectSame(['--size', size]);
    await expectSame(['--size', size, '-O', 'raw', '-o', 'preallocation=full']);
  });

  it('of more terabytes', async () => {
    await expectSame(['-O', 'qcow2', '--size', '256T']);
    await expectSame(['-O', 'qcow2', '--size', '2048T', '-o', 'cluster_size=2M']);
    await expectSame(['-O', 'qcow2', '--size', '300G', '-o', 'cluster_size=2k,refcount_bits=64']);
  });

  it('with the other names of the compatibility levels, which qemu-img measure lacks', async () => {
    for (const [alias, name] of [
      ['v2', '0.10'],
      ['v3', '1.1'],
    ]) {
      const args = ['-O', 'qcow2', '--size', '1G', '-o'];
      const result = await runCommand(command, [...args, `compat=${alias}`]);
      expect(result.stdout).toBe(await expectSame([...args, `compat=${name}`]));
    }
  });

  it('as JSON', async () => {
    const text = await expectSame(['-O', 'qcow2', '--size', '1G', '--output=json']);
    expect(JSON.parse(text)).toEqual({ required: 393_216, 'fully-allocated': 1_074_135_040 });
    await expectSame(['--output', 'json', '--size', '1000']);
  });
});

describe('what an image holds', () => {
  const images = ['data', 'overlay', 'bitmaps', 'old', 'extended', 'allocated', 'empty'];
  it.each([...images, 'sparse.raw'])('%s', async (image) => {
    await expectSame([], image);
    await expectSame(['-O', 'raw', '--output=json'], image);
    await expectSame(['-O', 'qcow2', '--output=json'], image);
    for (const list of LISTS) await expectSame(['-O', 'qcow2', '-o', list], image);
  });

  it('at a snapshot', async () => {
    for (const snapshot of ['first', '1', 'snapshot.name=first', 'snapshot.id=1']) {
      const then = await expectSame(['-O', 'qcow2', '-l', snapshot], 'data');
      expect(then).not.toBe(await expectSame(['-O', 'qcow2'], 'data'));
      await expectSame(['-l', snapshot], 'data');
    }
  });

  it('read as raw', async () => {
    await expectSame(['-O', 'qcow2', '-f', 'raw'], 'data');
  });

  it('while it is in use, if that is wanted', async () => {
    await using holder = await holdWithQemuIo(['-f', 'qcow2', at('data')]);
    await expectSame(['-O', 'qcow2', '-U'], 'data');
    const { exitCode, stderr } = await runCommand(command, ['-O', 'qcow2', at('data')]);
    expect(exitCode).toBe(1);
    expect(stderr).toContain(`it is in use: process ${holder.pid} (qemu-io)`);
  });
});

describe('what qemu-img refuses is refused, in one line', () => {
  it.each([
    [[], 'give an image, or --size'],
    [['--size', '1M', 'x'], 'give --size or an image, not both'],
    [['x', 'y'], "unexpected argument 'y'"],
    [['--size', 'foo'], "the size 'foo' is not a size"],
    [['--size', '1M', '-l', 'x'], '-f and -l are for an image'],
    [['--size', '1M', '-f', 'raw'], '-f and -l are for an image'],
    [['--size', '1M', '-O', 'vmdk'], "-O must be one of qcow2, raw, not 'vmdk'"],
    [['--size', '1M', '--output=odd'], '--output must be one of human, json'],
    [['--size', '1M', '-o', 'cluster_size=4k'], "a raw image has no option 'cluster_size'"],
    [['--size', '1M', '-O', 'qcow2', '-o', 'nope=1'], "a qcow2 image has no option 'nope'"],
    [['--size', '1M', '-O', 'qcow2', '-o', 'refcount_bits=3'], 'the refcount width must be'],
    [['--size', '1M', '-O', 'qcow2', '-o', 'compat=0.10,refcount_bits=8'], 'use compat=1.1'],
    [['--size', '1M', '-O', 'qcow2', '-o', 'cluster_size=3000'], 'must be a power of two'],
    [['--size', '1M', '-O', 'qcow2', '-o', 'extended_l2=on,cluster_size=8k'], '16k or more'],
    [['--size', '1M', '-O', 'qcow2', '-o', 'compat=foo'], '-o compat must be one of'],
    [['--size', '1M', '-O', 'qcow2', '-o', 'preallocation=foo'], '-o preallocation must be'],
    [['--size', '1T', '-O', 'qcow2', '-o', 'cluster_size=512'], 'too large an L1 table'],
    [['missing'], 'missing: cannot open: no such file or directory'],
    [['-O', 'qcow2', '-l', 'odd', at('data')], "there is no snapshot 'odd'"],
    [['--object', 'secret,id=a', '--size', '1M'], '--object is not supported here'],
    [['--image-opts', 'driver=qcow2,file.filename=missing'], 'missing: cannot open'],
  ])('%j', async (args, message) => {
    const { exitCode, stdout, stderr } = await runCommand(command, args);
    expect({ exitCode, stdout }).toEqual({ exitCode: 1, stdout: '' });
    expect(stderr).toMatch(/^qcow2: .+\n$/);
    expect(stderr).toContain(message);
    if (!args.includes('vmdk')) expect(tryRun('qemu-img', ['measure', ...args]).exitCode).toBe(1);
  });
});
