/**
 * Many clients at once, each reading and writing a part of the disk that is its own, while others
 * vanish in the middle of what they do.
 *
 *     NBD_CLIENTS=200 NBD_SECONDS=60 NBD_SEED=7 npx vitest run test/export/nbd/many-clients.test.ts
 */

import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openImage } from '../../../src/chain/open.ts';
import { serveNbd } from '../../../src/export/nbd/server.ts';
import { checkImage } from '../../../src/operations/check.ts';
import { createImage } from '../../../src/operations/create.ts';
import { temporaryDirectory } from '../../support/temp.ts';
import { Random } from '../../support/random.ts';
import { TestClient } from './client.ts';
import { CMD, FLAG, request } from './wire.ts';

const CLIENTS = Number(process.env['NBD_CLIENTS'] ?? 40);
const SECONDS = Number(process.env['NBD_SECONDS'] ?? 2);
const SEED = Number(process.env['NBD_SEED'] ?? 20_261_123);
const PART = 1024 * 1024;

it(
  `serves ${CLIENTS} clients at once (seed ${SEED})`,
  { timeout: SECONDS * 1000 + 60_000 },
  async () => {
    const path = join(temporaryDirectory(), 'disk.qcow2');
    const socketPath = join(temporaryDirectory(), 'socket');
    createImage(path, { size: CLIENTS * PART });
    const image = openImage(path, { writable: true });
    const exports = [{ name: 'disk', device: image, writable: true }];
    const server = await serveNbd(exports, { socketPath }, { maxClients: 2 * CLIENTS });
    const end = Date.now() + SECONDS * 1000;
    let rounds = 0;

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

    /** Announces more than it sends, or asks for what it never reads, and goes. */
    async function misbehave(index: number): Promise<void> {
      const numbers = new Random(SEED ^ (index * 104_729));
      const random = (bound: number): number => numbers.below(bound);
      while (Date.now() < end) {
        const client = await TestClient.open({ path: socketPath });
        client.socket.pause();
        // A write that is refused, so that no part changes.
        const offset = CLIENTS * PART;
        client.send(
          request({ type: CMD.WRITE, offset, length: 1 + random(PART) }),
          Buffer.alloc(random(999)),
        );
        client.send(request({ type: CMD.READ, length: random(PART) }));
        await new Promise((resolve) => setTimeout(resolve, random(50)));
        client.destroy();
      }
    }

    const bad = Array.from({ length: Math.ceil(CLIENTS / 4) }, (_, index) => misbehave(index + 1));
    const models = await Promise.all(Array.from({ length: CLIENTS }, (_, index) => work(index)));
    await Promise.all(bad);
    await server.close();
    image.close();
    expect(rounds).toBeGreaterThan(CLIENTS);
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
