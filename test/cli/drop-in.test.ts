/** `qcow2 qemu-img` where programs call qemu-img: the calls that they make, on equal images. */

import { symlinkSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { loadCommand } from '../../src/cli/commands.ts';
import { QEMU_IMG_COMMANDS } from '../../src/cli/qemu-img-commands.ts';
import { CLI_PATH } from '../support/cli.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo, run, tryRun } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';
import { runDropIn } from './run-drop-in.ts';
import { expectSameImage, makeTwins } from './twins.ts';

function makeImages(directory: string): void {
  const at = (name: string): string => join(directory, name);
  qemuImg('create', '-q', '-f', 'qcow2', at('base.qcow2'), '8M');
  qemuIo(at('base.qcow2'), ['write -P 1 0 1M', 'write -P 2 5M 192k']);
  qemuImg('create', '-q', '-f', 'qcow2', '-b', 'base.qcow2', '-F', 'qcow2', at('top.qcow2'));
  qemuIo(at('top.qcow2'), ['write -P 3 2M 128k']);
  qemuImg('snapshot', '-c', 'first', at('base.qcow2'));
  writeFileSync(at('disk.raw'), Buffer.alloc(100_352, 7));
  truncateSync(at('disk.raw'), 4 * 1024 * 1024);
}

/** What each program calls, in which `@` stands for the directory of the images. */
const CALLS: Readonly<Record<string, string>> = {
  libvirt: `
create -f qcow2 -o compat=1.1,lazy_refcounts @new.qcow2 10240K
create -f qcow2 -b @base.qcow2 -o backing_fmt=qcow2,compat=1.1 @new.qcow2 8192K
create -f qcow2 -o preallocation=metadata,compat=0.10 @new.qcow2 4096K
convert -f raw -O qcow2 -o compat=1.1,lazy_refcounts @disk.raw @new.qcow2
resize @base.qcow2 16777216
snapshot -c s1 @base.qcow2
snapshot -a first @base.qcow2
snapshot -d first @base.qcow2`,
  Vagrant: `
info --output=json @base.qcow2
create -f qcow2 -o backing_file=@base.qcow2,backing_fmt=qcow2 @new.qcow2
convert -c -O qcow2 @top.qcow2 @new.qcow2
rebase -u -b @base.qcow2 -F qcow2 @top.qcow2
convert -p -O qcow2 @base.qcow2 @new.qcow2`,
  Packer: `
create -f qcow2 @new.qcow2 40960M
create -f qcow2 -F qcow2 -b @base.qcow2 @new.qcow2 16M
resize -f qcow2 @base.qcow2 16M
convert -S 16k -c -O qcow2 @base.qcow2 @new.qcow2
convert -O raw @top.qcow2 @new.raw`,
  OpenStack: `
info @base.qcow2 --force-share --output=json
info @top.qcow2
info -f qcow2 --output=json @base.qcow2
convert -t none -O raw -f qcow2 @top.qcow2 @new.raw
convert -O qcow2 -T none -t none -f raw -S 0 @disk.raw @new.qcow2
convert -f qcow2 -O raw -W -m 4 @base.qcow2 @new.raw
create -f qcow2 -o backing_file=@base.qcow2,backing_fmt=qcow2,size=8388608 @new.qcow2
rebase -b  @top.qcow2
commit @top.qcow2
create -f raw @new.raw 1M
resize -f raw @disk.raw 8388608`,
  oVirt: `
info --output json -U @top.qcow2
info --output json --backing-chain @top.qcow2
map --output json @top.qcow2
measure --output json -f qcow2 -O qcow2 @base.qcow2
measure --output json -O qcow2 --size 1073741824
check --output json -f qcow2 @base.qcow2
create -f qcow2 -o compat=1.1 -u -b base.qcow2 -F qcow2 @new.qcow2 8388608
commit -p -t none -b @base.qcow2 -f qcow2 @top.qcow2
rebase -p -t none -T none -f qcow2 -u -b base.qcow2 -F qcow2 @top.qcow2
amend -f qcow2 -o compat=1.1 @base.qcow2
bitmap --add --enable @base.qcow2 4b1f
compare -p -U -f qcow2 -F qcow2 @base.qcow2 @base.qcow2
convert -p -t none -T none -f qcow2 -O qcow2 -o compat=1.1 -W @top.qcow2 @new.qcow2`,
  Proxmox: `
info --output=json @base.qcow2
create -o preallocation=metadata -f qcow2 @new.qcow2 4194K
create -o preallocation=off -f raw @new.raw 4M
create -o backing_fmt=qcow2 -b @base.qcow2 -f qcow2 @new.qcow2
resize --preallocation=metadata -f qcow2 @base.qcow2 16777216
convert -p -f qcow2 -O raw @base.qcow2 @new.raw
convert -p -n -f qcow2 -O raw @base.qcow2 @base.qcow2.none
dd -f raw -O raw bs=4k if=@disk.raw of=@new.raw
snapshot -l @base.qcow2`,
  libguestfs: `
info --output=json @base.qcow2
create -q -f qcow2 -o preallocation=off,backing_file=@base.qcow2,backing_fmt=qcow2 @new.qcow2
check -q @base.qcow2
map --output=json -f raw @disk.raw
convert -q -f qcow2 -O raw --target-is-zero -n @base.qcow2 @disk.raw`,
  Lima: `
info --output=json --force-share @base.qcow2
convert -f raw -O qcow2 @disk.raw @new.qcow2
create -f qcow2 -F qcow2 -b @base.qcow2 @new.qcow2 100G
compare @base.qcow2 @top.qcow2
--trace enable=nothing info @base.qcow2`,
};

const rows = Object.entries(CALLS).flatMap(([program, calls]) =>
  calls
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => ({ program, line })),
);

/** Without what the host's filesystem decides, and without steps of progress. */
function comparable(text: string): string {
  return text
    .replace(/^disk size: .*$/gm, '')
    .replace(/"actual-size": \d+/g, '')
    .replace(/(?: {4}\(\d+\.\d\d\/100%\)\r)+\n?/g, '');
}

describePeers(['qemu-img', 'qemu-io'], 'the drop-in', () => {
  it.each(rows)('does what $program asks for: $line', async ({ line }) => {
    const twins = makeTwins(makeImages);
    const inDirectory = (directory: string): string[] =>
      line.split(' ').map((argument) => argument.replaceAll('@', `${directory}/`));
    const theirs = tryRun('qemu-img', inDirectory(twins.theirs));
    const ours = await runDropIn(inDirectory(twins.ours));
    const shown = comparable(theirs.stdout.replaceAll(twins.theirs, twins.ours));
    expect(ours.exitCode, ours.stderr + theirs.stderr).toBe(theirs.exitCode);
    expect(comparable(ours.stdout)).toBe(shown);
    if (theirs.exitCode !== 0) return;
    for (const name of ['base.qcow2', 'top.qcow2', 'new.qcow2']) {
      // Allocation is compared where the commands themselves are tested.
      expectSameImage(twins, name, { allocation: false });
    }
    expectSameImage(twins, 'new.raw', { format: 'raw', allocation: false });
    expectSameImage(twins, 'disk.raw', { format: 'raw', allocation: false });
  });

  it('has every command of qemu-img, and offers its options', async () => {
    const theirs = qemuImg('--help');
    const ours = (await runDropIn(['--help'])).stdout;
    const namesIn = (help: string): string[] =>
      [...help.matchAll(/^ {2}([a-z]+) \[?[-(]/gm)].map(([, name]) => name!);
    const offered = namesIn(theirs);
    expect(offered).toHaveLength(15);
    expect([...QEMU_IMG_COMMANDS].sort()).toEqual([...new Set(offered)].sort());
    for (const line of theirs.split('\n').filter((text) => /^ {2}[a-z]+ .*-/.test(text))) {
      const [name = ''] = line.trim().split(' ');
      if (!QEMU_IMG_COMMANDS.includes(name)) continue;
      const { options } = (await loadCommand(name))!;
      const known = Object.entries(options).flatMap(([option, { short }]) => [
        `--${option}`,
        `-${short}`,
      ]);
      for (const [option] of line.matchAll(/(?<=[\s[(|])--?[a-zA-Z][a-z-]*/g)) {
        expect(known, `${name} ${option}`).toContain(option);
      }
    }
    expect(ours).toMatch(/^ {2}convert .*\[--target-is-zero\].*/m);
    expect(ours).toMatch(/^Supported formats: .*qcow2.*raw/m);
  });
});

describe('what the drop-in says of itself', () => {
  it.each(['--version', '-V'])('%s begins like qemu-img', async (option) => {
    const { exitCode, stdout, stderr } = await runDropIn([option]);
    expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
    expect(/^qemu-img version (\d+)\.(\d+)\.(\d+) \(qcow2 .*\)\n/.exec(stdout)).toMatchObject({
      1: '7',
      2: '2',
    });
  });

  it.each([['--help'], ['-h'], ['info', '--help'], ['-T', 'x', 'convert', '-h']])(
    '%s %s %s %s shows the help',
    async (...args) => {
      const given = args.filter((argument) => typeof argument === 'string');
      const { exitCode, stdout } = await runDropIn(given);
      expect({ exitCode, stdout }).toEqual({ exitCode: 0, stdout: expect.any(String) as string });
      expect(stdout).toMatch(/^qemu-img version 7\.2\.\d+ /);
      expect(stdout).toContain('usage: qemu-img [standard options] command [command options]');
    },
  );

  it('does not have the other commands', async () => {
    const { exitCode, stderr } = await runDropIn(['mount', 'x']);
    expect({ exitCode, stderr }).toEqual({
      exitCode: 1,
      stderr: "qemu-img: Command not found: mount\nTry 'qemu-img --help' for more information\n",
    });
  });

  it('is what a link named qemu-img runs', () => {
    const link = join(temporaryDirectory(), 'qemu-img');
    symlinkSync(CLI_PATH, link);
    expect(run(process.execPath, [link, '--version'])).toMatch(/^qemu-img version 7\.2\./);
    const { exitCode, stderr } = tryRun(process.execPath, [link, 'info', 'missing']);
    expect({ exitCode, stderr }).toEqual({
      exitCode: 1,
      stderr:
        "qemu-img: Could not open 'missing': Could not open 'missing': No such file or directory\n",
    });
  });
});
