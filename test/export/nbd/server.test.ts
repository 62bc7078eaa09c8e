import { existsSync, lstatSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { spawnSync } from 'node:child_process';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { MemoryDevice, NullDevice } from '../../../src/device/memory.ts';
import { Qcow2Error } from '../../../src/errors.ts';
import { serveNbd } from '../../../src/export/nbd/server.ts';
import type { NbdAddress, NbdServer } from '../../../src/export/nbd/server.ts';
import type { NbdExport } from '../../../src/export/nbd/exports.ts';
import type { NbdServerOptions } from '../../../src/export/nbd/server.ts';
import { until } from '../../support/until.ts';
import { TestClient } from './client.ts';
import {
  be,
  clientFlags,
  CMD,
  EIO,
  FLAGS,
  GREETING,
  OPT,
  option,
  pattern,
  request,
} from './wire.ts';

const MiB = 1024 * 1024;
const DISK = pattern(4 * MiB);

let directory: string;
let path: string;
let log: string[];
const servers: NbdServer[] = [];

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), 'qcow2-nbd-'));
  path = join(directory, 'socket');
  log = [];
});

afterEach(async () => {
  await Promise.all(servers.splice(0).map((server) => server.close({ graceMs: 100 })));
  rmSync(directory, { recursive: true });
});

async function start(
  options: NbdServerOptions & { address?: NbdAddress; exports?: NbdExport[] } = {},
): Promise<NbdServer> {
  const {
    address = { socketPath: path },
    exports = [{ name: 'disk', device: new MemoryDevice(DISK) }],
  } = options;
  const server = await serveNbd(exports, address, {
    log: (message, level) => log.push(`${level}: ${message}`),
    ...options,
  });
  servers.push(server);
  return server;
}

describe('a client', () => {
  it('of the old newstyle gets size, flags and 124 zeroes', async () => {
    await start();
    const client = await TestClient.connect({ path });
    client.send(clientFlags(0), option(OPT.EXPORT_NAME, Buffer.from('disk')));
    const expected = [GREETING, be([64, DISK.length], [16, FLAGS]), Buffer.alloc(124)];
    expect(await client.take(18 + 134)).toEqual(Buffer.concat(expected));
    const { data } = await client.read(12345, 6789);
    expect(data.equals(DISK.subarray(12345, 12345 + 6789))).toBe(true);
    client.send(request({ type: CMD.DISC }));
    await client.closed;
  });

  it('may send byte by byte, and all at once', async () => {
    await start();
    const bytes = Buffer.concat([
      clientFlags(),
      option(OPT.LIST),
      option(OPT.EXPORT_NAME),
      request({ type: CMD.READ, offset: 1000, length: 3000 }),
      request({ type: CMD.WRITE, length: 10 }),
      Buffer.alloc(10),
      request({ type: CMD.DISC }),
    ]);
    const whole = await TestClient.connect({ path });
    whole.send(bytes);
    const expected = await whole.take(1e6);
    expect(expected.length).toBe(18 + 28 + 20 + 10 + 16 + 3000 + 16);
    const pieces = await TestClient.connect({ path });
    pieces.socket.setNoDelay(true);
    for (let at = 0; at < bytes.length; at++) {
      pieces.send(bytes.subarray(at, at + 1));
      await new Promise((resolve) => setImmediate(resolve));
    }
    expect((await pieces.take(1e6)).equals(expected)).toBe(true);
  });

  it('that hangs up its sending side still gets its replies', async () => {
    await start();
    const client = await TestClient.open({ path });
    const count = 40;
    const reads = Array.from({ length: count }, (_, index) =>
      request({ type: CMD.READ, offset: index, length: MiB }),
    );
    client.socket.end(Buffer.concat(reads));
    const replies = await client.take(count * (16 + MiB));
    expect(replies.length).toBe(count * (16 + MiB));
    const last = replies.subarray(-MiB);
    expect(last.equals(DISK.subarray(count - 1, count - 1 + MiB))).toBe(true);
    await client.closed;
  });

  it('is dropped when it does not choose an export in time', async () => {
    await start({ handshakeTimeoutMs: 50 });
    const slow = await TestClient.connect({ path });
    await slow.closed;
    expect(log).toContain('warning: client 1: client dropped: no export was chosen in time');
    const quick = await TestClient.open({ path });
    await sleep(100);
    expect((await quick.read(0, 4)).error).toBe(0);
  });

  it('is turned away when there are too many', async () => {
    const server = await start({ maxClients: 2 });
    const first = await TestClient.open({ path });
    await TestClient.open({ path });
    const third = await TestClient.connect({ path });
    await third.closed;
    expect((await third.take(1)).length).toBe(0);
    first.destroy();
    await until(() => server.clientCount === 1);
    const fourth = await TestClient.open({ path });
    expect((await fourth.read(0, 4)).error).toBe(0);
  });

  it('sees NBD_EIO where the device fails, and the log does not overflow', async () => {
    class Broken extends NullDevice {
      override read(): void {
        throw new Qcow2Error('CORRUPT', 'the cluster is broken');
      }
    }
    await start({ exports: [{ name: 'disk', device: new Broken(MiB) }] });
    const client = await TestClient.open({ path });
    for (let index = 0; index < 100; index++) {
      expect((await client.read(0, 512)).error).toBe(EIO);
    }
    const warnings = log.filter((line) => line.startsWith('warning'));
    expect(warnings).toHaveLength(10);
    expect(warnings[0]).toBe("warning: client 1: export 'disk': the cluster is broken");
  });
});

describe('clients beside each other', () => {
  /** Sends as many requests as the server takes, and reads nothing. */
  async function floodingClient(length: number): Promise<TestClient> {
    const client = await TestClient.open({ path });
    client.socket.pause();
    const requests = Buffer.concat(Array(1000).fill(request({ type: CMD.READ, length })));
    for (let index = 0; index < 50; index++) client.socket.write(requests);
    return client;
  }

  it('are not held up by one that does not read, and memory stays bounded', async () => {
    const server = await start();
    const before = process.memoryUsage.rss();
    const floods = await Promise.all([100, 4096, MiB, 4 * MiB].map(floodingClient));
    await sleep(200);
    const client = await TestClient.open({ path });
    const started = performance.now();
    for (let index = 0; index < 200; index++) {
      const { data } = await client.read(index * 4096, 4096);
      expect(data.equals(DISK.subarray(index * 4096, (index + 1) * 4096))).toBe(true);
    }
    expect(performance.now() - started).toBeLessThan(5000);
    // 50,000 requests of up to 4 MiB were asked for.
    expect(process.memoryUsage.rss() - before).toBeLessThan(150 * MiB);
    for (const flood of floods) flood.destroy();
    await until(() => server.clientCount === 1);
    expect((await client.read(0, 16)).error).toBe(0);
  });

  it('are not held up by one that reads ahead a whole disk', async () => {
    const device = new NullDevice(2 ** 40);
    await start({ exports: [{ name: 'disk', device }] });
    const greedy = await TestClient.open({ path });
    greedy.send(request({ type: CMD.CACHE, length: 0xfffff000 }));
    const client = await TestClient.open({ path });
    const started = performance.now();
    for (let index = 0; index < 20; index++) await client.read(0, 512);
    expect(performance.now() - started).toBeLessThan(2000);
    greedy.destroy();
  });

  it('do not notice when others vanish in the middle of a message', async () => {
    const server = await start();
    const client = await TestClient.open({ path });
    for (const bytes of [
      Buffer.alloc(0),
      clientFlags().subarray(0, 2),
      Buffer.concat([clientFlags(), option(OPT.LIST).subarray(0, 9)]),
      Buffer.concat([
        clientFlags(),
        option(OPT.EXPORT_NAME),
        request({ type: CMD.READ, length: MiB }),
      ]),
      Buffer.concat([
        clientFlags(),
        option(OPT.EXPORT_NAME),
        request({ type: CMD.WRITE, length: MiB }),
      ]),
    ]) {
      const other = await TestClient.connect({ path });
      other.send(bytes);
      await sleep(20);
      other.destroy();
    }
    await until(() => server.clientCount === 1);
    expect((await client.read(0, 16)).data.equals(DISK.subarray(0, 16))).toBe(true);
  });

  it('share one opened device, which is closed when the last has gone', async () => {
    let opened = 0;
    let closed = 0;
    class Counted extends MemoryDevice {
      override close(): void {
        closed++;
      }
    }
    const device = (): MemoryDevice => {
      opened++;
      return new Counted(DISK);
    };
    const server = await start({ exports: [{ name: 'disk', device }] });
    const clients = [await TestClient.open({ path }), await TestClient.open({ path })];
    expect([opened, closed]).toEqual([1, 0]);
    for (const client of clients) client.destroy();
    await until(() => server.clientCount === 0);
    expect([opened, closed]).toEqual([1, 1]);
  });
});

describe('close', () => {
  it('answers what has arrived, hangs up and removes the socket', async () => {
    const server = await start();
    const client = await TestClient.open({ path });
    await TestClient.connect({ path });
    client.send(request({ type: CMD.READ, length: 4 * MiB }));
    await until(() => log.length >= 3);
    await sleep(50);
    const [reply] = await Promise.all([client.take(16 + 4 * MiB), server.close()]);
    expect(reply.length).toBe(16 + 4 * MiB);
    await client.closed;
    expect(existsSync(path)).toBe(false);
    expect(server.clientCount).toBe(0);
    await server.close();
  });

  it('does not wait for ever for a client that does not read', async () => {
    const server = await start();
    const client = await TestClient.open({ path });
    client.socket.pause();
    client.send(...Array<Buffer>(100).fill(request({ type: CMD.READ, length: 4 * MiB })));
    await sleep(50);
    const started = performance.now();
    await server.close({ graceMs: 200 });
    expect(performance.now() - started).toBeLessThan(3000);
    client.destroy();
  });
});

describe('Unix sockets', () => {
  it('are named by their URI, and leave nothing beside them', async () => {
    const server = await start({ address: { socketPath: join(directory, 'a b') } });
    expect(server.uris()).toEqual([`nbd+unix:///?socket=${directory}/a%20b`]);
    expect(server.uris('disk/1 ü')).toEqual([
      `nbd+unix:///disk/1%20%C3%BC?socket=${directory}/a%20b`,
    ]);
    expect(lstatSync(join(directory, 'a b')).isSocket()).toBe(true);
    expect(spawnSync('ls', ['-A', directory]).stdout.toString()).toBe('a b\n');
  });

  it('of a living server are refused', async () => {
    await start();
    await expect(start()).rejects.toThrow(
      expect.objectContaining({
        code: 'LOCKED',
        message: `${path}: another server is listening there`,
      }) as Error,
    );
    expect((await (await TestClient.open({ path })).read(0, 4)).error).toBe(0);
  });

  it('of a dead server are replaced', async () => {
    const script = `require('net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`;
    spawnSync(process.execPath, ['-e', script]);
    expect(lstatSync(path).isSocket()).toBe(true);
    await start();
    expect((await (await TestClient.open({ path })).read(0, 4)).error).toBe(0);
  });

  it('never replace a file', async () => {
    writeFileSync(path, 'precious');
    await expect(start()).rejects.toThrow(
      `${path}: there is a file already that is not a socket; choose another path or remove it`,
    );
    expect(readFileSync(path, 'utf8')).toBe('precious');
  });

  it('that were replaced by a file are not removed at the end', async () => {
    const server = await start();
    rmSync(path);
    writeFileSync(path, 'precious');
    await server.close();
    expect(readFileSync(path, 'utf8')).toBe('precious');
  });

  it('cannot have a path that is too long', async () => {
    const socketPath = join(directory, 'x'.repeat(100));
    await expect(start({ address: { socketPath } })).rejects.toThrow(
      `${socketPath}: the path of a Unix socket has at most 107 bytes`,
    );
  });

  it('can have the longest path there may be', async () => {
    const socketPath = join(directory, 'x'.repeat(106 - directory.length));
    expect(socketPath).toHaveLength(107);
    await start({ address: { socketPath } });
    expect((await (await TestClient.open({ path: socketPath })).read(0, 4)).error).toBe(0);
  });

  it('say why they cannot be made', async () => {
    const socketPath = join(directory, 'no', 'socket');
    await expect(start({ address: { socketPath } })).rejects.toThrow(/^\S+: cannot listen: /);
  });
});

describe('TCP', () => {
  it.each(['127.0.0.1', '::1'])('on localhost is reached at %s', async (host) => {
    const server = await start({ address: { port: 0 } });
    const port = Number(/^nbd:\/\/localhost:(\d+)\/$/.exec(server.uris()[0]!)?.[1]);
    const client = await TestClient.open({ host, port }, 'disk');
    expect((await client.read(5, 50)).data.equals(DISK.subarray(5, 55))).toBe(true);
    expect(log[0]).toBe(`info: client 1: connected from ${host}`);
  });

  it('names an IPv6 address in brackets', async () => {
    const server = await start({ address: { port: 0, host: '::1' } });
    expect(server.uris('disk')[0]).toMatch(/^nbd:\/\/\[::1\]:\d+\/disk$/);
  });

  it('says that a port is taken', async () => {
    const other = createServer().listen(0, '127.0.0.1');
    await new Promise((resolve) => other.on('listening', resolve));
    const { port } = other.address() as AddressInfo;
    try {
      await expect(start({ address: { port } })).rejects.toThrow(
        `localhost:${port}: another server is listening there`,
      );
    } finally {
      other.close();
    }
  });

  it('says that an address is not there', async () => {
    await expect(start({ address: { port: 0, host: '192.0.2.1' } })).rejects.toThrow(
      expect.objectContaining({ code: 'HOST' }) as Error,
    );
    await expect(start({ address: { port: 0, host: 'no.invalid' } })).rejects.toThrow(
      /^no\.invalid: cannot find the address: /,
    );
  });
});
