/**
 * Many clients at once, each reading and writing a part of the disk that is its own, while others
 * misbehave in every phase and vanish in the middle of what they do.
 *
 *     NBD_CLIENTS=200 NBD_SECONDS=60 NBD_SEED=7 npx vitest run test/export/nbd/many-clients.test.ts
 */

import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { expect, it } from 'vitest';
import { openImage } from '../../../src/chain/open.ts';
import { serveNbd } from '../../../src/export/nbd/server.ts';
import { checkImage } from '../../../src/operations/check.ts';
import { createImage } from '../../../src/operations/create.ts';
import { temporaryDirectory } from '../../support/temp.ts';
import { Random } from '../../support/random.ts';
import { TestClient } from './client.ts';
import { clientFlags, CMD, contextData, FLAG, infoData, OPT, option, request } from './wire.ts';

const CLIENTS = Number(process.env['NBD_CLIENTS'] ?? 40);
const SECONDS = Number(process.env['NBD_SECONDS'] ?? 2);
const SEED = Number(process.env['NBD_SEED'] ?? 20_261_123);
const MiB = 1024 * 1024;
const PART = MiB;

it.each([
  { good: CLIENTS, bad: Math.ceil(CLIENTS / 4) },
  { good: 1, bad: 100 },
])(
  `serves $good clients while $bad misbehave (seed ${SEED})`,
  { timeout: SECONDS * 1000 + 60_000 },
  async ({ good, bad }) => {
    const path = join(temporaryDirectory(), 'disk.qcow2');
    const socketPath = join(temporaryDirectory(), 'socket');
    createImage(path, { size: good * PART });
    const image = openImage(path, { writable: true });
    const exports = [{ name: 'disk', device: image, writable: true }];
    // Twice as many as there are: it takes a moment until the server knows that one has gone.
    const server = await serveNbd(exports, { socketPath }, { maxClients: 2 * (good + bad) });
    const end = Date.now() + SECONDS * 1000;
    let rounds = 0;
    let incidents = 0;

    /** Writes, zeroes and reads a part, and holds what it reads against what it wrote. */
    async function work(index: number): Promise<Buffer> {
      const numbers = new Random(SEED + index * 7919);
      const random = (bound: number): number => numbers.below(bound);
      const model = Buffer.alloc(PART);
      const start = index * PART;
      const client = await TestClient.open({ path: socketPath });
      do {
        const offset = random(PART - 1);
        const length = 1 + random(Math.min(PART - offset, random(8) === 0 ? PART : 20_000));
        const kind = random(4);
        if (kind === 0) {
          const { error, data } = await client.read(start + offset, length);
          expect(error).toBe(0);
          expect(data.equals(model.subarray(offset, offset + length))).toBe(true);
        } else {
          const payload = Buffer.alloc(kind === 1 ? 0 : length, 1 + random(255));
          const type = kind === 1 ? CMD.WRITE_ZEROES : CMD.WRITE;
          const flags = random(16) === 0 ? FLAG.FUA : 0;
          client.send(request({ type, offset: start + offset, length, flags }), payload);
          expect((await client.take(16)).readUInt32BE(4)).toBe(0);
          if (kind === 1) model.fill(0, offset, offset + length);
          else payload.copy(model, offset);
        }
        rounds++;
      } while (Date.now() < end);
      client.destroy();
      return model;
    }

    /** Does one of the things that a client must not do, none of which changes a part, and goes. */
    async function misbehave(index: number): Promise<void> {
      const numbers = new Random(SEED ^ (index * 104_729));
      const random = (bound: number): number => numbers.below(bound);
      // A write that is refused, so that no part changes.
      const offset = good * PART;
      const failing = (): Buffer => request({ type: CMD.WRITE, offset, length: 1 + random(PART) });
      const misdeeds: ((client: TestClient) => void)[] = [
        // Says nothing, or nonsense, or that it will send more than it does.
        () => undefined,
        (client) => client.send(Buffer.alloc(1 + random(5000), random(256))),
        (client) =>
          client.send(clientFlags(), option(OPT.LIST, Buffer.alloc(9999)).subarray(0, 99)),
        // Asks and asks, and reads no answer.
        (client) => client.send(clientFlags(), ...Array<Buffer>(500).fill(option(OPT.LIST))),
        (client) => client.send(clientFlags(), option(OPT.STARTTLS), option(99, Buffer.alloc(999))),
        (client) => {
          const context = contextData('disk', Array<string>(50).fill('base:allocation'));
          client.send(
            clientFlags(),
            ...Array<Buffer>(50).fill(option(OPT.SET_META_CONTEXT, context)),
          );
        },
      ];
      const laterMisdeeds: ((client: TestClient) => void)[] = [
        (client) => client.send(failing(), Buffer.alloc(random(999))),
        (client) =>
          client.send(...Array<Buffer>(40).fill(request({ type: CMD.READ, length: PART }))),
        (client) => client.send(request({ type: CMD.READ, length: random(PART) }).subarray(0, 20)),
        (client) => client.send(request({ type: CMD.READ, magic: 0x12345678 })),
        (client) => client.send(request({ type: CMD.WRITE, offset, length: 0xffff_ffff })),
        (client) => client.send(...Array<Buffer>(99).fill(request({ type: 77, flags: 0xffff }))),
      ];
      while (Date.now() < end) {
        await sleep(20 + random(200));
        const client = await TestClient.connect({ path: socketPath }).catch(() => undefined);
        // One is accepted in each turn of the event loop; meanwhile the queue may be full.
        if (client === undefined) continue;
        client.socket.pause();
        const isLater = random(2) === 0;
        if (isLater) client.send(clientFlags(), option(OPT.GO, infoData('')));
        const possible = isLater ? laterMisdeeds : misdeeds;
        possible[random(possible.length)]!(client);
        incidents++;
        await sleep(random(50));
        client.destroy();
      }
    }

    const villains = Array.from({ length: bad }, (_, index) => misbehave(index + 1));
    const models = await Promise.all(Array.from({ length: good }, (_, index) => work(index)));
    await Promise.all(villains);
    await server.close();
    image.close();
    expect(rounds).toBeGreaterThan(good);
    expect(incidents).toBeGreaterThan(bad);
    using again = openImage(path);
    const content = Buffer.alloc(again.size);
    again.read(content, 0);
    expect(content.equals(Buffer.concat(models))).toBe(true);
    if (again.format !== 'qcow2') throw new Error('it is no qcow2 image any more');
    const found = checkImage(again);
    // Neither is there unless there is something to tell.
    expect([found.corruptions ?? 0, found.leaks ?? 0, found['check-errors']]).toEqual([0, 0, 0]);
  },
);
