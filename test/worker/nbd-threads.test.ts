/** What the threads of a server do when one of them cannot start, or ends. */

import { copyFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Worker } from 'node:worker_threads';
import { afterEach, describe, expect, it } from 'vitest';
import type { BlockDevice } from '../../src/device/block-device.ts';
import { openImageSet } from '../../src/export/nbd/image-set.ts';
import { serveNbd } from '../../src/export/nbd/server.ts';
import type { NbdServer } from '../../src/export/nbd/server.ts';
import { loadLibc } from '../../src/host/libc.ts';
import { NbdThreads } from '../../src/worker/nbd-threads.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';
import { until } from '../support/until.ts';
import { TestClient } from '../export/nbd/client.ts';

const DEMO = join(fileURLToPath(new URL('../../', import.meta.url)), 'images/demo.qcow2');
const directory = temporaryDirectoryPerTest();
const closing: (() => Promise<void> | void)[] = [];
const workers: Worker[] = [];
const noteWorker = (worker: Worker): void => void workers.push(worker);
process.on('worker', noteWorker);

afterEach(async () => {
  for (const close of closing.splice(0).reverse()) await close();
  workers.length = 0;
});

async function served(beforeThreads: (path: string) => void = () => undefined) {
  const path = join(directory(), 'disk.qcow2');
  copyFileSync(DEMO, path);
  const images = [{ path, options: { name: 'disk' } }];
  const set = await openImageSet(images);
  const { fingerprint } = set;
  const threads = new NbdThreads({ threads: 3, images, fingerprint });
  const log: string[] = [];
  const gone = { count: 0 };
  const address = { socketPath: join(directory(), 'nbd') };
  const server: NbdServer = await serveNbd(set.exports, address, {
    threads,
    onLastClient: () => gone.count++,
    log: (message) => log.push(message),
  });
  closing.push(
    () => set.close(),
    () => server.close({ graceMs: 100 }),
  );
  beforeThreads(path);
  await threads.startAll();
  return { server, threads, log, gone, address: { path: address.socketPath } };
}

async function readsWell(client: TestClient): Promise<boolean> {
  const { error, data } = await client.read(0, 4096);
  return error === 0 && data.length === 4096;
}

describe.skipIf(loadLibc() === undefined)('threads of a server', () => {
  it('share new clients evenly, and give them all up at the end', async () => {
    const { server, threads, gone, address } = await served();
    const clients: TestClient[] = [];
    for (let i = 0; i < 6; i++) clients.push(await TestClient.open(address));
    expect(threads.clientCount).toBe(4);
    expect(server.clientCount).toBe(6);
    for (const client of clients) expect(await readsWell(client)).toBe(true);
    await server.close();
    await Promise.all(clients.map(({ closed }) => closed));
    expect([server.clientCount, gone.count]).toEqual([0, 1]);
  });

  it('cost their clients the connection when they end, and the others nothing', async () => {
    const { server, threads, log, gone, address } = await served();
    const clients: TestClient[] = [];
    for (let i = 0; i < 6; i++) clients.push(await TestClient.open(address));
    await workers[0]!.terminate();
    const isGone = clients.map(() => false);
    clients.forEach(({ closed }, index) => void closed.then(() => (isGone[index] = true)));
    await until(() => isGone.filter(Boolean).length === 2);
    await until(() => server.clientCount === 4);
    expect(threads.clientCount).toBe(2);
    expect(log).toContain('a thread that helped to serve is gone, and 2 clients with it: it ended');
    for (const [index, client] of clients.entries()) {
      if (!isGone[index]) expect(await readsWell(client)).toBe(true);
    }
    const another = await TestClient.open(address);
    expect(await readsWell(another)).toBe(true);
    await workers[1]!.terminate();
    await until(() => threads.clientCount === 0);
    expect(await readsWell(await TestClient.open(address))).toBe(true);
    expect(gone.count).toBe(0);
    await server.close();
    expect(gone.count).toBe(1);
  });

  it('do not serve an image that is another one by now', async () => {
    const { server, threads, log, address } = await served((path) => {
      copyFileSync(path, `${path}.new`);
      renameSync(`${path}.new`, path);
    });
    expect(log).toHaveLength(2);
    expect(log[0]).toMatch(/^another thread cannot help to serve: .*replaced or written/);
    const clients = [await TestClient.open(address), await TestClient.open(address)];
    for (const client of clients) expect(await readsWell(client)).toBe(true);
    expect([server.clientCount, threads.clientCount]).toEqual([2, 0]);
  });

  it('are started for clients that keep the server busy, and these move to them', async () => {
    const images = [{ path: DEMO, options: { name: 'disk' } }];
    const set = await openImageSet(images);
    const { fingerprint } = set;
    const { size } = set.exports[0]!;
    const device = set.exports[0]!.device as BlockDevice;
    let ownReads = 0;
    const slow = {
      size,
      readOnly: true,
      extents: (offset: number, length: number) => device.extents(offset, length),
      read: (target: Uint8Array, offset: number): void => {
        ownReads++;
        const end = performance.now() + 15;
        while (performance.now() < end);
        device.read(target, offset);
      },
    } as BlockDevice;
    const threads = new NbdThreads({ threads: 2, images, fingerprint, idleCores: 0 });
    const address = { socketPath: join(directory(), 'nbd') };
    const server = await serveNbd([{ name: 'disk', device: slow }], address, { threads });
    closing.push(
      () => set.close(),
      () => server.close({ graceMs: 100 }),
    );
    let isDone = false;
    const reads = [0, 0];
    const work = [0, 1].map(async (index) => {
      const client = await TestClient.open({ path: address.socketPath });
      for (let offset = 0; !isDone; offset = (offset + 4096) % (size - 4096)) {
        const { error, data } = await client.read(offset, 4096);
        const right = Buffer.alloc(4096);
        device.read(right, offset);
        expect(error === 0 && data.equals(right)).toBe(true);
        reads[index]!++;
      }
    });
    await until(() => threads.clientCount === 1, 20_000);
    const before = { own: ownReads, all: reads[0]! + reads[1]! };
    await until(() => reads[0]! + reads[1]! > before.all + 100);
    expect(ownReads - before.own).toBeLessThan(90);
    isDone = true;
    await Promise.all(work);
    expect(server.clientCount).toBe(2);
  });
});
