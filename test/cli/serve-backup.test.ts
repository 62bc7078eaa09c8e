/** Incremental backups, made with the commands of README.md as they are written there. */

import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { expect, it } from 'vitest';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuImgJson, qemuIo, run } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';
import { CLI } from './serve-process.ts';

const README = fileURLToPath(new URL('../../README.md', import.meta.url));
const KiB = 1024;
const MiB = 1024 * KiB;

const directory = temporaryDirectoryPerTest();

function at(name: string): string {
  return join(directory(), name);
}

/** The shell's part of the section: what is done once, and what is done for each backup. */
function commands(): [first: string, next: string] {
  const text = readFileSync(README, 'utf8').split('**Incremental backup.**')[1]!;
  const [first = '', next = ''] = [...text.matchAll(/^```sh\n(.*?)^```$/gms)].map(
    ([, code = '']) => code,
  );
  return [first, next];
}

/** Runs a script where `qcow2` is this command and libnbd's shell finds its Python. */
function shell(script: string): void {
  const path = `${at('bin')}:/usr/bin:${process.env['PATH'] ?? ''}`;
  const env = { ...process.env, PATH: path };
  run('sh', ['-e'], { cwd: directory(), env, input: script });
}

/** What an image holds that its backing file does not: offset and length of each part. */
function ownParts(name: string): [number, number][] {
  const extents = qemuImgJson('map', at(name)) as {
    start: number;
    length: number;
    depth: number;
    data: boolean;
  }[];
  const own = extents.filter(({ depth, data }) => depth === 0 && data);
  return own.map(({ start, length }) => [start, length]);
}

describePeers(['nbdsh', 'qemu-img', 'qemu-io'], 'an incremental backup', () => {
  it('has what was written since the one before it, and no more', { timeout: 60_000 }, () => {
    mkdirSync(at('bin'));
    writeFileSync(at('bin/qcow2'), `#!/bin/sh\nexec '${process.execPath}' '${CLI}' "$@"\n`);
    chmodSync(at('bin/qcow2'), 0o755);
    const [first, next] = commands();
    const disk = at('disk.qcow2');
    qemuImg('create', '-f', 'qcow2', disk, '64M');
    qemuIo(disk, ['write -P 3 0 20M']);
    shell(first);

    qemuIo(disk, ['write -P 7 1M 64k', 'write -P 8 30M 200k', 'write -z 3M 1M']);
    shell(next);
    expect(qemuImg('compare', disk, at('tuesday.qcow2'))).toContain('Images are identical.');
    expect(ownParts('tuesday.qcow2')).toEqual([
      [MiB, 64 * KiB],
      [30 * MiB, 256 * KiB],
    ]);

    qemuIo(disk, ['write -P 9 2M 64k', 'write -P 1 63M 1M']);
    const onWednesday = next
      .replaceAll('tuesday.qcow2', 'wednesday.qcow2')
      .replaceAll('full.qcow2', 'tuesday.qcow2');
    shell(onWednesday);
    expect(qemuImg('compare', disk, at('wednesday.qcow2'))).toContain('Images are identical.');
    expect(ownParts('wednesday.qcow2')).toEqual([
      [2 * MiB, 64 * KiB],
      [63 * MiB, MiB],
    ]);
    for (const name of ['disk', 'full', 'tuesday', 'wednesday']) {
      qemuImg('check', at(`${name}.qcow2`));
    }
  });
});
