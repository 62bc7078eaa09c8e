import { readFileSync, writeFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { command } from '../../src/cli/commands/compare.ts';
import { makeRaw, MiB, qemu, run, scratch } from '../operations/scratch.ts';
import { describePeers } from '../support/peers.ts';
import { runCommand } from './run-command.ts';

const compare = (...args: string[]) => runCommand(command, args);

/** Runs both programs, and expects the same output and exit code. */
async function expectAsQemu(...args: string[]): Promise<{ exitCode: number; stdout: string }> {
  const ours = await compare(...args);
  const theirs = run('qemu-img', ['compare', ...args]);
  expect({ exitCode: ours.exitCode, stdout: ours.stdout }).toEqual({
    exitCode: theirs.status,
    stdout: theirs.stdout,
  });
  expect(ours.stderr === '').toBe(theirs.stderr === '');
  return ours;
}

/** Makes a qcow2 image of 4 MiB on which qemu-io has carried out `commands`. */
function makeQcow2(name: string, commands: string[], options: string[] = []): string {
  const path = scratch(name);
  qemu('qemu-img', 'create', '-q', '-f', 'qcow2', ...options, path, '4M');
  const steps = commands.flatMap((step) => ['-c', step]);
  if (steps.length > 0) qemu('qemu-io', '-f', 'qcow2', ...steps, path);
  return path;
}

describePeers(['qemu-img', 'qemu-io'], 'as qemu-img compare', () => {
  const raw = ['-f', 'raw', '-F', 'raw'];

  test('images of two formats', async () => {
    const a = makeQcow2('a.qcow2', ['write -P 7 1M 100k', 'write -z 2M 64k']);
    const b = scratch('b.raw');
    qemu('qemu-img', 'convert', '-O', 'raw', a, b);
    expect(await expectAsQemu('-F', 'raw', a, b)).toMatchObject({
      exitCode: 0,
      stdout: 'Images are identical.\n',
    });
    qemu('qemu-io', '-f', 'qcow2', '-c', 'write -P 8 1100k 512', a);
    expect(await expectAsQemu('-F', 'raw', a, b)).toMatchObject({
      exitCode: 1,
      stdout: 'Content mismatch at offset 1126400!\n',
    });
    expect(await expectAsQemu('-q', '-F', 'raw', a, b)).toMatchObject({ exitCode: 1, stdout: '' });
  });

  test('images of two sizes', async () => {
    const a = makeRaw('a.raw', 1000);
    const b = makeRaw('b.raw', 2 * MiB, [[1500000, Buffer.from([1])]]);
    await expectAsQemu(...raw, a, b);
    await expectAsQemu('-s', ...raw, a, b);
    await expectAsQemu(...raw, a, makeRaw('c.raw', MiB));
  });

  const layouts: Record<string, string[]> = {
    empty: [],
    data: ['write -P 1 1M 64k'],
    'zero clusters': ['write -z 1M 64k'],
    'zero clusters with space': ['write -P 0 1M 64k', 'write -z 1M 64k'],
    'stored zeroes': ['write -P 0 1M 64k'],
    compressed: ['write -c -P 1 1M 64k'],
    'two compressed': ['write -c -P 1 1M 64k', 'write -c -P 1 1088k 64k'],
    'data at the end': ['write -P 1 1M 64k', 'write -P 1 4032k 64k'],
    'out of order': ['write -P 1 1088k 64k', 'write -P 1 1M 64k'],
    'in order': ['write -P 1 1M 64k', 'write -P 1 1088k 64k'],
  };
  test.each(Object.keys(layouts))('strict comparisons with %s', async (name) => {
    const a = makeQcow2('a.qcow2', layouts[name]!);
    for (const [other, commands] of Object.entries(layouts)) {
      const b = makeQcow2('b.qcow2', commands);
      const { exitCode } = await expectAsQemu('-s', a, b);
      if (other === name) expect(exitCode).toBe(0);
    }
  });

  test('a backing file does not show in strict comparisons', async () => {
    const base = makeQcow2('base.qcow2', ['write -P 1 1M 64k']);
    const overlay = makeQcow2('overlay.qcow2', ['write -P 2 2M 64k'], ['-b', base, '-F', 'qcow2']);
    const flat = makeQcow2('flat.qcow2', ['write -P 1 1M 64k', 'write -P 2 2M 64k']);
    await expectAsQemu('-s', overlay, base);
    expect((await expectAsQemu('-s', overlay, flat)).exitCode).toBe(0);
  });

  test.each([
    ['64k', '100M'],
    ['512', '1M'],
    ['4k', '20M'],
  ])('strict comparisons of many L2 tables, clusters of %s', async (clusterSize, size) => {
    const make = (name: string, ...steps: string[]) => {
      const path = scratch(name);
      const options = ['-q', '-f', 'qcow2', '-o', `cluster_size=${clusterSize}`];
      qemu('qemu-img', 'create', ...options, path, size);
      qemu('qemu-io', '-f', 'qcow2', ...steps.flatMap((step) => ['-c', step]), path);
      return path;
    };
    const forwards = make('a.qcow2', 'write 0 64k', 'write 300k 64k', 'write 400k 64k');
    const backwards = make('b.qcow2', 'write 400k 64k', 'write 300k 64k', 'write 0 64k');
    const less = make('c.qcow2', 'write 0 64k', 'write 300k 64k');
    await expectAsQemu('-s', forwards, backwards);
    await expectAsQemu('-s', forwards, less);
    await expectAsQemu('-s', less, backwards);
  });

  test('what cannot be read is exit code 4', async () => {
    const a = makeQcow2('a.qcow2', ['write -c -P 1 1M 64k']);
    const map = qemu('qemu-img', 'map', '--output=json', a);
    expect(map).toContain('"data": true');
    const bytes = readFileSync(a);
    // The only compressed cluster is the last thing in the file.
    bytes.fill(0xff, 5 * 65536);
    writeFileSync(a, bytes);
    const empty = makeRaw('b.raw', 4 * MiB);
    expect(await expectAsQemu('-F', 'raw', a, empty)).toMatchObject({ exitCode: 4, stdout: '' });
  });

  test('what cannot be mapped is exit code 3', async () => {
    const a = makeQcow2('a.qcow2', ['write -P 1 1M 64k']);
    const bytes = readFileSync(a);
    const l1 = Number(bytes.readBigUInt64BE(40));
    const l2 = Number(bytes.readBigUInt64BE(l1) & 0x00fffffffffffe00n);
    bytes[l2 + 16 * 8 + 6]! |= 0x02;
    writeFileSync(a, bytes);
    const empty = makeRaw('b.raw', 4 * MiB);
    expect(await expectAsQemu('-F', 'raw', a, empty)).toMatchObject({ exitCode: 3, stdout: '' });
  });

  test('progress', async () => {
    const a = makeRaw('a.raw', MiB);
    const ours = await expectAsQemu('-p', ...raw, a, a);
    expect(ours.stdout).toBe('    (0.00/100%)\r    (100.00/100%)\rImages are identical.\n\n');
    expect((await expectAsQemu('-p', '-q', ...raw, a, a)).stdout).toBe('');
  });

  test('what cannot be opened is exit code 2', async () => {
    const a = makeRaw('a.raw', MiB);
    expect((await expectAsQemu(...raw, a, scratch('missing.raw'))).exitCode).toBe(2);
    expect((await expectAsQemu('-f', 'qcow2', a, a)).exitCode).toBe(2);
    expect((await expectAsQemu('-f', 'nonsense', a, a)).exitCode).toBe(2);
    expect((await expectAsQemu('-T', 'nonsense', ...raw, a, a)).exitCode).toBe(2);
    expect((await expectAsQemu('-T', 'none', '-U', ...raw, a, a)).exitCode).toBe(0);
  });
});

describe('bad use', () => {
  test.each([
    [['-f', 'vmdk', 'a', 'b'], "-f must be one of qcow2, raw, not 'vmdk'"],
    [
      ['-T', 'odd', 'a', 'b'],
      '-T must be one of none, writeback, unsafe, writethrough, directsync',
    ],
    [['a'], 'expected IMAGE IMAGE'],
    [['a', 'b', 'c'], "unexpected argument 'c'"],
  ])('%j', async (args, message) => {
    const { exitCode, stdout, stderr } = await compare(...args);
    expect({ exitCode, stdout }).toEqual({ exitCode: 2, stdout: '' });
    expect(stderr).toContain(message);
  });
});
