/** `qcow2 info` and `qcow2 map` print what `qemu-img info` and `qemu-img map` print. */

import { mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { command as info } from '../../src/cli/commands/info.ts';
import { command as map } from '../../src/cli/commands/map.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo, tryRun } from '../support/qemu.ts';
import { runCommand } from './run-command.ts';

const directory = mkdtempSync(join(tmpdir(), 'qcow2-info-'));
const at = (name: string): string => join(directory, name);
afterAll(() => {
  rmSync(directory, { recursive: true, force: true });
});

/** Changes bytes of a file in place. */
function patch(path: string, offset: number, bytes: readonly number[]): void {
  const content = readFileSync(path);
  content.set(bytes, offset);
  writeFileSync(path, content);
}

const IMAGES = ['plain', 'v2', 'overlay', 'top', 'dirty', 'zstd', 'data', 'empty', 'odd.raw'];

function makeImages(): void {
  writeFileSync(at('odd.raw'), 'ten bytes!');
  qemuImg('create', '-q', '-f', 'qcow2', at('plain'), '3M');
  qemuIo(at('plain'), ['write -P 7 64k 192k', 'write -z 1M 64k']);
  qemuImg('create', '-q', '-f', 'qcow2', '-o', 'compat=0.10', at('v2'), '1M');
  qemuImg('snapshot', '-c', 'a name that is longer than its column', at('v2'));
  qemuImg('create', '-q', '-f', 'qcow2', '-b', 'plain', '-F', 'qcow2', at('overlay'), '5M');
  qemuIo(at('overlay'), ['write -P 8 128k 64k', 'write -P 9 4M 512']);
  qemuImg('snapshot', '-c', 'first', at('overlay'));
  qemuImg('snapshot', '-c', 'second', at('overlay'));
  qemuImg('bitmap', '--add', at('overlay'), 'enabled');
  qemuImg('bitmap', '--add', '--disable', '-g', '4096', at('overlay'), 'disabled');
  qemuImg('create', '-q', '-f', 'qcow2', '-b', at('overlay'), '-F', 'qcow2', at('top'), '1500M');
  qemuImg('create', '-q', '-f', 'qcow2', '-o', 'lazy_refcounts=on', at('dirty'), '1M');
  patch(at('dirty'), 79, [1]);
  const layout = 'compression_type=zstd,extended_l2=on,cluster_size=128k,refcount_bits=1';
  qemuImg('create', '-q', '-f', 'qcow2', '-o', layout, at('zstd'), '10M');
  const data = `data_file=${at('data.raw')},data_file_raw=on`;
  qemuImg('create', '-q', '-f', 'qcow2', '-o', data, at('data'), '1M');
  qemuImg('create', '-q', '-f', 'qcow2', at('empty'), '0');
}

describePeers(['qemu-img', 'qemu-io'], 'as qemu-img', () => {
  beforeAll(makeImages);

  it.each(IMAGES)('info describes %s', async (name) => {
    for (const options of [[], ['--backing-chain'], ['-U', '--output=human']]) {
      const ours = await runCommand(info, [...options, at(name)]);
      expect(ours.stdout).toBe(qemuImg('info', ...options, at(name)));
      const json = await runCommand(info, [...options, '--output=json', at(name)]);
      const theirs = qemuImg('info', ...options, '--output=json', at(name));
      expect(JSON.parse(json.stdout)).toEqual(JSON.parse(theirs));
    }
  });

  it.each(IMAGES)('map maps %s', async (name) => {
    for (const options of [
      [],
      ['--output=json'],
      ['--output=json', '--start-offset=100k', '--max-length=1M'],
      ['--output=json', '--start-offset=2G'],
      ['--output=json', '--start-offset=1M', '--max-length=0'],
      ['--output=json', '--start-offset=1M', '--max-length=7E'],
    ]) {
      const ours = await runCommand(map, [...options, at(name)]);
      expect(ours).toEqual(tryRun('qemu-img', ['map', ...options, at(name)]));
    }
  });

  it('info does without the backing file, and map does not', async () => {
    renameSync(at('plain'), at('away'));
    try {
      const theirs = qemuImg('info', at('overlay'));
      expect((await runCommand(info, [at('overlay')])).stdout).toBe(theirs);
      const chain = await runCommand(info, ['--backing-chain', at('overlay')]);
      expect(chain).toMatchObject({ exitCode: 1, stdout: '' });
      expect(chain.stderr).toContain(at('plain'));
      expect((await runCommand(map, [at('overlay')])).exitCode).toBe(1);
    } finally {
      renameSync(at('away'), at('plain'));
    }
  });

  it('map lists the rows before a compressed cluster, and then fails', async () => {
    qemuImg('create', '-q', '-f', 'qcow2', at('packed'), '1M');
    qemuIo(at('packed'), ['write -P 1 0 64k', 'write -c -P 2 128k 64k']);
    const theirs = tryRun('qemu-img', ['map', at('packed')]);
    const ours = await runCommand(map, [at('packed')]);
    expect(ours).toMatchObject({ exitCode: theirs.exitCode, stdout: theirs.stdout });
    expect(ours.exitCode).toBe(1);
    expect(ours.stderr).toContain('compressed');
    expect(ours.stderr).toContain('--output=json');
  });

  it('info says in one line where a snapshot table is damaged', async () => {
    qemuImg('create', '-q', '-f', 'qcow2', at('broken'), '1M');
    qemuImg('snapshot', '-c', 'one', at('broken'));
    const table = Number(readFileSync(at('broken')).readBigUInt64BE(64));
    patch(at('broken'), table + 36, [0xff, 0xff, 0xff, 0xff]);
    const { exitCode, stdout, stderr } = await runCommand(info, [at('broken')]);
    expect({ exitCode, stdout }).toEqual({ exitCode: 1, stdout: '' });
    expect(stderr.trimEnd().split('\n')).toHaveLength(1);
    expect(stderr).toContain(`${at('broken')}: snapshot table row 0`);
  });
});

it('map refuses sizes that are none', async () => {
  const { exitCode, stderr } = await runCommand(map, ['--start-offset=much', at('plain')]);
  expect(exitCode).toBe(1);
  expect(stderr).toContain("the start offset 'much' is not a size");
});
