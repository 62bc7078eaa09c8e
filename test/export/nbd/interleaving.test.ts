/** Long reads beside other requests of the same connection. */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import type { BlockDevice } from '../../../src/device/block-device.ts';
import { FileDevice } from '../../../src/device/file.ts';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { Qcow2Error } from '../../../src/errors.ts';
import { BufferPool, ReplyWriter } from '../../../src/export/nbd/reply-writer.ts';
import { serveNbd } from '../../../src/export/nbd/server.ts';
import { Transmission } from '../../../src/export/nbd/transmission.ts';
import type { TransmissionContext } from '../../../src/export/nbd/transmission.ts';
import { temporaryDirectoryPerTest } from '../../support/temp.ts';
import { TestClient } from './client.ts';
import {
  assemble,
  CHUNK,
  chunksOf,
  clientFlags,
  CMD,
  extendedRequest,
  FLAG,
  GREETING,
  infoData,
  OPT,
  option,
  pattern,
  request,
  simpleReplies,
} from './wire.ts';
import type { Chunk, RequestFields } from './wire.ts';

const KiB = 1024;
const MiB = 1024 * KiB;
const LONG = 32 * MiB;
const DISK = pattern(LONG + MiB);

type Style = 'simple' | 'structured' | 'extended';

function encode(style: Style, fields: RequestFields): Buffer {
  return style === 'extended' ? extendedRequest(fields) : request(fields);
}

/** A client that reads all replies at once, and sends when it is told to. */
class Session {
  readonly transmission: Transmission;
  result = 'wait';
  readonly #parts: Buffer[] = [];
  #input = Buffer.alloc(0);

  constructor(device: BlockDevice, agreed: Partial<TransmissionContext> = {}) {
    const pool = new BufferPool();
    const writer = new ReplyWriter(pool, (buffer, length) => {
      this.#parts.push(Buffer.from(buffer.subarray(0, length)));
      pool.give(buffer);
    });
    const onError = (): void => undefined;
    const context = { writer, pool, isFull: () => false, onError, ...agreed };
    this.transmission = new Transmission(device, context);
  }

  /** One turn, with more input if there is any. */
  turn(...input: Buffer[]): void {
    this.#input = Buffer.concat([this.#input, ...input]);
    this.result = this.transmission.run(this.#input, 0);
    this.#input = this.#input.subarray(this.transmission.position);
  }

  /** All replies until now. */
  get sent(): Buffer {
    return Buffer.concat(this.#parts);
  }

  /** Turns until there is nothing more to do. */
  finish(...input: Buffer[]): void {
    this.turn(...input);
    while (this.result === 'yield') this.turn();
  }

  /** Bytes of requests that were not looked at. */
  get waitingBytes(): number {
    return this.#input.length;
  }
}

function chunksBy(bytes: Buffer): { cookies: bigint[]; of: (cookie: bigint) => Chunk[] } {
  const chunks = chunksOf(bytes) as Chunk[];
  return {
    cookies: chunks.map(({ cookie }) => cookie),
    of: (cookie) => chunks.filter((chunk) => chunk.cookie === cookie),
  };
}

function expectRead(chunks: readonly Chunk[], offset: number, length: number): void {
  expect(chunks.map(({ isLast }) => isLast)).toEqual(
    chunks.map((_, at) => at === chunks.length - 1),
  );
  const found = assemble(chunks, { offset, length });
  expect(found.equals(DISK.subarray(offset, offset + length))).toBe(true);
}

describe.each(['structured', 'extended'] as const)('a long read (%s)', (style) => {
  const long = encode(style, { type: CMD.READ, length: LONG, cookie: 1n });
  const short = encode(style, { type: CMD.READ, offset: 5000, length: 4096, cookie: 2n });

  it('does not hold up a short one that comes while it is answered', () => {
    const session = new Session(new MemoryDevice(DISK), { style });
    session.turn(long);
    const before = session.sent.length;
    expect(before).toBeLessThan(2 * MiB);
    session.finish(short);
    const { cookies, of } = chunksBy(session.sent);
    const place = chunksBy(session.sent.subarray(0, before)).cookies.length;
    expect(cookies.indexOf(2n)).toBe(place);
    expect(cookies.at(-1)).toBe(1n);
    expectRead(of(1n), 0, LONG);
    expectRead(of(2n), 5000, 4096);
    expect(session.result).toBe('wait');
  });

  it('does not hold up whatever came together with it, nor is it held up for ever', () => {
    const session = new Session(new MemoryDevice(Buffer.from(DISK)), { style, isWritable: true });
    const others = [CMD.FLUSH, CMD.CACHE, CMD.TRIM].map((type) =>
      encode(style, { type, cookie: 3n }),
    );
    const shorts = Array<Buffer>(20_000).fill(short);
    session.finish(long, ...others, ...shorts);
    const all = chunksOf(session.sent);
    const [first, second, third] = all;
    expect([first, second, third].map((one) => one?.cookie)).toEqual([3n, 3n, 3n]);
    const chunks = all.filter(({ cookie }) => cookie === 1n) as Chunk[];
    expectRead(chunks, 0, LONG);
    // Each of the short ones costs a little more than its bytes.
    const last = all.findLastIndex(({ cookie }) => cookie === 1n);
    expect(last).toBeGreaterThan(2000);
    expect(last).toBeLessThan(8000);
    expect(all.filter(({ cookie }) => cookie === 2n)).toHaveLength(20_000);
  });

  it('of the same length as others is answered in its turn, and after shorter ones', () => {
    const lengths = [4, 4, 1, 4, 2, 1, 0.5].map((size) => size * MiB);
    const reads = lengths.map((length, index) =>
      encode(style, { type: CMD.READ, offset: index, length, cookie: BigInt(index) }),
    );
    const session = new Session(new MemoryDevice(DISK), { style });
    session.finish(...reads);
    const { of } = chunksBy(session.sent);
    for (const [index, length] of lengths.entries()) expectRead(of(BigInt(index)), index, length);
    const ends = (chunksOf(session.sent) as Chunk[])
      .filter(({ isLast }) => isLast)
      .map(({ cookie }) => Number(cookie));
    expect(ends.filter((index) => lengths[index] === 4 * MiB)).toEqual([0, 1, 3]);
    expect(ends[0]).toBe(6);
    expect(ends.indexOf(5)).toBeLessThan(ends.indexOf(1));
    expect(ends.indexOf(4)).toBeLessThan(ends.indexOf(1));
  });

  it('with NBD_CMD_FLAG_DF is one chunk', () => {
    const whole = encode(style, { type: CMD.READ, length: LONG, cookie: 1n, flags: FLAG.DF });
    const session = new Session(new MemoryDevice(DISK), { style });
    session.finish(whole, short);
    const { of } = chunksBy(session.sent);
    expect(of(1n)).toHaveLength(1);
    expectRead(of(1n), 0, LONG);
    expectRead(of(2n), 5000, 4096);
  });

  it('that fails does so alone', () => {
    class Broken extends MemoryDevice {
      override read(target: Uint8Array, offset: number): void {
        if (offset <= 7 * MiB && offset + target.length > 7 * MiB) {
          throw new Qcow2Error('HOST', 'a bad sector');
        }
        super.read(target, offset);
      }
    }
    const other = encode(style, { type: CMD.READ, offset: 8 * MiB, length: 4 * MiB, cookie: 3n });
    const session = new Session(new Broken(DISK), { style });
    session.finish(long, other, short);
    const { of } = chunksBy(session.sent);
    const chunks = of(1n);
    expect(chunks.pop()).toMatchObject({ type: CHUNK.ERROR_OFFSET, isLast: true });
    const found = assemble(chunks, { offset: 0, length: 7 * MiB });
    expect(found.equals(DISK.subarray(0, 7 * MiB))).toBe(true);
    expectRead(of(3n), 8 * MiB, 4 * MiB);
    expectRead(of(2n), 5000, 4096);
  });

  it('goes on while the payload of a write arrives, which is answered first', () => {
    const flags = style === 'extended' ? FLAG.PAYLOAD_LEN : 0;
    const write = { type: CMD.WRITE, offset: LONG, length: 4096, cookie: 4n, flags };
    const device = new MemoryDevice(Buffer.from(DISK));
    const session = new Session(device, { style, isWritable: true });
    session.turn(long, encode(style, write), Buffer.alloc(96, 'x'));
    const before = session.sent.length;
    expect(before).toBeGreaterThan(0);
    session.turn();
    expect(session.sent.length).toBeGreaterThan(before);
    session.turn(Buffer.alloc(4000, 'x'));
    session.finish();
    const all = chunksOf(session.sent);
    const answer = all.findIndex(({ cookie }) => cookie === 4n);
    expect(answer).toBeGreaterThan(0);
    expect(answer).toBeLessThan(20);
    expectRead(all.filter(({ cookie }) => cookie === 1n) as Chunk[], 0, LONG);
    const stored = Buffer.alloc(4096);
    device.read(stored, LONG);
    expect(stored.equals(Buffer.alloc(4096, 'x'))).toBe(true);
  });

  it('is one of a bounded number, and all are answered before the connection ends', () => {
    const session = new Session(new MemoryDevice(DISK), { style });
    const reads = Array.from({ length: 200 }, (_, index) =>
      encode(style, { type: CMD.READ, length: 600 * KiB, cookie: BigInt(index) }),
    );
    session.turn(...reads, encode(style, { type: CMD.DISC }));
    expect(session.waitingBytes).toBeGreaterThan(60 * long.length);
    session.finish();
    expect(session.result).toBe('disconnect');
    const { of } = chunksBy(session.sent);
    for (let index = 0; index < 200; index++) expectRead(of(BigInt(index)), 0, 600 * KiB);
  });
});

describe('a long read with a simple reply', () => {
  it('is sent without a break, after the shorter ones that came with it', () => {
    const lengths = [LONG, 100, 3 * MiB, 64 * KiB, 0];
    const reads = lengths.map((length, index) =>
      request({ type: CMD.READ, offset: index, length, cookie: BigInt(index) }),
    );
    const session = new Session(new MemoryDevice(DISK));
    session.finish(...reads);
    const replies = simpleReplies(session.sent, (cookie) => lengths[Number(cookie)]!);
    for (const { cookie, data } of replies) {
      const index = Number(cookie);
      expect(data.equals(DISK.subarray(index, index + lengths[index]!))).toBe(true);
    }
    const order = replies.map(({ cookie }) => Number(cookie));
    expect(order.slice(0, 3)).toEqual([1, 3, 4]);
    expect(order.slice(3).sort()).toEqual([0, 2]);
  });
});

describe('on a real socket', () => {
  const directory = temporaryDirectoryPerTest();

  it.each([
    ['sent from its file', true],
    ['copied', false],
  ])('a short read overtakes a long one that is %s', async (_, isFile) => {
    const path = join(directory(), 'disk.raw');
    writeFileSync(path, DISK);
    const device = isFile ? new FileDevice(path) : new MemoryDevice(DISK);
    const socketPath = join(directory(), 'socket');
    const server = await serveNbd([{ name: '', device }], { socketPath });
    try {
      const client = await TestClient.connect({ path: socketPath });
      const go = option(OPT.GO, infoData(''));
      client.send(clientFlags(), option(OPT.STRUCTURED_REPLY), go);
      await client.take(GREETING.length + 20 + 20 + 12 + 20);
      client.send(request({ type: CMD.READ, length: LONG, cookie: 1n }));
      const parts = [await client.take(MiB)];
      client.send(request({ type: CMD.READ, offset: 5000, length: 4096, cookie: 2n }));
      // At the least: each chunk has 28 bytes before its data. The server hangs up after the rest.
      parts.push(await client.take(LONG + 4096 + 2 * 28 - MiB));
      client.send(request({ type: CMD.DISC }));
      parts.push(await client.take(MiB));
      const { cookies, of } = chunksBy(Buffer.concat(parts));
      expectRead(of(1n), 0, LONG);
      expectRead(of(2n), 5000, 4096);
      expect(cookies.at(-1)).toBe(1n);
      expect(cookies.indexOf(2n)).toBeGreaterThan(0);
      client.destroy();
    } finally {
      await server.close({ graceMs: 100 });
      device.close();
    }
  });
});
