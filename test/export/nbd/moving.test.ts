/** Clients that go from one thread to another in the middle of what they do. */

import { writeFileSync } from 'node:fs';
import { createServer, Socket } from 'node:net';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, it } from 'vitest';
import { openImage } from '../../../src/chain/open.ts';
import { ClientSet } from '../../../src/export/nbd/clients.ts';
import { ExportTable } from '../../../src/export/nbd/exports.ts';
import { BufferPool } from '../../../src/export/nbd/reply-writer.ts';
import { loadLibc } from '../../../src/host/libc.ts';
import { Random } from '../../support/random.ts';
import { temporaryDirectoryPerTest } from '../../support/temp.ts';
import { until } from '../../support/until.ts';
import { TestClient } from './client.ts';
import { CMD, pattern, request } from './wire.ts';

const SIZE = 4 * 1024 * 1024;
const directory = temporaryDirectoryPerTest();
const closing: (() => Promise<void> | void)[] = [];

afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
});

/** Two sets of clients, as two threads have them; all come to the first. */
async function twoSets() {
  const path = join(directory(), 'disk.raw');
  const content = pattern(SIZE);
  writeFileSync(path, content);
  const gone: string[] = [];
  const images = [openImage(path), openImage(path)];
  const sets = images.map(
    (device) =>
      new ClientSet({
        exports: new ExportTable([{ name: 'disk', device }]),
        pool: new BufferPool(),
        tls: undefined,
        handshakeTimeoutMs: 10_000,
        idleTimeoutMs: undefined,
        log: () => undefined,
        onGone: (client) => gone.push(client),
      }),
  );
  const [first, second] = sets as [ClientSet, ClientSet];
  let clients = 0;
  const server = createServer({ allowHalfOpen: true }, (socket) =>
    first.add(socket, `client ${++clients}`),
  );
  const address = { path: join(directory(), 'socket') };
  await new Promise<void>((resolve) => server.listen(address.path, resolve));
  closing.push(async () => {
    for (const set of sets) await set.close(100);
    server.close();
    for (const image of images) image.close();
  });
  /** Moves what can be moved from one set to the other. */
  let moves = 0;
  const move = (from: ClientSet, to: ClientSet): void => {
    for (const connection of [...from.connections]) {
      from.move(connection, (moved, name) => {
        moves++;
        to.add(new Socket({ fd: moved.descriptor, allowHalfOpen: true }), name, moved);
      });
    }
  };
  return { address, content, first, second, gone, move, moves: () => moves };
}

/** Sends reads all at once, in pieces of any length, and holds the replies against the content. */
async function readMuch(client: TestClient, content: Buffer, random: Random): Promise<void> {
  const wanted = new Map<bigint, { offset: number; length: number }>();
  const requests: Buffer[] = [];
  for (let cookie = 1n; cookie <= 24n; cookie++) {
    const length = 1 + random.below(random.below(4) === 0 ? 400_000 : 5000);
    const offset = random.below(SIZE - length);
    wanted.set(cookie, { offset, length });
    requests.push(Buffer.from(request({ type: CMD.READ, offset, length, cookie })));
  }
  const bytes = Buffer.concat(requests);
  for (let at = 0; at < bytes.length;) {
    const end = at + 1 + random.below(200);
    client.send(bytes.subarray(at, end));
    at = end;
    if (random.below(4) === 0) await sleep(0);
  }
  while (wanted.size > 0) {
    const header = await client.take(16);
    expect(header.length).toBe(16);
    expect(header.readUInt32BE(4)).toBe(0);
    const cookie = header.readBigUInt64BE(8);
    const { offset, length } = wanted.get(cookie)!;
    wanted.delete(cookie);
    const data = await client.take(length);
    expect(data.equals(content.subarray(offset, offset + length))).toBe(true);
  }
}

describe.skipIf(loadLibc() === undefined)('a client that is moved', () => {
  it('gets every reply once, and every byte right, however often that happens', async () => {
    const { address, content, first, second, gone, move, moves } = await twoSets();
    const clients = await Promise.all([1, 2, 3].map(() => TestClient.open(address, 'disk')));
    let isDone = false;
    const moving = (async () => {
      while (!isDone) {
        move(first, second);
        await sleep(2);
        move(second, first);
        await sleep(1);
      }
    })();
    await Promise.all(
      clients.map(async (client, index) => {
        const random = new Random(index + 1);
        for (let round = 0; round < 25; round++) await readMuch(client, content, random);
      }),
    );
    isDone = true;
    await moving;
    expect(moves()).toBeGreaterThan(20);
    expect(first.size + second.size).toBe(3);
    expect(gone).toEqual([]);
    for (const client of clients) client.socket.end();
    await until(() => gone.length === 3);
  });

  it('stays where it is while it chooses its export, and while it is owed what it does not read', async () => {
    const { address, content, first, second, move } = await twoSets();
    const choosing = await TestClient.connect(address);
    await choosing.take(18);
    const owed = await TestClient.open(address, 'disk');
    owed.socket.pause();
    for (let i = 0; i < 8; i++) owed.send(request({ type: CMD.READ, offset: 0, length: SIZE }));
    await sleep(50);
    move(first, second);
    await sleep(50);
    expect([first.size, second.size]).toEqual([2, 0]);
    owed.socket.resume();
    for (let i = 0; i < 8; i++) {
      const reply = await owed.take(16 + SIZE);
      expect(reply.subarray(16).equals(content)).toBe(true);
    }
    await until(() => second.size === 1);
    owed.send(request({ type: CMD.READ, offset: 512, length: 512 }));
    expect((await owed.take(16 + 512)).subarray(16).equals(content.subarray(512, 1024))).toBe(true);
    choosing.socket.destroy();
  });

  it('is not missed if it hangs up on its way', async () => {
    const { address, first, second, gone, move } = await twoSets();
    const client = await TestClient.open(address, 'disk');
    client.socket.end(request({ type: CMD.READ, offset: 0, length: 4096 }));
    move(first, second);
    await client.closed;
    await until(() => gone.length === 1);
    expect(first.size + second.size).toBe(0);
  });
});
