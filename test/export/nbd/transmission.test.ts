import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MemoryDevice, NullDevice } from '../../../src/device/memory.ts';
import type { BlockDevice } from '../../../src/device/block-device.ts';
import { Qcow2Error } from '../../../src/errors.ts';
import { BufferPool, ReplyWriter } from '../../../src/export/nbd/reply-writer.ts';
import { Transmission } from '../../../src/export/nbd/transmission.ts';
import { talk } from './session.ts';
import { CMD, EINVAL, EIO, EPERM, pattern, request, simpleReply } from './wire.ts';
import type { RequestFields } from './wire.ts';

const MiB = 1024 * 1024;
const DISK = pattern(MiB + 100);

/** A device that fails where it is told to. */
class FailingDevice extends MemoryDevice {
  readonly failsAt: number;

  constructor(bytes: Uint8Array, failsAt: number) {
    super(bytes);
    this.failsAt = failsAt;
  }

  override read(target: Uint8Array, offset: number): void {
    if (offset <= this.failsAt && this.failsAt < offset + target.length) {
      // What was read so far must not reach the client.
      target.fill(0x55);
      throw new Qcow2Error('CORRUPT', 'it is broken here', { offset: this.failsAt });
    }
    super.read(target, offset);
  }
}

function answer(fields: RequestFields, device: BlockDevice = new MemoryDevice(DISK)): Buffer {
  return talk([request(fields)], device).sent;
}

describe('NBD_CMD_READ', () => {
  it.each([
    [0, 1],
    [1, 511],
    [4096, 65536],
    [DISK.length - 1, 1],
    [0, DISK.length],
  ])('sends the bytes at %i, %i of them', (offset, length) => {
    const payload = DISK.subarray(offset, offset + length);
    const cookie = 0xfedcba9876543210n;
    const reply = answer({ type: CMD.READ, offset, length, cookie });
    expect(reply.equals(simpleReply(0, cookie, payload))).toBe(true);
  });

  it('answers a read of nothing with nothing, at the very end too', () => {
    expect(answer({ type: CMD.READ })).toEqual(simpleReply(0));
    expect(answer({ type: CMD.READ, offset: DISK.length })).toEqual(simpleReply(0));
  });

  it.each([
    ['past the end', { offset: DISK.length - 1, length: 2 }],
    ['beyond the end', { offset: DISK.length + 1, length: 0 }],
    ['at 2^53', { offset: 2 ** 53, length: 1 }],
    ['at 2^64 - 1', { offset: 2n ** 64n - 1n, length: 1 }],
    ['so that offset + length is 2^64', { offset: 2n ** 64n - 512n, length: 512 }],
    ['with a flag', { length: 1, flags: 1 }],
    ['with an unknown flag', { length: 1, flags: 0x8000 }],
  ])('refuses a read %s', (_, fields) => {
    expect(answer({ type: CMD.READ, ...fields })).toEqual(simpleReply(EINVAL));
  });

  it('reads 32 MiB, and not a byte more', () => {
    const large = new NullDevice(2 ** 40);
    const whole = answer({ type: CMD.READ, offset: 2 ** 39, length: 32 * MiB }, large);
    expect(whole.length).toBe(16 + 32 * MiB);
    expect(answer({ type: CMD.READ, length: 32 * MiB + 1 }, large)).toEqual(simpleReply(EINVAL));
    expect(answer({ type: CMD.READ, length: 0xffffffff }, large)).toEqual(simpleReply(EINVAL));
  });

  it('answers a failed read with NBD_EIO, without data, and goes on', () => {
    const device = new FailingDevice(DISK, 5000);
    const requests = [
      request({ type: CMD.READ, offset: 0, length: 4096, cookie: 1n }),
      request({ type: CMD.READ, offset: 4096, length: 4096, cookie: 2n }),
      request({ type: CMD.READ, offset: 8192, length: 4096, cookie: 3n }),
    ];
    const session = talk([Buffer.concat(requests)], device);
    expect(session.sent).toEqual(
      Buffer.concat([
        simpleReply(0, 1n, DISK.subarray(0, 4096)),
        simpleReply(EIO, 2n),
        simpleReply(0, 3n, DISK.subarray(8192, 12288)),
      ]),
    );
    expect(session.errors).toEqual(['at offset 5000: it is broken here']);
  });

  it('answers requests that come together with one write', () => {
    const requests = Array.from({ length: 32 }, (_, index) =>
      request({ type: CMD.READ, offset: index * 4096, length: 4096, cookie: BigInt(index) }),
    );
    const session = talk([Buffer.concat(requests)], new MemoryDevice(DISK));
    expect(session.writes).toBe(1);
    expect(session.sent.length).toBe(32 * (16 + 4096));
  });
});

describe('large reads when memory is short', () => {
  const bytes = pattern(8 * MiB);
  const length = 5 * MiB + 12345;

  function poolInUse(): BufferPool {
    const pool = new BufferPool();
    expect(pool.take(64 * MiB)).toBeDefined();
    return pool;
  }

  it('are sent in pieces', () => {
    const read = request({ type: CMD.READ, offset: 777, length });
    const flush = request({ type: CMD.FLUSH, cookie: 8n });
    const device = new MemoryDevice(bytes);
    const session = talk([Buffer.concat([read, flush])], device, poolInUse());
    // The shorter one comes first.
    const expected = [simpleReply(0, 8n), simpleReply(0, 7n, bytes.subarray(777, 777 + length))];
    expect(session.sent.equals(Buffer.concat(expected))).toBe(true);
    expect(session.writes).toBeGreaterThan(20);
  });

  it('fail with NBD_EIO where the first piece fails', () => {
    const device = new FailingDevice(bytes, 1000);
    const session = talk([request({ type: CMD.READ, length })], device, poolInUse());
    expect(session).toMatchObject({ sent: simpleReply(EIO), result: 'wait' });
  });

  it('end the connection where a later piece fails: the reply cannot be taken back', () => {
    const device = new FailingDevice(bytes, 3 * MiB);
    const session = talk([request({ type: CMD.READ, length })], device, poolInUse());
    expect(session.result).toBe('violation');
    expect(session.problem).toBe('a read failed in the middle of its reply');
    expect(session.sent.length).toBeLessThanOrEqual(16 + 3 * MiB);
    expect(session.errors).toHaveLength(1);
  });
});

describe('other commands', () => {
  it('says goodbye to NBD_CMD_DISC after answering what came before it', () => {
    const bytes = [
      request({ type: CMD.READ, length: 3 }),
      request({ type: CMD.DISC }),
      request({ type: CMD.FLUSH }),
    ];
    const session = talk([Buffer.concat(bytes)], new MemoryDevice(DISK));
    expect(session.result).toBe('disconnect');
    expect(session.sent).toEqual(simpleReply(0, 7n, DISK.subarray(0, 3)));
  });

  it('acknowledges NBD_CMD_FLUSH', () => {
    expect(answer({ type: CMD.FLUSH })).toEqual(simpleReply(0));
  });

  it.each([{ length: 1 }, { offset: 1 }, { flags: 1 }])('refuses a flush with %o', (fields) => {
    expect(answer({ type: CMD.FLUSH, ...fields })).toEqual(simpleReply(EINVAL));
  });

  it('reads ahead for NBD_CMD_CACHE and sends nothing of it', () => {
    const reads: number[] = [];
    class Watched extends MemoryDevice {
      override read(target: Uint8Array, offset: number): void {
        reads.push(target.length);
        super.read(target, offset);
      }
    }
    const device = new Watched(DISK);
    expect(answer({ type: CMD.CACHE, offset: 100, length: MiB }, device)).toEqual(simpleReply(0));
    expect(reads.reduce((sum, length) => sum + length, 0)).toBe(MiB);
    expect(answer({ type: CMD.CACHE, offset: 0, length: 0 }, device)).toEqual(simpleReply(0));
  });

  it('answers a cache request that fails with NBD_EIO', () => {
    const session = talk(
      [request({ type: CMD.CACHE, length: MiB })],
      new FailingDevice(DISK, 700_000),
    );
    expect(session).toMatchObject({ sent: simpleReply(EIO), result: 'wait' });
    expect(session.errors).toHaveLength(1);
  });

  it('refuses a cache request out of range, or with flags', () => {
    expect(answer({ type: CMD.CACHE, length: DISK.length + 1 })).toEqual(simpleReply(EINVAL));
    expect(answer({ type: CMD.CACHE, length: 1, flags: 2 })).toEqual(simpleReply(EINVAL));
  });

  it.each([
    ['NBD_CMD_TRIM', CMD.TRIM],
    ['NBD_CMD_WRITE_ZEROES', CMD.WRITE_ZEROES],
  ])('does not permit %s', (_, type) => {
    expect(answer({ type, length: 4096 })).toEqual(simpleReply(EPERM));
    // No payload follows these: their length may be anything.
    expect(answer({ type, length: 0xffffffff })).toEqual(simpleReply(EPERM));
  });

  it('does not permit NBD_CMD_WRITE, and drops its payload', () => {
    const before = Buffer.from(DISK);
    // The payload looks like a request.
    const payload = Buffer.concat([request({ type: CMD.DISC }), Buffer.alloc(1000)]);
    const write = request({ type: CMD.WRITE, length: payload.length, cookie: 9n });
    const bytes = Buffer.concat([write, payload, request({ type: CMD.READ, length: 4 })]);
    const session = talk([bytes], new MemoryDevice(DISK));
    expect(session.sent).toEqual(
      Buffer.concat([simpleReply(EPERM, 9n), simpleReply(0, 7n, DISK.subarray(0, 4))]),
    );
    expect(DISK.equals(before)).toBe(true);
  });

  it('does not permit a write of nothing', () => {
    const bytes = Buffer.concat([request({ type: CMD.WRITE }), request({ type: CMD.FLUSH })]);
    const session = talk([bytes], new MemoryDevice(DISK));
    expect(session.sent).toEqual(Buffer.concat([simpleReply(EPERM), simpleReply(0)]));
  });

  it('hangs up on a write of more than 32 MiB', () => {
    const write = request({ type: CMD.WRITE, length: 32 * MiB + 1 });
    expect(talk([write], new MemoryDevice(DISK))).toMatchObject({ result: 'violation' });
  });

  it.each([CMD.BLOCK_STATUS, 8, 9, 0xffff])('refuses command %i', (type) => {
    expect(answer({ type, length: 512 })).toEqual(simpleReply(EINVAL));
  });

  it('hangs up on a request without its magic, after answering what came before it', () => {
    const bytes = [
      request({ type: CMD.FLUSH, cookie: 1n }),
      request({ type: CMD.READ, magic: 0x25609514 }),
    ];
    const session = talk([Buffer.concat(bytes)], new MemoryDevice(DISK));
    expect(session).toMatchObject({ result: 'violation', sent: simpleReply(0, 1n) });
    expect(session.problem).toBe('a request does not begin with NBD_REQUEST_MAGIC');
  });
});

describe('turns', () => {
  function transmissionOf(device: BlockDevice, isFull: () => boolean) {
    const pool = new BufferPool();
    const replies: number[] = [];
    const writer = new ReplyWriter(pool, (buffer, length) => {
      replies.push(length);
      pool.give(buffer);
    });
    return {
      transmission: new Transmission(device, { writer, pool, isFull, onError: () => 0 }),
      replies,
    };
  }

  it('yields after half a megabyte or so, and goes on where it was', () => {
    const { transmission, replies } = transmissionOf(new NullDevice(2 ** 40), () => false);
    const requests = Buffer.concat(
      Array.from({ length: 16 }, () => request({ type: CMD.READ, length: 256 * 1024 })),
    );
    let turns = 1;
    let start = 0;
    while (transmission.run(requests, start) === 'yield') {
      turns++;
      start = transmission.position;
    }
    expect(turns).toBeGreaterThan(6);
    expect(turns).toBeLessThan(12);
    expect(replies.reduce((sum, length) => sum + length, 0)).toBe(16 * (16 + 256 * 1024));
  });

  it('yields while it reads ahead a long range', () => {
    const { transmission } = transmissionOf(new NullDevice(2 ** 40), () => false);
    const cache = request({ type: CMD.CACHE, length: 64 * MiB });
    expect(transmission.run(cache, 0)).toBe('yield');
    expect(transmission.position).toBe(cache.length);
  });

  it('yields after many requests that cost nothing', () => {
    const { transmission } = transmissionOf(new NullDevice(512), () => false);
    const requests = Buffer.concat(Array.from({ length: 2000 }, () => request({ type: 99 })));
    expect(transmission.run(requests, 0)).toBe('yield');
  });

  it('looks at no request while the client has too much to read', () => {
    const { transmission, replies } = transmissionOf(new NullDevice(512), () => true);
    expect(transmission.run(request({ type: CMD.READ, length: 1 }), 0)).toBe('blocked');
    expect(transmission.position).toBe(0);
    expect(replies).toEqual([]);
  });
});

describe('delivery', () => {
  const requestArbitrary = fc
    .record({
      type: fc.oneof(
        { weight: 3, arbitrary: fc.constant(CMD.READ) },
        fc.integer({ min: 1, max: 9 }),
      ),
      offset: fc.integer({ min: 0, max: DISK.length }),
      length: fc.integer({ min: 0, max: 3000 }),
      flags: fc.constantFrom(0, 0, 0, 0, 1, 0x100),
      cookie: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
    })
    .map((fields) => {
      const payload = Buffer.alloc(fields.type === CMD.WRITE ? fields.length : 0, 0x25);
      return Buffer.concat([request(fields), payload]);
    });

  it('does not matter: the same bytes in any pieces get the same replies', () => {
    fc.assert(
      fc.property(
        fc.array(requestArbitrary, { maxLength: 20 }),
        fc.array(fc.integer({ min: 1, max: 200 }), { minLength: 1, maxLength: 20 }),
        (requests, cuts) => {
          const bytes = Buffer.concat(requests);
          const chunks: Buffer[] = [];
          for (let at = 0, cut = 0; at < bytes.length; cut++) {
            const length = cuts[cut % cuts.length]!;
            chunks.push(bytes.subarray(at, at + length));
            at += length;
          }
          const whole = talk([bytes], new MemoryDevice(DISK));
          const pieces = talk(chunks, new MemoryDevice(DISK));
          expect(pieces.sent.equals(whole.sent)).toBe(true);
          expect(pieces.result).toBe(whole.result);
        },
      ),
      { numRuns: 200 },
    );
  });
});
