import { spawnSync } from 'node:child_process';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { TestClient } from '../export/nbd/client.ts';
import {
  clientFlags,
  CMD,
  EINVAL,
  GREETING,
  infoData,
  OPT,
  option,
  pattern,
  request,
} from '../export/nbd/wire.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuImgJson, run } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';
import { CLI, servers } from './serve-process.ts';

const MiB = 1024 * 1024;
const SEND_RESIZE = 1 << 9;

const directory = temporaryDirectoryPerTest();
const serve = servers(directory);

function at(name: string): string {
  return join(directory(), name);
}

/** A client of the default export, and what it was told of it. */
async function open(): Promise<{ client: TestClient; size: number; flags: number }> {
  const client = await TestClient.connect({ path: at('s') });
  client.send(clientFlags(), option(OPT.GO, infoData('')));
  const info = (await client.take(GREETING.length + 20 + 12 + 20)).subarray(GREETING.length + 20);
  return { client, size: Number(info.readBigUInt64BE(2)), flags: info.readUInt16BE(10) };
}

/** The error of a request that has no data. */
async function ask(client: TestClient, type: number, offset: number, length = 0): Promise<number> {
  client.send(request({ type, offset, length }));
  return (await client.take(16)).readUInt32BE(4);
}

function virtualSize(path: string): number {
  return (qemuImgJson('info', '-U', '--output=json', path) as { 'virtual-size': number })[
    'virtual-size'
  ];
}

function makeDisk(format: string): string {
  writeFileSync(at('pattern.raw'), pattern(16 * MiB));
  qemuImg('convert', '-f', 'raw', '-O', format, at('pattern.raw'), at('disk'));
  return at('disk');
}

describePeers(['qemu-img'], 'qcow2 serve --resize', () => {
  it.each(['qcow2', 'raw'])('lets clients grow a %s image; others go on', async (format) => {
    const path = makeDisk(format);
    const { stop } = await serve('--socket=s', '--rw', '--resize', '-f', format, path);
    const first = await open();
    const second = await open();
    expect([first.size, first.flags & SEND_RESIZE]).toEqual([16 * MiB, SEND_RESIZE]);
    expect(await ask(first.client, CMD.RESIZE, 40 * MiB)).toBe(0);
    // One that was there before sees the new part too, and a new one is told of it.
    for (const { client } of [first, second, await open()]) {
      const { error, data } = await client.read(40 * MiB - 512, 512);
      expect([error, data.equals(Buffer.alloc(512))]).toEqual([0, true]);
    }
    expect((await open()).size).toBe(40 * MiB);
    expect(await ask(second.client, CMD.WRITE_ZEROES, 40 * MiB, 512)).not.toBe(0);
    const old = await second.client.read(0, 16 * MiB);
    expect(old.data.equals(pattern(16 * MiB))).toBe(true);
    for (const { client } of [first, second]) client.destroy();
    expect(await stop()).toBe(0);
    const info = qemuImgJson('info', '-f', format, '--output=json', path);
    expect(info).toMatchObject({ 'virtual-size': 40 * MiB });
    if (format === 'qcow2') qemuImg('check', path);
  });

  it.each(['qcow2', 'raw'])('lets them cut off zeroes of a %s image, no data', async (format) => {
    const path = makeDisk(format);
    const { stop, stderr } = await serve('--socket=s', '--rw', '--resize', '-f', format, path);
    const { client } = await open();
    expect(await ask(client, CMD.RESIZE, 8 * MiB)).toBe(EINVAL);
    expect((await client.read(0, 16 * MiB)).data.equals(pattern(16 * MiB))).toBe(true);
    expect(await ask(client, CMD.WRITE_ZEROES, 8 * MiB + 8, 8 * MiB - 8)).toBe(0);
    expect(await ask(client, CMD.RESIZE, 8 * MiB)).toBe(EINVAL);
    expect(await ask(client, CMD.RESIZE, 8 * MiB + 512)).toBe(0);
    expect(await ask(client, CMD.CACHE, 8 * MiB + 512, 1)).toBe(EINVAL);
    client.destroy();
    expect(await stop()).toBe(0);
    expect(stderr()).toMatch(/client 1: export 'disk': .*there is data after that/);
    const expected = pattern(16 * MiB).subarray(0, 8 * MiB + 512);
    expected.fill(0, 8 * MiB + 8);
    qemuImg('convert', '-f', format, '-O', 'raw', path, at('content.raw'));
    expect(readFileSync(at('content.raw')).equals(expected)).toBe(true);
    if (format === 'qcow2') qemuImg('check', path);
  });

  it('keeps what partitions are served from, and bitmaps know of the change', async () => {
    writeFileSync(at('table.raw'), Buffer.alloc(16 * MiB));
    run('sfdisk', ['--quiet', at('table.raw')], {
      input: 'label: dos\nstart=2048, size=8192, type=83\n',
    });
    const path = at('disk.qcow2');
    qemuImg('convert', '-O', 'qcow2', at('table.raw'), path);
    qemuImg('bitmap', '--add', path, 'b');
    const { stop } = await serve('--socket=s', '--rw', '--resize', '--bitmap=b', path);
    const { client } = await open();
    expect(await ask(client, CMD.RESIZE, 5 * MiB - 512)).toBe(EINVAL);
    expect(await ask(client, CMD.RESIZE, 5 * MiB)).toBe(0);
    expect(await ask(client, CMD.RESIZE, 900 * MiB)).toBe(0);
    client.send(request({ type: CMD.WRITE, offset: 899 * MiB, length: 4 }), Buffer.from('data'));
    expect((await client.take(16)).readUInt32BE(4)).toBe(0);
    client.destroy();
    expect(await stop()).toBe(0);
    expect(virtualSize(path)).toBe(900 * MiB);
    qemuImg('check', path);
    const again = await serve('--socket=t', '--bitmap=b', path);
    expect(run('nbdinfo', ['--map=qemu:dirty-bitmap:b', again.uri])).toMatch(
      /\s942669824\s+65536\s+1 /,
    );
  });

  it('is not offered without it, nor of what is only read', async () => {
    const path = makeDisk('qcow2');
    const { exports } = await serve('--socket=s', '--rw', path);
    expect(exports).toHaveLength(1);
    const { client, flags } = await open();
    expect(flags & SEND_RESIZE).toBe(0);
    expect(await ask(client, CMD.RESIZE, 40 * MiB)).toBe(EINVAL);
    client.destroy();
    expect(virtualSize(path)).toBe(16 * MiB);
    for (const others of [[], ['--rw', '--partition=1'], ['--snapshot=1']]) {
      const args = [CLI, 'serve', '--socket=t', '--resize', ...others, path];
      const { status, stderr } = spawnSync(process.execPath, args, {
        cwd: directory(),
        encoding: 'utf8',
      });
      expect([status, stderr]).toEqual([
        1,
        `qcow2: ${path}: only whole disks that clients write to can be resized by them\n`,
      ]);
    }
  });

  it('resizes an overlay, and what is below stays as it is', async () => {
    const path = makeDisk('qcow2');
    const before = statSync(path);
    const { stop } = await serve('--socket=s', '--overlay=o.qcow2', '--resize', path);
    const { client } = await open();
    expect(await ask(client, CMD.RESIZE, 32 * MiB)).toBe(0);
    expect((await client.read(0, 16 * MiB)).data.equals(pattern(16 * MiB))).toBe(true);
    client.destroy();
    expect(await stop()).toBe(0);
    expect(virtualSize(at('o.qcow2'))).toBe(32 * MiB);
    expect(virtualSize(path)).toBe(16 * MiB);
    expect(statSync(path).mtimeMs).toBe(before.mtimeMs);
  });
});
