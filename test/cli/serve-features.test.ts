import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, expect, it } from 'vitest';
import { describePeers } from '../support/peers.ts';
import { qemuImg, tryRun } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';
import { BITMAP, DISK_BYTES, featuresOf } from './nbd-features.ts';
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

function at(name: string): string {
  return join(directory(), name);
}

/** Starts another server and waits until its socket is there. */
async function startRival(program: string, args: readonly string[], socket: string): Promise<void> {
  rivals.push(spawn(program, args, { cwd: directory(), stdio: 'ignore' }));
  for (let tries = 0; !existsSync(at(socket)); tries++) {
    if (tries > 1000) throw new Error(`${program} did not start`);
    await sleep(10);
  }
}

/** Starts all three, each with a disk of its own that can be written. */
async function startAll(): Promise<string[]> {
  for (const name of ['ours.qcow2', 'theirs.qcow2']) {
    qemuImg('create', '-f', 'qcow2', at(name), `${DISK_BYTES}`);
    qemuImg('bitmap', '--add', at(name), BITMAP);
  }
  writeFileSync(at('disk.raw'), '');
  truncateSync(at('disk.raw'), DISK_BYTES);
  await serve('--socket=s', '--rw', '--resize', `--bitmap=${BITMAP}`, 'ours.qcow2');
  const described = ['-D', 'a disk', '-A', '-B', BITMAP];
  const listening = ['-t', '-e', '8', '-f', 'qcow2', '-k', at('q'), 'theirs.qcow2'];
  await startRival('qemu-nbd', [...described, ...listening], 'q');
  await startRival('nbdkit', ['-f', '-U', at('n'), 'file', 'disk.raw'], 'n');
  return ['s', 'q', 'n'].map(at);
}

/** Starts all three with a key that clients must have, and says who can be talked to with it. */
async function encryptedWithKeys(): Promise<boolean[]> {
  mkdirSync(at('keys'));
  const keys = at('keys/keys.psk');
  writeFileSync(keys, `alice:${'5a'.repeat(32)}\n`);
  const object = `tls-creds-psk,id=t,endpoint=server,dir=${at('keys')}`;
  const options = ['--object', object, '--tls-creds', 't', '-r', '-t', '-f', 'raw'];
  await startRival('qemu-nbd', [...options, '-k', at('tq'), 'disk.raw'], 'tq');
  const tls = ['--tls=require', `--tls-psk=${keys}`];
  await startRival('nbdkit', ['-f', '-r', ...tls, '-U', at('tn'), 'file', 'disk.raw'], 'tn');
  await serve('--socket=ts', ...tls, '-f', 'raw', 'disk.raw');
  return ['ts', 'tq', 'tn'].map((socket) => {
    const query = `socket=${at(socket)}&tls-psk-file=${keys}`;
    const { stdout } = tryRun('nbdinfo', ['--size', `nbds+unix://alice@/?${query}`]);
    return stdout.trim() === `${DISK_BYTES}`;
  });
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
  it('says what each server does', async () => {
    const all: Record<string, boolean>[] = [];
    for (const socket of await startAll()) all.push(await featuresOf(socket));
    for (const [index, isSpoken] of (await encryptedWithKeys()).entries()) {
      all[index]!['NBD_OPT_STARTTLS, with keys'] = isSpoken;
    }
    const answered = Object.keys(all[0]!).map((feature) => [
      feature,
      ...all.map((features) => (features[feature] === true ? 'yes' : 'no')),
    ]);
    expect(table()).toEqual(answered);
  });
});
