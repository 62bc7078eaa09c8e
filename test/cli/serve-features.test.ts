import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { existsSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, expect, it } from 'vitest';
import { TestClient } from '../export/nbd/client.ts';
import {
  clientFlags,
  contextData,
  GREETING,
  infoData,
  OPT,
  option,
  REP,
} from '../export/nbd/wire.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, run } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';
import { servers } from './serve-process.ts';

const README = new URL('../../src/export/nbd/README.md', import.meta.url);

const directory = temporaryDirectoryPerTest();
const serve = servers(directory);
const rivals: ChildProcess[] = [];

afterEach(async () => {
  for (const child of rivals.splice(0)) {
    child.kill('SIGTERM');
    await new Promise((resolve) => child.on('close', resolve));
  }
});

/** Starts another server and waits until its socket is there. */
async function startRival(program: string, args: readonly string[], socket: string): Promise<void> {
  rivals.push(spawn(program, args, { cwd: directory(), stdio: 'ignore' }));
  for (let tries = 0; !existsSync(join(directory(), socket)); tries++) {
    if (tries > 1000) throw new Error(`${program} did not start`);
    await sleep(10);
  }
}

/** Whether a server answers an option with something that is no error. */
async function takes(path: string, type: number, data?: Uint8Array): Promise<boolean> {
  const client = await TestClient.connect({ path });
  client.send(clientFlags(), option(type, data));
  const reply = (await client.take(GREETING.length + 20)).subarray(GREETING.length);
  client.destroy();
  return reply.length === 20 && reply.readUInt32BE(12) < REP.UNSUP;
}

/** What a server can do, in the words of the README. */
async function featuresOf(socket: string): Promise<Record<string, boolean>> {
  const path = join(directory(), socket);
  const uri = `nbd+unix:///?socket=${path}`;
  const { exports } = JSON.parse(run('nbdinfo', ['--json', uri])) as {
    exports: (Record<string, unknown> & { contexts: string[] })[];
  };
  const found = exports[0]!;
  return {
    NBD_OPT_LIST: await takes(path, OPT.LIST),
    NBD_OPT_INFO: await takes(path, OPT.INFO, infoData('')),
    NBD_OPT_STRUCTURED_REPLY: await takes(path, OPT.STRUCTURED_REPLY),
    'NBD_OPT_LIST_META_CONTEXT before structured replies': await takes(
      path,
      OPT.LIST_META_CONTEXT,
      contextData('', []),
    ),
    NBD_OPT_EXTENDED_HEADERS: await takes(path, OPT.EXTENDED_HEADERS),
    'NBD_CMD_READ with DF': found['can_df'] === true,
    NBD_CMD_FLUSH: found['can_flush'] === true,
    NBD_CMD_TRIM: found['can_trim'] === true,
    NBD_CMD_CACHE: found['can_cache'] === true,
    NBD_CMD_WRITE_ZEROES: found['can_zero'] === true,
    NBD_CMD_FLAG_FAST_ZERO: found['can_fast_zero'] === true,
    NBD_CMD_FLAG_FUA: found['can_fua'] === true,
    'several connections that write': found['can_multi_conn'] === true,
    NBD_INFO_BLOCK_SIZE: 'block_size_maximum' in found,
    'base:allocation': found.contexts.includes('base:allocation'),
    'qemu:allocation-depth': found.contexts.includes('qemu:allocation-depth'),
  };
}

/** The table of the README: by feature, what it says of each server. */
function table(): [feature: string, ...cells: string[]][] {
  const lines = readFileSync(README, 'utf8').split('\n');
  const start = lines.findIndex((line) => line.startsWith('| feature |')) + 2;
  const end = lines.findIndex((line, index) => index > start && !line.startsWith('|'));
  return lines.slice(start, end).map((line) => {
    const [feature = '', ...cells] = line
      .split('|')
      .slice(1, -1)
      .map((cell) => cell.trim());
    return [feature, ...cells];
  });
}

describePeers(['nbdinfo', 'qemu-nbd', 'nbdkit', 'qemu-img'], 'the table of NBD features', () => {
  it('says what each server answers', async () => {
    for (const name of ['ours', 'theirs']) {
      qemuImg('create', '-f', 'qcow2', join(directory(), `${name}.qcow2`), '64M');
    }
    writeFileSync(join(directory(), 'disk.raw'), '');
    truncateSync(join(directory(), 'disk.raw'), 2 ** 26);
    await serve('--socket=s', '--rw', 'ours.qcow2');
    const qemuNbd = [
      '-t',
      '-e',
      '8',
      '-A',
      '-f',
      'qcow2',
      '-k',
      join(directory(), 'q'),
      'theirs.qcow2',
    ];
    await startRival('qemu-nbd', qemuNbd, 'q');
    await startRival('nbdkit', ['-f', '-U', join(directory(), 'n'), 'file', 'disk.raw'], 'n');
    const all = [await featuresOf('s'), await featuresOf('q'), await featuresOf('n')];
    const answered = Object.keys(all[0]!).map((feature) => [
      feature,
      ...all.map((features) => (features[feature] === true ? 'yes' : 'no')),
    ]);
    expect(table()).toEqual(answered);
  });
});
