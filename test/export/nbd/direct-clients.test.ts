/** Long reads of files, on real sockets: the host sends them, and nobody sees a difference. */

import { truncateSync, writeFileSync } from 'node:fs';
import { Socket } from 'node:net';
import type { NetConnectOpts } from 'node:net';
import { join } from 'node:path';
import { TLSSocket } from 'node:tls';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { openImage } from '../../../src/chain/open.ts';
import { FileDevice } from '../../../src/device/file.ts';
import { SliceDevice } from '../../../src/device/slice.ts';
import type { BlockDevice } from '../../../src/device/block-device.ts';
import { serveNbd } from '../../../src/export/nbd/server.ts';
import type { NbdAddress, NbdServer } from '../../../src/export/nbd/server.ts';
import { DirectSocket } from '../../../src/host/sendfile.ts';
import { describePeers } from '../../support/peers.ts';
import { qemuImg } from '../../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../../support/temp.ts';
import { TestClient } from './client.ts';
import { runToEnd } from './programs.ts';
import { CMD, EIO, pattern, request } from './wire.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const DISK = pattern(24 * MiB);

/** A file that counts what is copied out of it. */
class CountingFile extends FileDevice {
  readBytes = 0;

  override read(target: Uint8Array, offset: number): void {
    this.readBytes += target.length;
    super.read(target, offset);
  }
}

describePeers(['koffi'], 'long reads of a file', () => {
  const directory = temporaryDirectoryPerTest();
  let path: string;
  let log: string[];
  let server: NbdServer | undefined;
  let device: CountingFile;

  beforeEach(() => {
    path = join(directory(), 'disk.raw');
    log = [];
    writeFileSync(path, DISK);
    device = new CountingFile(path);
  });

  afterEach(async () => {
    await server?.close({ graceMs: 100 });
    server = undefined;
    device.close();
  });

  async function serve(address: NbdAddress, served: BlockDevice = device): Promise<void> {
    server = await serveNbd([{ name: '', device: served }], address, {
      log: (message, level) => log.push(`${level}: ${message}`),
    });
  }

  async function serveOnUnix(served?: BlockDevice): Promise<NetConnectOpts> {
    const socketPath = join(directory(), 'socket');
    await serve({ socketPath }, served);
    return { path: socketPath };
  }

  /** Asks for a mix of short and long reads at once, and reads the replies with many breaks. */
  async function readSlowly(address: NetConnectOpts, seed: number): Promise<void> {
    const client = await TestClient.open(address);
    const reads = Array.from({ length: 40 }, (_, index) => {
      const length = index % 3 === 0 ? 4 * KiB : 20 * KiB + ((seed * 7919 + index * 104729) % MiB);
      return { offset: (seed * 1_000_003 + index * 7_777_777) % (DISK.length - length), length };
    });
    client.send(
      ...reads.map((fields, index) =>
        request({ type: CMD.READ, ...fields, cookie: BigInt(index) }),
      ),
    );
    const answered = new Set<number>();
    for (let count = 0; count < reads.length; count++) {
      if (count % 4 === seed % 4) {
        client.socket.pause();
        await sleep(5);
        client.socket.resume();
      }
      // Shorter ones may come before longer ones.
      const index = Number((await client.take(16)).readBigUInt64BE(8));
      const { offset, length } = reads[index]!;
      const reply = await client.take(length);
      const isSame = reply.equals(DISK.subarray(offset, offset + length));
      expect(isSame, `read ${index} of client ${seed}`).toBe(true);
      answered.add(index);
    }
    expect(answered.size).toBe(reads.length);
    client.destroy();
  }

  it('reach many slow clients of a Unix socket as they are', async () => {
    const address = await serveOnUnix();
    await Promise.all(Array.from({ length: 12 }, (_, seed) => readSlowly(address, seed)));
    // Some 150 MiB were asked for.
    expect(device.readBytes).toBeLessThan(20 * MiB);
    expect(log.filter((line) => line.startsWith('warning'))).toEqual([]);
  });

  it('reach slow clients over TCP as they are', async () => {
    await serve({ port: 0, host: '127.0.0.1' });
    const port = Number(/:(\d+)\/$/.exec(server!.uris()[0]!)?.[1]);
    const address = { host: '127.0.0.1', port };
    await Promise.all(Array.from({ length: 4 }, (_, seed) => readSlowly(address, seed)));
    expect(device.readBytes).toBeLessThan(10 * MiB);
  });

  it('of a part of it are sent from there too', async () => {
    const client = await TestClient.open(
      await serveOnUnix(new SliceDevice(device, { offset: 12345, length: 20 * MiB })),
    );
    const { data } = await client.read(5 * MiB, 4 * MiB);
    expect(data.equals(DISK.subarray(12345 + 5 * MiB, 12345 + 9 * MiB))).toBe(true);
    expect(device.readBytes).toBeLessThan(MiB);
  });

  it('are answered after the client has hung up its sending side', async () => {
    const client = await TestClient.open(await serveOnUnix());
    const reads = Array.from({ length: 20 }, (_, index) =>
      request({ type: CMD.READ, offset: index, length: MiB }),
    );
    client.socket.end(Buffer.concat(reads));
    const replies = await client.take(20 * (16 + MiB));
    expect(replies.length).toBe(20 * (16 + MiB));
    expect(replies.subarray(-MiB).equals(DISK.subarray(19, 19 + MiB))).toBe(true);
    await client.closed;
  });

  it('do not keep others waiting when their client does not read', async () => {
    const address = await serveOnUnix();
    const stuck = await TestClient.open(address);
    stuck.socket.pause();
    stuck.send(...Array<Buffer>(50).fill(request({ type: CMD.READ, length: 20 * MiB })));
    await sleep(50);
    const client = await TestClient.open(address);
    for (let index = 0; index < 20; index++) {
      const { data } = await client.read(index * MiB, 256 * KiB);
      expect(data.equals(DISK.subarray(index * MiB, index * MiB + 256 * KiB))).toBe(true);
    }
    stuck.destroy();
    expect((await client.read(0, MiB)).error).toBe(0);
  });

  it('that the file became too short for fail, or end the connection in their middle', async () => {
    const address = await serveOnUnix();
    const client = await TestClient.open(address);
    client.socket.pause();
    client.send(request({ type: CMD.READ, length: 20 * MiB }));
    await sleep(100);
    truncateSync(path, 10 * MiB);
    client.socket.resume();
    await client.closed;
    const reply = await client.take(16 + 20 * MiB);
    expect(reply.subarray(16).equals(DISK.subarray(0, reply.length - 16))).toBe(true);
    expect(reply.length).toBeLessThanOrEqual(16 + 10 * MiB);
    expect(log).toContain(
      'warning: client 1: client dropped: a read failed in the middle of its reply',
    );
    const next = await TestClient.open(address);
    expect((await next.read(0, 20 * MiB)).error).toBe(EIO);
    const { data } = await next.read(5 * MiB, 5 * MiB);
    expect(data.equals(DISK.subarray(5 * MiB, 10 * MiB))).toBe(true);
  });

  it('are not sent beside an encrypted connection', () => {
    const plain = new Socket();
    expect(DirectSocket.of(new TLSSocket(plain))).toBeUndefined();
    plain.destroy();
  });
});

describePeers(['koffi', 'qemu-img', 'nbdcopy'], 'an image of all kinds of clusters', () => {
  const directory = temporaryDirectoryPerTest();

  it('is copied byte for byte, and says truly where its bytes are', async () => {
    const at = (name: string): string => join(directory(), name);
    // Data, then zeroes, then data that only the backing file has.
    const bytes = Buffer.from(DISK);
    bytes.fill(0, 6 * MiB, 9 * MiB);
    writeFileSync(at('base.raw'), bytes);
    qemuImg('convert', '-O', 'qcow2', at('base.raw'), at('base.qcow2'));
    qemuImg('convert', '-c', '-O', 'qcow2', at('base.raw'), at('compressed.qcow2'));
    const backing = ['-f', 'qcow2', '-b', at('base.qcow2'), '-F', 'qcow2'];
    qemuImg('create', ...backing, at('overlay.qcow2'), String(30 * MiB + 512));
    const expected = Buffer.concat([bytes, Buffer.alloc(6 * MiB + 512)]);
    const hosted: Record<string, boolean[]> = {};
    for (const name of ['base.raw', 'base.qcow2', 'compressed.qcow2', 'overlay.qcow2']) {
      using image = openImage(at(name));
      hosted[name] = [0, 5.9 * MiB, 7 * MiB, 23.9 * MiB].map(
        (offset) => image.hostRange(Math.floor(offset), 64 * KiB) !== undefined,
      );
      const socketPath = at(`${name}.sock`);
      await using served = await serveNbd([{ name: '', device: image }], { socketPath });
      await runToEnd('nbdcopy', [served.uris()[0]!, at('copy')]);
      const copy = await runToEnd('cat', [at('copy')]);
      expect(copy.equals(expected.subarray(0, image.size)), name).toBe(true);
    }
    expect(hosted).toEqual({
      'base.raw': [true, true, true, true],
      'base.qcow2': [true, true, false, true],
      'compressed.qcow2': [false, false, false, false],
      'overlay.qcow2': [true, true, false, true],
    });
  });
});
