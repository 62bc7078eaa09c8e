import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { command } from '../../src/cli/commands/create.ts';
import { holdWithQemuIo } from '../support/lock-holder.ts';
import { qemuImg, qemuImgJson, tryRun } from '../support/qemu.ts';
import type { RunResult } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';
import { runCommand } from './run-command.ts';
import { signalWhenHeard } from './signals.ts';
import { expectSameImage } from './twins.ts';

/** Two directories with the same images to refer to. */
function makeDirectories(): { ours: string; theirs: string } {
  const directory = temporaryDirectory();
  const [ours, theirs] = ['ours', 'theirs'].map((name) => join(directory, name));
  for (const path of [ours!, theirs!]) {
    mkdirSync(path);
    qemuImg('create', '-q', '-f', 'qcow2', join(path, 'base.qcow2'), '3M');
    qemuImg('create', '-q', '-f', 'qcow2', join(path, 'a,b c'), '2M');
    writeFileSync(join(path, 'base.raw'), Buffer.alloc(5000, 1));
  }
  return { ours: ours!, theirs: theirs! };
}

/**
 * Runs both programs with the same arguments. `IMAGE` stands for the new image, which qemu-img makes
 * in its working directory: it takes the names of data files from there.
 */
async function runBoth(args: readonly string[]) {
  const { ours, theirs } = makeDirectories();
  const image = join(ours, 'new');
  const result = await runCommand(
    command,
    args.map((arg) => (arg === 'IMAGE' ? image : arg)),
  );
  const expected = tryRun(
    'qemu-img',
    ['create', ...args.map((arg) => (arg === 'IMAGE' ? 'new' : arg))],
    { cwd: theirs },
  );
  const stdout = result.stdout.replaceAll(image, 'new');
  return { ours, theirs, result: { ...result, stdout }, expected };
}

/** Both have made an image, and told the same. */
async function expectSame(args: readonly string[]) {
  const { ours, theirs, result, expected } = await runBoth(args);
  expect(result).toEqual(expected);
  expect(result).toMatchObject({ exitCode: 0, stderr: '' });
  return { ours, theirs };
}

/** Both have failed, having told the same, and ours left nothing behind. */
async function expectBothFail(args: readonly string[]): Promise<RunResult> {
  const { ours, result, expected } = await runBoth(args);
  expect({ ...result, stderr: '' }).toEqual({ ...expected, stderr: '' });
  expect(result.exitCode).toBe(1);
  expect(result.stderr).toMatch(/^qcow2: .+\n$/);
  expect(existsSync(join(ours, 'new'))).toBe(false);
  return result;
}

function expectSameBytes({ ours, theirs }: { ours: string; theirs: string }, name: string): void {
  expect(readFileSync(join(ours, name)).equals(readFileSync(join(theirs, name)))).toBe(true);
}

const JSON_NAME = 'json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}';
const OVERLAY = 'backing_file=base.qcow2,backing_fmt=qcow2';

describe('qcow2 images are told and made as by qemu-img', () => {
  it.each([
    ['compat=0.10'],
    ['compat=v2'],
    ['compat=v3'],
    ['compat=1.1'],
    ['cluster_size=512'],
    ['cluster_size=64k'],
    ['cluster_size=2M'],
    ['cluster_size=0x1000'],
    ['cluster_size=4k,cluster_size=8k'],
    ['refcount_bits=1'],
    ['refcount_bits=64'],
    ['compat=0.10,refcount_bits=16'],
    ['lazy_refcounts=on'],
    ['lazy_refcounts=off'],
    ['lazy_refcounts'],
    ['nolazy_refcounts'],
    ['lazy_refcounts=yes'],
    ['extended_l2=on'],
    ['extended_l2=on,cluster_size=16k'],
    ['compression_type=zstd'],
    ['compression_type=zlib'],
    ['compat=0.10,compression_type=zlib'],
    ['preallocation=off'],
    ['preallocation=metadata'],
    ['preallocation=falloc'],
    ['preallocation=full'],
    ['encryption=off'],
    ['nocow=off,extent_size_hint=1M'],
    [OVERLAY],
    [`${OVERLAY},compat=0.10`],
    [`${OVERLAY},extended_l2=on,preallocation=metadata`],
    [`${OVERLAY},extended_l2=on,preallocation=falloc`],
    ['backing_file=a,,b c,backing_fmt=qcow2'],
  ])('-o %s', async (list) => {
    const both = await expectSame(['-f', 'qcow2', '-o', list, 'IMAGE', '4M']);
    expectSameBytes(both, 'new');
    expectSameImage(both, 'new');
  });

  it.each([
    ['data_file=data'],
    ['data_file=data,data_file_raw=off'],
    ['data_file=data,data_file_raw=on'],
    ['data_file=data,preallocation=metadata'],
    ['data_file=data,preallocation=falloc'],
    ['data_file=data,data_file_raw=on,preallocation=full'],
    ['data_file=data,extended_l2=on,preallocation=metadata'],
    [`${OVERLAY},data_file=data`],
  ])('-o %s', async (list) => {
    const both = await expectSame(['-f', 'qcow2', '-o', list, 'IMAGE', '1000k']);
    expectSameBytes(both, 'new');
    expectSameBytes(both, 'data');
  });

  it.each([
    [['-b', 'base.qcow2', '-F', 'qcow2', 'IMAGE']],
    [['-b', 'base.qcow2', '-F', 'qcow2', 'IMAGE', '1M']],
    [['-b', 'base.qcow2', '-F', 'qcow2', 'IMAGE', '5G']],
    [['-b', 'base.qcow2', '-F', 'raw', 'IMAGE']],
    [['-b', 'base.raw', '-F', 'raw', 'IMAGE']],
    [['-b', 'a,b c', '-F', 'qcow2', 'IMAGE']],
    [['-b', 'file:base.qcow2', '-F', 'qcow2', 'IMAGE']],
    [['-b', JSON_NAME, '-F', 'qcow2', 'IMAGE']],
    [['-o', 'backing_file=none,backing_fmt=raw', '-b', 'base.qcow2', '-F', 'qcow2', 'IMAGE']],
    [['-u', '-b', 'missing', '-F', 'raw', 'IMAGE', '1M']],
    [['-u', '-b', 'base.qcow2', '-F', 'qcow2', 'IMAGE', '1M']],
    [['-u', 'IMAGE', '1M']],
    [['-q', 'IMAGE', '1M']],
    [['-o', 'size=2M', 'IMAGE']],
    [['-o', 'size=2M', '-o', 'cluster_size=4k', 'IMAGE']],
    [['IMAGE', '1000']],
    [['IMAGE', '0']],
    [['IMAGE', '1.5G']],
    [['IMAGE', '3T', '-o', 'compat=0.10']],
  ])('-f qcow2 %j', async (args) => {
    const both = await expectSame(['-f', 'qcow2', ...args]);
    expectSameBytes(both, 'new');
  });
});

describe('raw images are told and made as by qemu-img', () => {
  it.each([
    [['IMAGE', '10M']],
    [['-f', 'raw', 'IMAGE', '1000']],
    [['-f', 'raw', 'IMAGE', '0']],
    [['-u', 'IMAGE', '1M']],
    [['-o', 'preallocation=off', 'IMAGE', '1M']],
    [['-o', 'preallocation=falloc', 'IMAGE', '1M']],
    [['-o', 'preallocation=full,size=1M', 'IMAGE']],
    [['-o', 'extent_size_hint=0,nocow=off', 'IMAGE', '1M']],
  ])('%j', async (args) => {
    const both = await expectSame(args);
    expectSameBytes(both, 'new');
  });
});

describe('what qemu-img refuses is refused, in one line', () => {
  it.each([
    [['-o', 'compat=1.0', 'IMAGE', '1M'], '-o compat must be one of 0.10, v2, 1.1, v3'],
    [['-o', 'cluster_size=256', 'IMAGE', '1M'], 'the cluster size must be a power of two'],
    [['-o', 'cluster_size=4M', 'IMAGE', '1M'], 'the cluster size must be a power of two'],
    [['-o', 'cluster_size=3000', 'IMAGE', '1M'], 'from 512 to 2M, not 3000'],
    [['-o', 'cluster_size=abc', 'IMAGE', '1M'], "-o cluster_size 'abc' is not a size"],
    [['-o', 'cluster_size=', 'IMAGE', '1M'], "-o cluster_size '' is not a size"],
    [['-o', 'refcount_bits=3', 'IMAGE', '1M'], 'the refcount width must be 1, 2, 4'],
    [['-o', 'refcount_bits=128', 'IMAGE', '1M'], 'the refcount width must be 1, 2, 4'],
    [['-o', 'refcount_bits=x', 'IMAGE', '1M'], "-o refcount_bits is a number, not 'x'"],
    [['-o', 'compat=0.10,refcount_bits=8', 'IMAGE', '1M'], 'does not allow a refcount width'],
    [['-o', 'compat=0.10,lazy_refcounts=on', 'IMAGE', '1M'], 'does not allow lazy refcounts'],
    [['-o', 'lazy_refcounts=foo', 'IMAGE', '1M'], "-o lazy_refcounts is on or off, not 'foo'"],
    [['-o', 'extended_l2=on,cluster_size=8k', 'IMAGE', '1M'], 'need clusters of 16k or more'],
    [['-o', 'extended_l2=on,compat=0.10', 'IMAGE', '1M'], 'does not allow extended L2 entries'],
    [['-o', 'compression_type=foo', 'IMAGE', '1M'], '-o compression_type must be one of zlib'],
    [['-o', 'compat=0.10,compression_type=zstd', 'IMAGE', '1M'], 'a compression type other'],
    [['-o', 'preallocation=foo', 'IMAGE', '1M'], '-o preallocation must be one of off'],
    [['-o', `${OVERLAY},preallocation=metadata`, 'IMAGE'], 'preallocation would hide it'],
    [['-o', 'data_file_raw=on', 'IMAGE', '1M'], 'without a data_file'],
    [['-o', 'data_file=d,compat=0.10', 'IMAGE', '1M'], 'does not allow an external data file'],
    [['-o', 'data_file=', 'IMAGE', '1M'], 'the name of the data file is empty'],
    [['-o', `${OVERLAY},data_file=d,data_file_raw=on`, 'IMAGE'], 'cannot be a backing file'],
    [['-o', 'nope=1', 'IMAGE', '1M'], "has no option 'nope'; see -o help"],
    [['-o', 'cluster_sice=4k', 'IMAGE', '1M'], 'did you mean cluster_size?'],
    [['-o', 'cluster_size=4k,', 'IMAGE', '1M'], 'is not a list of options'],
    [['-o', 'size=2M', 'IMAGE', '3M'], 'the size is given twice'],
    [['-o', 'size=foo', 'IMAGE'], "-o size 'foo' is not a size"],
    [['IMAGE', 'foo'], "the size 'foo' is not a size"],
    [['IMAGE', '1M', '2M'], "unexpected argument '2M'"],
    [['IMAGE'], 'a new image needs a size'],
    [['-u', '-b', 'missing', '-F', 'raw', 'IMAGE'], 'a new image needs a size'],
    [['-b', 'base.qcow2', 'IMAGE'], 'say -F qcow2 or -F raw'],
    [['-u', '-b', 'base.qcow2', 'IMAGE', '1M'], 'say -F qcow2 or -F raw'],
    [['-F', 'qcow2', 'IMAGE', '1M'], 'without a backing file'],
    [['-b', 'missing', '-F', 'qcow2', 'IMAGE'], 'no such file or directory'],
    [['-b', 'missing', '-F', 'qcow2', 'IMAGE', '1M'], 'no such file or directory'],
    [['-b', 'base.raw', '-F', 'qcow2', 'IMAGE'], 'it is not a qcow2 image'],
    [['-b', 'base.qcow2', '-F', 'nofmt', 'IMAGE'], "the backing format 'nofmt' is not read here"],
    [['-b', 'base.qcow2', '-F', '', 'IMAGE'], "the backing format '' is not read here"],
    [['-b', '', '-F', 'qcow2', 'IMAGE', '1M'], 'the name of its backing file is empty'],
    [['-b', 'IMAGE', '-F', 'qcow2', 'IMAGE', '1M'], 'cannot be its own backing file'],
    [['-u', '-b', 'IMAGE', '-F', 'qcow2', 'IMAGE', '1M'], 'cannot be its own backing file'],
  ])('-f qcow2 %j', async (args, message) => {
    const { stderr } = await expectBothFail(['-f', 'qcow2', ...args]);
    expect(stderr).toContain(message);
  });

  it.each([
    [['-f', 'raw', '-b', 'base.raw', '-F', 'raw', 'IMAGE', '1M'], 'a raw image has no backing'],
    [['-f', 'raw', '-F', 'raw', 'IMAGE', '1M'], 'a raw image has no backing file'],
    [['-o', 'cluster_size=4k', 'IMAGE', '1M'], "a raw image has no option 'cluster_size'"],
    [['-o', 'preallocation=metadata', 'IMAGE', '1M'], 'a raw image has no metadata'],
    [['-f', 'nofmt', 'IMAGE', '1M'], "-f must be one of qcow2, raw, not 'nofmt'"],
    [['json:{}', '1M'], "the protocol 'json' is not supported; for a file of that name write ./"],
  ])('%j', async (args, message) => {
    const { stderr } = await expectBothFail(args);
    expect(stderr).toContain(message);
  });

  it.each([
    [['-f', 'vmdk', 'x', '1M'], "-f must be one of qcow2, raw, not 'vmdk'"],
    [['nbd:localhost:1', '1M'], "the protocol 'nbd' is not supported"],
    [['-u', '-b', 'x', '-F', 'vmdk', '-f', 'qcow2', 'y', '1M'], 'qcow2 and raw are'],
    [['-f', 'qcow2', '-o', 'encrypt.format=luks', 'x', '1M'], 'encrypted images are neither'],
    [['-f', 'qcow2', '-o', 'encryption=on', 'x', '1M'], 'encrypted images are neither read nor'],
    [['-o', 'nocow=on', 'x', '1M'], 'use chattr +C'],
    [['--object', 'secret,id=a', 'x', '1M'], '--object is not supported here'],
    [[], 'expected IMAGE [SIZE]'],
  ])('what only qemu-img does: %j', async (args, message) => {
    const { exitCode, stdout, stderr } = await runCommand(command, args);
    expect({ exitCode, stdout }).toEqual({ exitCode: 1, stdout: '' });
    expect(stderr).toMatch(/^qcow2: .+\n$/);
    expect(stderr).toContain(message);
  });

  it('an image in use', async () => {
    const { ours } = makeDirectories();
    const path = join(ours, 'base.qcow2');
    const before = readFileSync(path);
    await using holder = await holdWithQemuIo(['-f', 'qcow2', path]);
    const args = ['-f', 'qcow2', path, '1M'];
    const { exitCode, stdout, stderr } = await runCommand(command, args);
    const expected = tryRun('qemu-img', ['create', ...args]);
    expect({ exitCode, stdout }).toEqual({ exitCode: 1, stdout: expected.stdout });
    expect(stderr).toContain(`it is in use: process ${holder.pid} (qemu-io)`);
    expect(readFileSync(path).equals(before)).toBe(true);
  });
});

describe('the list of options', () => {
  const withoutEncryption = (text: string): string => text.replace(/^ {2}encrypt\..*\n/gm, '');

  it.each([
    [['-f', 'qcow2', '-o', 'help']],
    [['-f', 'qcow2', '-o', '?', 'new']],
    [['-f', 'qcow2', '-o', 'cluster_size=4k,help', 'new', '1M']],
    [['-o', 'help']],
    [['-f', 'raw', '-o', '?', 'new', '1M']],
  ])("is qemu-img's without encryption: %j", async (args) => {
    const result = await runCommand(command, args);
    const expected = tryRun('qemu-img', ['create', ...args]);
    expect(result).toEqual({ ...expected, stdout: withoutEncryption(expected.stdout) });
    expect(existsSync('new')).toBe(false);
  });
});

it('a signal removes the new image', async () => {
  const path = join(temporaryDirectory(), 'new');
  const timer = signalWhenHeard('SIGINT');
  const args = ['-q', '-f', 'qcow2', '-o', 'preallocation=full', path, '2G'];
  const result = await runCommand(command, args);
  clearInterval(timer);
  expect(result).toEqual({
    exitCode: 130,
    stdout: '',
    stderr: `qcow2: interrupted; the new image ${path} was given up\n`,
  });
  expect(existsSync(path)).toBe(false);
});

it('an image made with every default has the size on disk that qemu-img gives it', async () => {
  const { ours, theirs } = await expectSame(['-f', 'qcow2', 'IMAGE', '1G']);
  const [a, b] = [ours, theirs].map((path) => qemuImgJson('info', join(path, 'new')));
  expect({ ...(a as object), filename: '' }).toEqual({ ...(b as object), filename: '' });
});
