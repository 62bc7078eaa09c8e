import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { openImage } from '../../../src/chain/open.ts';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { resizerOf } from '../../../src/export/nbd/resizing.ts';
import { serveNbd } from '../../../src/export/nbd/server.ts';
import type { NbdServer } from '../../../src/export/nbd/server.ts';
import { checkImage } from '../../../src/operations/check.ts';
import { createImage } from '../../../src/operations/create.ts';
import type { Qcow2Image } from '../../../src/qcow2/image.ts';
import { TestClient } from './client.ts';
import { Random } from '../../support/random.ts';
import {
  be,
  clientFlags,
  CMD,
  contextData,
  extendedRequest,
  FLAG,
  infoData,
  OPT,
  option,
  pattern,
  request,
} from './wire.ts';

/** Another seed is another run: `FUZZ_SEED=7 npx vitest run test/export/nbd/fuzz.test.ts`. */
const SEED = Number(process.env['FUZZ_SEED'] ?? 20_240_601);
const SESSIONS = Number(process.env['FUZZ_SESSIONS'] ?? 400);
const MiB = 1024 * 1024;
const DISK = pattern(4 * MiB);

let directory: string;
let path: string;
let server: NbdServer;
let scratch: Qcow2Image;

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), 'qcow2-nbd-fuzz-'));
  path = join(directory, 'socket');
  const device = new MemoryDevice(DISK);
  createImage(join(directory, 'scratch.qcow2'), { size: 4 * MiB });
  const image = openImage(join(directory, 'scratch.qcow2'), { writable: true });
  if (image.format !== 'qcow2') throw new Error('it is no qcow2 image');
  scratch = image;
  image.addBitmap('b');
  const bitmaps = [{ name: 'b', dirtyRanges: (from: number) => image.dirtyRanges('b', from) }];
  const resizeImage = resizerOf(image, 0);
  const resize = (size: number): void => {
    if (size > 8 * MiB) throw new Error('too large');
    resizeImage(size);
  };
  const exports = [
    { name: 'scratch', device: image, writable: true, resize, bitmaps },
    { name: 'disk', device },
  ];
  server = await serveNbd(exports, { socketPath: path });
});

afterAll(async () => {
  await server.close({ graceMs: 100 });
  rmSync(directory, { recursive: true });
});

const INTERESTING = [0, 1, 0x7f, 0x80, 0xff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff, 32 * MiB];

function randomBytes(random: (bound: number) => number, length: number): Buffer {
  return Buffer.from(Array.from({ length }, () => random(256)));
}

const CONTEXTS = [
  'base:allocation',
  'qemu:allocation-depth',
  'qemu:dirty-bitmap:b',
  'base:',
  'x:y',
];

function validSession(random: (bound: number) => number): Buffer[] {
  const parts = [clientFlags(random(4))];
  const style = random(3);
  if (style === 1) parts.push(option(OPT.STRUCTURED_REPLY));
  if (style === 2) parts.push(option(OPT.EXTENDED_HEADERS));
  for (let count = random(4); count > 0; count--) {
    const names = ['', 'disk', 'x'.repeat(random(300))];
    const data = infoData(names[random(3)]!, [0, 1, 2, 3].slice(random(4)));
    parts.push(random(3) === 0 ? option(OPT.LIST) : option(OPT.INFO, data));
    const type = random(2) === 0 ? OPT.LIST_META_CONTEXT : OPT.SET_META_CONTEXT;
    parts.push(option(type, contextData('', CONTEXTS.slice(random(6)))));
    if (random(8) === 0) parts.push(option(OPT.STARTTLS));
  }
  const isOld = style !== 2 && random(2) === 0;
  parts.push(isOld ? option(OPT.EXPORT_NAME) : option(OPT.GO, infoData('')));
  for (let count = random(30); count > 0; count--) {
    const type = random(3) === 0 ? random(9) : CMD.READ;
    const length = random(4) === 0 ? random(4 * MiB) : random(8192);
    const isWrite = type === CMD.WRITE;
    if (type === CMD.RESIZE && random(2) === 0) {
      const fields = { type, offset: random(20) * 512 * 1024, cookie: BigInt(count) };
      parts.push(style === 2 ? extendedRequest(fields) : request(fields));
      continue;
    }
    if (type === CMD.BLOCK_STATUS && style === 2 && random(2) === 0) {
      const ids = [1, 2, 3, 9].slice(random(4)).map((id) => [32, id] as const);
      const payload = be([64, random(4 * MiB)], ...ids);
      const fields = { type, offset: random(4 * MiB), flags: FLAG.PAYLOAD_LEN };
      parts.push(extendedRequest({ ...fields, length: payload.length }), payload);
      continue;
    }
    const flags =
      (random(4) === 0 ? random(64) & ~FLAG.PAYLOAD_LEN : 0) |
      (isWrite && style === 2 ? FLAG.PAYLOAD_LEN : 0);
    const fields = { type, offset: random(4 * MiB), length, flags, cookie: BigInt(count) };
    parts.push(style === 2 ? extendedRequest(fields) : request(fields));
    if (isWrite) parts.push(Buffer.alloc(length));
  }
  return parts;
}

/** A session with bytes, fields or whole messages changed, doubled or lost. */
function mutate(parts: readonly Buffer[], random: (bound: number) => number): Buffer {
  const changed: Buffer[] = parts.map((part) => Buffer.from(part));
  for (let count = random(4); count > 0; count--) {
    const at = random(changed.length);
    const part = changed[at]!;
    switch (random(5)) {
      case 0:
        part[random(part.length)] = random(256);
        break;
      case 1:
        if (part.length >= 4) {
          part.writeUInt32BE(INTERESTING[random(INTERESTING.length)]!, random(part.length - 3));
        }
        break;
      case 2:
        changed.splice(at, 0, Buffer.from(part));
        break;
      case 3:
        changed.splice(at, 1, part.subarray(0, random(part.length + 1)));
        break;
      default:
        changed.splice(at, 0, randomBytes(random, random(64)));
    }
    if (changed.length === 0) break;
  }
  return Buffer.concat(changed);
}

it(`survives ${SESSIONS} broken clients (seed ${SEED})`, { timeout: 120_000 }, async () => {
  const numbers = new Random(SEED);
  const random = (bound: number): number => numbers.below(bound);
  const witness = await TestClient.open({ path }, 'disk');
  const before = process.memoryUsage.rss();
  let mostMemory = 0;
  for (let session = 0; session < SESSIONS; session++) {
    const bytes =
      random(8) === 0
        ? Buffer.concat([be([32, random(4)]), randomBytes(random, random(2000))])
        : mutate(validSession(random), random);
    const client = await TestClient.connect({ path });
    // Some never read, some wait until all is answered, some vanish.
    const manner = random(3);
    if (manner === 0) client.socket.pause();
    else client.socket.resume();
    for (let at = 0; at < bytes.length;) {
      const length = random(4) === 0 ? 1 + random(40) : bytes.length - at;
      client.send(bytes.subarray(at, at + length));
      at += length;
      if (random(4) === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    if (manner === 1) {
      client.socket.end();
      await client.closed;
    }
    client.destroy();
    const offset = random(DISK.length - 512);
    const { error, data } = await witness.read(offset, 512);
    expect(error).toBe(0);
    expect(data.equals(DISK.subarray(offset, offset + 512))).toBe(true);
    mostMemory = Math.max(mostMemory, process.memoryUsage.rss());
  }
  expect(mostMemory - before).toBeLessThan(300 * MiB);
  for (let tries = 0; server.clientCount > 1 && tries < 500; tries++) await sleep(10);
  expect(server.clientCount).toBe(1);
  witness.destroy();
  // Whatever they wrote, it is a sound image.
  await server.close({ graceMs: 100 });
  scratch.close();
  using written = openImage(join(directory, 'scratch.qcow2'));
  if (written.format !== 'qcow2') throw new Error('it is no qcow2 image any more');
  expect(written.bitmaps).toMatchObject([{ name: 'b', isInconsistent: false }]);
  expect([...written.dirtyRanges('b')]).not.toEqual([]);
  const { corruptions = 0, leaks = 0, 'check-errors': errors } = checkImage(written);
  expect({ corruptions, leaks, errors }).toEqual({ corruptions: 0, leaks: 0, errors: 0 });
});
