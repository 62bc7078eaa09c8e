import { existsSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { command } from '../../src/cli/commands/dd.ts';
import { openImage } from '../../src/index.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo } from '../support/qemu.ts';
import { Random } from '../support/random.ts';
import { temporaryDirectory } from '../support/temp.ts';
import { runCommand } from './run-command.ts';
import { signalWhenHeard } from './signals.ts';
import { expectAsQemu, expectSameImage, makeTwins } from './twins.ts';
import type { Twins } from './twins.ts';

const KiB = 1024;
const SEED = Number(process.env.QCOW2_DD_SEED ?? Date.now() % 1_000_000);

/** `in.raw` of 10,000 bytes without zeroes, and `in.qcow2` of 1 MiB over a backing file. */
function makeInputs(): Twins {
  return makeTwins((directory) => {
    const random = new Random(7);
    const bytes = Uint8Array.from({ length: 10_000 }, () => 1 + random.below(255));
    writeFileSync(join(directory, 'in.raw'), bytes);
    const [base, top] = [join(directory, 'base.qcow2'), join(directory, 'in.qcow2')];
    qemuImg('create', '-q', '-f', 'qcow2', base, '600k');
    qemuIo(base, ['write -q -P 1 50k 100k', 'write -q -P 2 500k 100k']);
    const backing = ['-b', 'base.qcow2', '-F', 'qcow2', '-o', 'cluster_size=4k'];
    qemuImg('create', '-q', '-f', 'qcow2', ...backing, top, '1M');
    qemuIo(top, ['write -q -P 3 100k 20k', 'write -q -z 520k 8k', 'write -q -P 4 1023k 1k']);
  });
}

/** Expects the same output of both, or none. */
function expectSameOutput(twins: Twins, name = 'out'): void {
  const [ours, theirs] = [join(twins.ours, name), join(twins.theirs, name)];
  expect(existsSync(ours)).toBe(existsSync(theirs));
  if (!existsSync(ours)) return;
  expect(readFileSync(ours).equals(readFileSync(theirs))).toBe(true);
}

describePeers(['qemu-img', 'qemu-io'], 'as qemu-img dd', () => {
  test('what is copied of a raw image', async () => {
    const twins = makeInputs();
    for (const operands of [
      [],
      ['bs=1000'],
      ['bs=1000', 'count=3'],
      ['count=3', 'skip=1'],
      ['count=1', 'skip=1'],
      ['count=0'],
      ['count=0', 'skip=0'],
      ['skip=5'],
      ['skip=20'],
      ['skip=19'],
      ['skip=20', 'bs=500'],
      ['bs=7', 'count=1000', 'skip=3'],
      ['bs=2147483647'],
      ['bs=1k', 'count=1k'],
      ['bs=1k', 'bs=512', 'count=2'],
      ['count=0x2'],
      ['count=2b'],
      ['bs=1.5k', 'count=2'],
      ['count=4E'],
    ]) {
      const args = ['-f', 'raw', ...operands, 'if=DIR/in.raw', 'of=DIR/out'];
      const { exitCode, stderr } = await expectAsQemu(command, twins, args);
      expect([exitCode, stderr], operands.join(' ')).toEqual([0, '']);
      expectSameOutput(twins);
    }
  });

  test('what is past the end is told, and nothing is copied', async () => {
    const twins = makeInputs();
    for (const operands of [
      ['skip=100'],
      ['skip=21'],
      ['count=2', 'skip=3'],
      ['skip=4E', 'bs=4'],
    ]) {
      const args = ['-f', 'raw', ...operands, 'if=DIR/in.raw', 'of=DIR/out'];
      const { exitCode, stderr } = await expectAsQemu(command, twins, args);
      expect(exitCode).toBe(0);
      expect(stderr).toMatch(/^qcow2: warning: .*in\.raw: cannot skip to the specified offset/);
      expectSameOutput(twins);
      expect(statSync(join(twins.ours, 'out')).size).toBe(0);
    }
  });

  test('what is refused, before there is any output', async () => {
    const twins = makeInputs();
    for (const args of [
      [],
      ['if=DIR/in.raw'],
      ['of=DIR/out'],
      ['if=DIR/in.raw', 'of=DIR/out', 'foo=3'],
      ['if=DIR/in.raw', 'of=DIR/out', 'foo'],
      ['if=DIR/in.raw', 'of=DIR/out', 'bs'],
      ['if=DIR/in.raw', 'of=DIR/out', 'conv=sync'],
      ['if=DIR/in.raw', 'of=DIR/out', 'bs=0'],
      ['if=DIR/in.raw', 'of=DIR/out', 'bs=2G'],
      ['if=DIR/in.raw', 'of=DIR/out', 'bs=odd'],
      ['if=DIR/in.raw', 'of=DIR/out', 'bs=-1'],
      ['if=DIR/in.raw', 'of=DIR/out', 'bs=0', 'bs=512'],
      ['if=DIR/in.raw', 'of=DIR/out', 'count=odd'],
      ['if=DIR/in.raw', 'of=DIR/out', 'count=1.5'],
      ['if=DIR/in.raw', 'of=DIR/out', 'count=8E'],
      ['if=DIR/in.raw', 'of=DIR/out', 'count='],
      ['if=DIR/in.raw', 'of=DIR/out', 'skip=-1'],
      ['if=DIR/in.raw', 'of=DIR/out', 'skip=8E'],
      ['if=DIR/missing', 'of=DIR/out'],
      ['-f', 'odd', 'if=DIR/in.raw', 'of=DIR/out'],
      ['-O', 'odd', 'if=DIR/in.raw', 'of=DIR/out'],
      ['-f', 'qcow2', 'if=DIR/in.raw', 'of=DIR/out'],
      ['-o', 'size=1M', 'if=DIR/in.raw', 'of=DIR/out'],
      ['if=DIR/in.raw', 'of=DIR/missing/out'],
      ['if=DIR/in.raw', 'of=DIR/'],
    ]) {
      const { exitCode } = await expectAsQemu(command, twins, args);
      expect(exitCode, args.join(' ')).toBe(1);
      expectSameOutput(twins);
    }
  });

  test.each([['raw'], ['qcow2']])('of a qcow2 image with a backing file to %s', async (format) => {
    const twins = makeInputs();
    for (const operands of [
      [],
      ['bs=64k', 'skip=7'],
      ['bs=3000', 'count=200', 'skip=20'],
      ['count=0'],
    ]) {
      const args = ['-O', format, ...operands, 'if=DIR/in.qcow2', 'of=DIR/out'];
      await expectAsQemu(command, twins, args);
      expectSameImage(twins, 'out', { format, allocation: false });
      // Never more than QEMU takes: it writes zeroes too.
      const [ours, theirs] = [twins.ours, twins.theirs].map((at) => statSync(join(at, 'out')));
      expect(ours!.blocks).toBeLessThanOrEqual(theirs!.blocks);
    }
  });

  test(`any blocks of any size, from seed ${SEED}`, async () => {
    const twins = makeInputs();
    const some = fc.record(
      {
        bs: fc.integer({ min: 1, max: 200_000 }),
        count: fc.nat({ max: 300 }),
        skip: fc.nat({ max: 300 }),
      },
      { requiredKeys: ['bs'] },
    );
    for (const operands of fc.sample(some, { numRuns: 12, seed: SEED })) {
      const given = Object.entries(operands).map(([name, value]) => `${name}=${value}`);
      const args = ['-f', 'qcow2', ...given, 'if=DIR/in.qcow2', 'of=DIR/out'];
      await expectAsQemu(command, twins, args);
      expectSameOutput(twins);
    }
  });

  test('over an output that exists, larger and of another format', async () => {
    const twins = makeInputs();
    await expectAsQemu(command, twins, ['-O', 'qcow2', 'if=DIR/in.qcow2', 'of=DIR/out']);
    await expectAsQemu(command, twins, ['-f', 'raw', 'if=DIR/in.raw', 'of=DIR/out', 'count=4']);
    expectSameOutput(twins);
    expect(statSync(join(twins.ours, 'out')).size).toBe(2 * KiB);
  });

  test('an image by its options', async () => {
    const twins = makeInputs();
    const input = 'if=driver=raw,offset=512,size=2048,file.filename=DIR/in.raw';
    await expectAsQemu(command, twins, ['--image-opts', 'skip=1', input, 'of=DIR/out']);
    expectSameOutput(twins);
    expect(statSync(join(twins.ours, 'out')).size).toBe(1536);
  });

  test('an image that is in use is read with -U only', async () => {
    const twins = makeInputs();
    const path = join(twins.ours, 'in.qcow2');
    const out = join(twins.ours, 'out');
    using held = openImage(path, { writable: true });
    const refused = await runCommand(command, [`if=${held.path}`, `of=${out}`]);
    expect(refused).toMatchObject({ exitCode: 1, stdout: '' });
    expect(existsSync(out)).toBe(false);
    const { exitCode } = await runCommand(command, ['-U', `if=${held.path}`, `of=${out}`]);
    expect(exitCode).toBe(0);
    expect(statSync(out).size).toBe(1024 * KiB);
  });
});

describePeers(['qemu-img', 'qemu-io'], 'an output that cannot be', () => {
  test('the input is not overwritten, which QEMU empties', async () => {
    const path = join(temporaryDirectory(), 'disk.raw');
    writeFileSync(path, 'x'.repeat(1024));
    const args = ['-f', 'raw', `if=${path}`, `of=${path}`];
    const { exitCode, stderr } = await runCommand(command, args);
    const problem = 'the output is also an input; nothing was written';
    expect([exitCode, stderr]).toEqual([1, `qcow2: ${path}: ${problem}\n`]);
    expect(readFileSync(path, 'utf8')).toBe('x'.repeat(1024));
  });

  test.each([['raw'], ['qcow2']])(
    'what was made of it is removed when the input is damaged: %s',
    async (format) => {
      const twins = makeInputs();
      const path = join(twins.ours, 'in.qcow2');
      const out = join(twins.ours, 'out');
      // The last data cluster is gone.
      truncateSync(path, statSync(path).size - 4 * KiB);
      const { exitCode, stderr } = await runCommand(command, [
        '-O',
        format,
        `if=${path}`,
        `of=${out}`,
      ]);
      expect(exitCode).toBe(1);
      expect(stderr).toContain(`the incomplete ${out} was removed`);
      expect(existsSync(out)).toBe(false);
    },
  );

  test.each([['raw'], ['qcow2']])(
    'what was made of it is removed at an interrupt: %s',
    async (format) => {
      const directory = temporaryDirectory();
      const [path, out] = [join(directory, 'disk.qcow2'), join(directory, 'out')];
      qemuImg('create', '-q', '-f', 'qcow2', path, '256M');
      qemuIo(path, ['write -q -P 1 0 256M']);
      const timer = signalWhenHeard('SIGINT');
      const { exitCode, stderr } = await runCommand(command, [
        '-O',
        format,
        `if=${path}`,
        `of=${out}`,
      ]);
      clearInterval(timer);
      expect(exitCode).toBe(130);
      expect(stderr).toMatch(
        /^qcow2: interrupted; (the incomplete .*out was removed|.*not made)\n$/,
      );
      expect(existsSync(out)).toBe(false);
    },
  );

  test('progress', async () => {
    const twins = makeInputs();
    const files = [`if=${join(twins.ours, 'in.qcow2')}`, `of=${join(twins.ours, 'out')}`];
    const { stdout } = await runCommand(command, ['-p', ...files]);
    expect(stdout).toMatch(/^ {4}\(0\.00\/100%\)\r[^]*\(100\.00\/100%\)\r\n$/);
  });
});
