/** `qcow2 qemu-img` tells errors in qemu-img's words and with its exit codes. */

import { mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { holdWithQemuIo } from '../support/lock-holder.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, tryRun } from '../support/qemu.ts';
import { makeTemporaryDirectory, removeTemporaryDirectory } from '../support/temp.ts';
import { runDropIn } from './run-drop-in.ts';
import { makeTwins } from './twins.ts';
import type { Twins } from './twins.ts';

function makeImages(directory: string): void {
  const at = (name: string): string => join(directory, name);
  qemuImg('create', '-q', '-f', 'qcow2', at('a.qcow2'), '8M');
  qemuImg('create', '-q', '-f', 'qcow2', '-b', 'a.qcow2', '-F', 'qcow2', at('t.qcow2'));
  const gone = ['-b', at('gone.qcow2'), '-F', 'qcow2', '-u', at('orphan.qcow2'), '1M'];
  qemuImg('create', '-q', '-f', 'qcow2', ...gone);
  writeFileSync(at('r.raw'), '');
  truncateSync(at('r.raw'), 1024 * 1024);
  mkdirSync(at('directory'));
  writeFileSync(at('corrupt.qcow2'), readFileSync(at('a.qcow2')));
  const corrupt = readFileSync(at('corrupt.qcow2'));
  corrupt[79] = 2;
  writeFileSync(at('corrupt.qcow2'), corrupt);
}

/** Calls that fail, in which `@` stands for the directory of the images. */
const CALLS = `
foo
--bogus
-x
-T
info
info a b
info --bogus @a.qcow2
info -x @a.qcow2
info -f
info @nope
info -f qcow2 @r.raw
info -f bogus @r.raw
info --output=xml @a.qcow2
info @directory
info @r.raw/a
info --backing-chain @orphan.qcow2
info --image-opts driver=qcow2,file.filename=@nope
info --image-opts driver=bogus,file.filename=@a.qcow2
info --image-opts -f qcow2 driver=qcow2,file.filename=@a.qcow2
info foo:bar
map
map @orphan.qcow2
map -s x @a.qcow2
map -l x @a.qcow2
check
check @nope
check @r.raw
check -r foo @a.qcow2
check -f qcow2 @r.raw
check -T foo @a.qcow2
create
create -f vmdk
create -f qcow2 @n.qcow2
create -f qcow2 @n.qcow2 foo
create -f qcow2 @n.qcow2 -1
create -f qcow2 @n.qcow2 1M 2M
create -f bogus @n.qcow2 1M
create -f qcow2 -b @nope -F qcow2 @n.qcow2
create -f qcow2 -b @a.qcow2 -F raw2 @n.qcow2
create -f qcow2 -o bogus=1 @n.qcow2 1M
create -f qcow2 -o cluster_size=3 @n.qcow2 1M
create -f qcow2 -o compat=x @n.qcow2 1M
create -f qcow2 -o preallocation=foo @n.qcow2 1M
create -f qcow2 @nodir/n.qcow2 1M
create -f raw @nodir/n.raw 1M
create -f raw -b @a.qcow2 @n.raw 1M
resize @a.qcow2
resize @a.qcow2 4M
resize @a.qcow2 foo
resize @nope 1M
resize -f raw @r.raw 1k
resize @r.raw 1k
resize @a.qcow2 -100M
resize 1M
resize -f qcow2 @r.raw 2M
resize --preallocation=foo @a.qcow2 10M
resize @corrupt.qcow2 16M
convert
convert @a.qcow2
convert @nope @out
convert -O bogus @a.qcow2 @out
convert -f bogus @a.qcow2 @out
convert -O qcow2 -o bogus=1 @a.qcow2 @out
convert -O qcow2 -o cluster_size=3 @a.qcow2 @out
convert -O qcow2 -o compat=x @a.qcow2 @out
convert -O qcow2 -o preallocation=foo @a.qcow2 @out
convert @a.qcow2 @nodir/out
convert -O qcow2 @a.qcow2 @nodir/out
convert -S 3 @a.qcow2 @out
convert -S x @a.qcow2 @out
convert -m 99 @a.qcow2 @out
convert -l nosnap @a.qcow2 @out
convert -O raw -c @a.qcow2 @out
convert -n @a.qcow2 @nout
convert -n -O qcow2 @a.qcow2 @nout
convert -t foo @a.qcow2 @out
convert -T foo @a.qcow2 @out
convert -r x @a.qcow2 @out
convert --target-is-zero @a.qcow2 @out
convert -B @a.qcow2 -O raw @t.qcow2 @out
convert @orphan.qcow2 @out
convert @directory @out
convert -n @a.qcow2 @r.raw
snapshot
snapshot -d nosnap @a.qcow2
snapshot -a nosnap @a.qcow2
snapshot -c a -d b @a.qcow2
snapshot -l @nope
snapshot -c x @nope
commit
commit @a.qcow2
commit @nope
commit -b nobase @t.qcow2
commit -f raw @r.raw
commit -t foo @t.qcow2
rebase
rebase @t.qcow2
rebase @nope
rebase -u -b x -F qcow2 @nope
rebase -b @nope -F qcow2 @t.qcow2
rebase -b @a.qcow2 @t.qcow2
rebase -b @a.qcow2 -F bogus @t.qcow2
rebase -b @a.qcow2 -F qcow2 -f raw @r.raw
rebase -t foo -b @a.qcow2 -F qcow2 @t.qcow2
compare
compare @a.qcow2
compare @a.qcow2 @nope
compare @nope @a.qcow2
compare -f bogus @a.qcow2 @t.qcow2
compare -F bogus @a.qcow2 @t.qcow2
compare @a.qcow2 @t.qcow2 @r.raw
compare -f qcow2 @r.raw @a.qcow2
measure
measure --size x
measure -O bogus --size 1M
measure -O qcow2 @nope
measure --size 1M @a.qcow2
measure @a.qcow2 @t.qcow2
amend
amend @a.qcow2
amend -o compat=1.1
amend -o bogus=1 @a.qcow2
amend -o compat=1.1 @nope
amend -o compat=x @a.qcow2
amend -f raw -o size=1M @r.raw
bitmap
bitmap @a.qcow2
bitmap --add @a.qcow2
bitmap --add @nope b
bitmap --add -g x @a.qcow2 b
bitmap --remove @a.qcow2 b
bitmap --clear @a.qcow2 b
dd
dd if=@nope of=@out
dd if=@a.qcow2
dd if=@a.qcow2 of=@out bs=x
dd if=@a.qcow2 of=@out foo=1
dd foo
dd -f bogus if=@a.qcow2 of=@out
dd -O bogus if=@a.qcow2 of=@out
dd if=@a.qcow2 of=@nodir/out
bench
bench @nope
bench @a.qcow2 b
bench -c x @a.qcow2
bench -d x @a.qcow2
bench -t foo @a.qcow2
`;

/** Calls for images that somebody has open, and writes to. */
const LOCKED_CALLS = `
info @a.qcow2
check @a.qcow2
map @a.qcow2
map @t.qcow2
convert @a.qcow2 @out
convert -O qcow2 @r.raw @a.qcow2
convert -n -O qcow2 @r.raw @a.qcow2
convert @t.qcow2 @out
resize @a.qcow2 10M
snapshot -c x @a.qcow2
snapshot -l @a.qcow2
create -f qcow2 @a.qcow2 1M
compare @a.qcow2 @r.raw
rebase -u -b x -F qcow2 @a.qcow2
measure -O raw @a.qcow2
amend -o compat=0.10 @a.qcow2
bitmap --add @a.qcow2 b
dd if=@r.raw of=@a.qcow2
dd if=@a.qcow2 of=@out
info --image-opts driver=qcow2,file.filename=@a.qcow2
`;

function linesOf(table: string): string[] {
  return table.split('\n').filter((line) => line !== '');
}

function argumentsIn(directory: string, line: string): string[] {
  return line.split(' ').map((argument) => argument.replaceAll('@', `${directory}/`));
}

async function expectSame(twins: Twins, line: string): Promise<void> {
  const theirs = tryRun('qemu-img', argumentsIn(twins.theirs, line));
  const ours = await runDropIn(argumentsIn(twins.ours, line));
  expect(theirs.exitCode, 'it should fail').not.toBe(0);
  const stderr = theirs.stderr.replaceAll(twins.theirs, twins.ours);
  expect({ stderr: ours.stderr, exitCode: ours.exitCode }).toEqual({
    stderr,
    exitCode: theirs.exitCode,
  });
}

describePeers(['qemu-img', 'qemu-io'], 'errors of the drop-in', () => {
  const directory = makeTemporaryDirectory();
  let twins: Twins;
  beforeAll(() => {
    twins = makeTwins(makeImages, directory);
  });
  afterAll(() => removeTemporaryDirectory(directory));

  it.each(linesOf(CALLS))('qemu-img %s', async (line) => {
    await expectSame(twins, line);
  });

  it.each(linesOf(LOCKED_CALLS))('qemu-img %s, which is in use', async (line) => {
    const holders = [twins.ours, twins.theirs].map((path) => holdWithQemuIo([`${path}/a.qcow2`]));
    const started = await Promise.all(holders);
    try {
      await expectSame(twins, line);
    } finally {
      for (const holder of started) await holder[Symbol.asyncDispose]();
    }
  });
});
