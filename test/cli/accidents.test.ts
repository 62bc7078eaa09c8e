/** What must never happen to somebody's image: each command that writes, and each way to go wrong. */

import {
  existsSync,
  linkSync,
  mkdirSync,
  readdirSync,
  statfsSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import { runProgram } from '../../src/cli/program.ts';
import { holdWithQemuIo } from '../support/lock-holder.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo, run, tryRun } from '../support/qemu.ts';
import type { RunResult } from '../support/qemu.ts';
import { sharedTemporaryDirectory, temporaryDirectoryPerTest } from '../support/temp.ts';
import { ProgramFile } from './killed-command.ts';

const folder = temporaryDirectoryPerTest();

/** Runs `qcow2 CALL`, in which `@` stands for the folder and a slash, and `=` for nothing. */
async function qcow2(call: string): Promise<RunResult> {
  let [stdout, stderr] = ['', ''];
  const io = {
    stdout: (text: string) => (stdout += text),
    stderr: (text: string) => (stderr += text),
    isTerminal: false,
  };
  const args = call.split(' ').map((arg) => arg.replaceAll('@', `${folder()}/`).replace(/^=$/, ''));
  return { exitCode: await runProgram(args, io), stdout, stderr };
}

/** What tells whether a file was written. */
function stamps(): string[] {
  return readdirSync(folder()).map((name) => {
    const { size, mtimeNs } = statSync(join(folder(), name), { bigint: true });
    return `${name}: ${size} bytes, changed at ${mtimeNs}`;
  });
}

/** Expects a call to be refused in one line, with every file as it was. */
async function expectRefused(call: string, says: RegExp): Promise<void> {
  const before = stamps();
  const { exitCode, stdout, stderr } = await qcow2(call);
  expect({ exitCode, stdout: stdout.replace(/^Formatting .*\n/, '') }, call + stderr).toEqual({
    exitCode: 1,
    stdout: '',
  });
  expect(stderr).toMatch(/^qcow2: .+\n$/);
  expect(stderr, call).toMatch(says);
  expect(stamps(), call).toEqual(before);
}

beforeEach(() => {
  const at = (name: string): string => join(folder(), name);
  qemuImg('create', '-q', '-f', 'qcow2', at('base.qcow2'), '4M');
  qemuIo(at('base.qcow2'), ['write -P 1 0 1M']);
  qemuImg('create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', at('top.qcow2'));
  qemuIo(at('top.qcow2'), ['write -P 2 512k 64k']);
  qemuImg('create', '-q', '-f', 'qcow2', '-o', `data_file=${at('data')}`, at('split.qcow2'), '1M');
  for (const name of ['base.qcow2', 'top.qcow2', 'data']) {
    linkSync(at(name), at(`hard-${name}`));
    symlinkSync(name, at(`soft-${name}`));
  }
});

describe('an output that is an input is refused', () => {
  const names = (name: string): string[] => [name, `hard-${name}`, `soft-${name}`, `./${name}`];
  const cases = [
    ['top.qcow2', 'top.qcow2'],
    ['top.qcow2', 'base.qcow2'],
    ['split.qcow2', 'data'],
  ].flatMap(([input, output]) => names(output!).map((name) => ({ input: input!, output: name })));

  it.each(cases)('$input to $output', async ({ input, output }) => {
    const isRefused = /also an input|same file as|would overwrite|in use: this process/;
    for (const format of ['raw', 'qcow2']) {
      await expectRefused(`convert -O ${format} @${input} @${output}`, isRefused);
      await expectRefused(`dd -O ${format} if=@${input} of=@${output}`, isRefused);
    }
    await expectRefused(`convert -n -O raw @${input} @${output}`, isRefused);
    await expectRefused(`convert -O qcow2 -o data_file=@${output} @${input} @new`, isRefused);
  });

  it.each(names('top.qcow2'))('top.qcow2 as its own backing file: %s', async (name) => {
    const isRefused = /its own backing file|would overwrite/;
    await expectRefused(`rebase -b ${name} -F qcow2 @top.qcow2`, isRefused);
    await expectRefused(`create -f qcow2 -b ${name} -F qcow2 @top.qcow2`, isRefused);
    await expectRefused(`create -f qcow2 -u -b ${name} -F qcow2 @top.qcow2 1M`, isRefused);
  });
});

describe('what somebody has open is not written', () => {
  const calls = [
    'create -f qcow2 @FILE 1M',
    'create -f raw @FILE 1M',
    'create -f qcow2 -o data_file=@FILE @new 1M',
    'convert -O qcow2 @split.qcow2 @FILE',
    'convert -O raw @split.qcow2 @FILE',
    'convert -n -O qcow2 @split.qcow2 @FILE',
    'dd -O qcow2 if=@split.qcow2 of=@FILE',
    'dd -O raw if=@split.qcow2 of=@FILE',
    'resize @FILE +1M',
    'snapshot -c new @FILE',
    'bitmap --add @FILE new',
    'amend -o lazy_refcounts=on @FILE',
    'check -r all @FILE',
  ];

  it.each(['top.qcow2', 'base.qcow2', 'hard-base.qcow2'])('%s', async (file) => {
    // Its backing file is open for reading with it.
    await using holder = await holdWithQemuIo(['-f', 'qcow2', join(folder(), 'top.qcow2')]);
    for (const call of calls) {
      await expectRefused(call.replace('FILE', file), new RegExp(`in use: .*${holder.pid}`));
    }
    await expectRefused('commit @top.qcow2', /in use/);
    await expectRefused('rebase -u -b base.qcow2 -F qcow2 @top.qcow2', /in use/);
  });
});

it('where no directory is, nothing is made', async () => {
  const missing = /no such file or directory/;
  for (const format of ['raw', 'qcow2']) {
    await expectRefused(`create -f ${format} @none/new 1M`, missing);
    await expectRefused(`convert -O ${format} @top.qcow2 @none/new`, missing);
    await expectRefused(`dd -O ${format} if=@top.qcow2 of=@none/new`, missing);
  }
  await expectRefused('create -f qcow2 -o data_file=@none/data @new 1M', missing);
  await expectRefused('create -f qcow2 @soft-data/new 1M', /not a directory/);
});

it.each(['raw', 'qcow2'])(
  'convert -O %s takes note of signals from before there is an output until it is finished',
  async (format) => {
    const output = join(folder(), 'new');
    const seen: string[] = [];
    const see = (what: string) => (name: string | symbol) => {
      if (name === 'SIGINT') seen.push(`${what}, ${existsSync(output) ? 'made' : 'not made'}`);
    };
    const [noted, left] = [see('noted'), see('left')];
    process.on('newListener', noted).on('removeListener', left);
    expect(await qcow2(`convert -O ${format} @top.qcow2 @new`)).toMatchObject({ exitCode: 0 });
    process.off('newListener', noted).off('removeListener', left);
    expect(seen).toEqual(['noted, not made', 'left, made']);
  },
);

describePeers(['qemu-img'], 'a process that is killed', () => {
  it('leaves no image behind that seems to be whole', async () => {
    const [source, copy] = [join(folder(), 'base.qcow2'), join(folder(), 'copy.qcow2')];
    const program = await ProgramFile.create();
    try {
      const args = ['convert', '-O', 'qcow2', '-r', '1k', source, copy];
      const { signal } = await program.run(args, {
        killWhen: () => (statSync(copy, { throwIfNoEntry: false })?.size ?? 0) >= 1024 * 1024,
      });
      expect(signal).toBe('SIGKILL');
    } finally {
      program.dispose();
    }
    expect(tryRun('qemu-img', ['info', copy])).toMatchObject({
      exitCode: 1,
      stderr: expect.stringContaining('Unsupported qcow2 feature') as string,
    });
    expect(() => openImage(copy)).toThrow(/copy\.qcow2: header.*: it is not finished/);
    expect(await qcow2('convert -O qcow2 @base.qcow2 @copy.qcow2')).toMatchObject({ exitCode: 0 });
    expect(qemuImg('compare', source, copy)).toBe('Images are identical.\n');
  });
});

describePeers(['root', 'mount', 'qemu-img'], 'on a full filesystem', () => {
  const mounted = join(sharedTemporaryDirectory(), 'full');
  beforeAll(() => mkdirSync(mounted));
  beforeEach(() => void run('mount', ['-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', mounted]));
  afterAll(() => void tryRun('umount', [mounted]));

  /** Images that fill most of the filesystem, and what each reads as. */
  function fill(): Map<string, string> {
    const at = (name: string): string => join(mounted, name);
    qemuImg('create', '-q', '-f', 'qcow2', at('base.qcow2'), '16M');
    qemuIo(at('base.qcow2'), ['write -P 1 0 1M']);
    qemuImg('create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', at('top.qcow2'));
    qemuIo(at('top.qcow2'), ['write -P 2 2M 1M']);
    return contents();
  }

  function contents(): Map<string, string> {
    const digest = (name: string): string => {
      const copy = join(folder(), 'copy');
      qemuImg('convert', '-O', 'raw', join(mounted, name), copy);
      return run('sha256sum', [copy]);
    };
    return new Map(['base.qcow2', 'top.qcow2'].map((name) => [name, digest(name)]));
  }

  it.each([
    ['commit @top.qcow2', 'top.qcow2'],
    ['rebase -b = @top.qcow2', 'top.qcow2'],
    ['resize --preallocation=full @base.qcow2 32M', 'base.qcow2'],
    ['resize --preallocation=falloc @base.qcow2 32M', 'base.qcow2'],
    ['create -f qcow2 -o preallocation=full @new 16M', 'top.qcow2'],
    ['convert -O qcow2 @top.qcow2 @new', 'top.qcow2'],
    ['convert -O raw @top.qcow2 @new', 'top.qcow2'],
    ['dd -O qcow2 if=@top.qcow2 of=@new', 'top.qcow2'],
    ['amend -o refcount_bits=64 @top.qcow2', 'top.qcow2'],
  ])('%s leaves all images what they were', async (call, image) => {
    try {
      const before = fill();
      const files = readdirSync(mounted);
      if (call.startsWith('amend')) leaveNoSpace();
      const { exitCode, stderr } = await qcow2(call.replaceAll('@', `${mounted}/`));
      expect(exitCode, stderr).toBe(1);
      expect(stderr).toMatch(/^qcow2: .*no space left.*\n$/);
      expect(readdirSync(mounted).filter((name) => name !== 'rest')).toEqual(files);
      expect(contents().get(image)).toBe(before.get(image));
      for (const name of files) {
        const { exitCode: found, stdout } = tryRun('qemu-img', ['check', join(mounted, name)]);
        expect([0, 3], stdout).toContain(found);
      }
    } finally {
      run('umount', [mounted]);
    }
  });

  /** All but a few blocks are taken. */
  function leaveNoSpace(): void {
    const { bavail, bsize } = statfsSync(mounted);
    writeFileSync(join(mounted, 'rest'), Buffer.alloc((bavail - 4) * bsize));
  }
});
