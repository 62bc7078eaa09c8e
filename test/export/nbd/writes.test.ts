import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MemoryDevice, NullDevice } from '../../../src/device/memory.ts';
import { SliceDevice } from '../../../src/device/slice.ts';
import { Qcow2Error } from '../../../src/errors.ts';
import { padToSector } from '../../../src/export/nbd/padded-device.ts';
import { BufferPool } from '../../../src/export/nbd/reply-writer.ts';
import { talk } from './session.ts';
import {
  CMD,
  EINVAL,
  EIO,
  ENOSPC,
  ENOTSUP,
  EPERM,
  FLAG,
  pattern,
  request,
  simpleReply,
} from './wire.ts';
import type { RequestFields } from './wire.ts';

const MiB = 1024 * 1024;

/** A disk that keeps a list of what is done to it. */
class Watched extends MemoryDevice {
  readonly calls: string[] = [];
  readonly zeroesFast: boolean = true;
  /** Thrown by every change that touches this byte. */
  failsAt = -1;
  failure: Error = new Qcow2Error('HOST', 'no', { cause: { code: 'EIO' } });
  flushFails = false;

  override write(source: Uint8Array, offset: number): void {
    this.#note('write', offset, source.length);
    super.write(source, offset);
  }

  override writeZeroes(offset: number, length: number, options?: { mayUnmap?: boolean }): void {
    this.#note(options?.mayUnmap === true ? 'unmap' : 'zero', offset, length);
    super.writeZeroes(offset, length);
  }

  override discard(offset: number, length: number): void {
    this.#note('discard', offset, length);
  }

  override flush(): void {
    this.calls.push('flush');
    if (this.flushFails) throw this.failure;
  }

  #note(what: string, offset: number, length: number): void {
    this.calls.push(`${what} ${offset} ${length}`);
    if (offset <= this.failsAt && this.failsAt < offset + length) throw this.failure;
  }
}

/** A disk of zeroes that takes everything. */
class Vast extends NullDevice {
  override readonly readOnly = false;

  override writeZeroes(): void {
    // They are there already.
  }

  override discard(): void {
    // There is nothing to give up.
  }
}

function disk(size = MiB): Watched {
  return new Watched(Buffer.alloc(size));
}

/** Sends requests, each with its payload, to a disk that may be written. */
function send(device: Watched, ...requests: (RequestFields & { payload?: Uint8Array })[]) {
  const bytes = requests.flatMap(({ payload = new Uint8Array(0), ...fields }) => [
    request(fields),
    payload,
  ]);
  return talk([Buffer.concat(bytes)], device, new BufferPool(), { isWritable: true });
}

function write(offset: number, payload: Uint8Array, fields: Partial<RequestFields> = {}) {
  return { type: CMD.WRITE, offset, length: payload.length, payload, ...fields };
}

function contentOf(device: Watched): Buffer {
  const bytes = Buffer.alloc(device.size);
  device.read(bytes, 0);
  return bytes;
}

describe('NBD_CMD_WRITE', () => {
  it('stores its payload, and the next request is found behind it', () => {
    const device = disk();
    const data = pattern(5000);
    const session = send(device, write(777, data, { cookie: 1n }), {
      type: CMD.READ,
      offset: 776,
      length: 5002,
    });
    const read = Buffer.concat([Buffer.alloc(1), data, Buffer.alloc(1)]);
    expect(session.sent).toEqual(Buffer.concat([simpleReply(0, 1n), simpleReply(0, 7n, read)]));
    expect(device.calls).toEqual(['write 777 5000']);
  });

  it('of nothing succeeds', () => {
    expect(send(disk(), write(0, new Uint8Array(0))).sent).toEqual(simpleReply(0));
  });

  it.each([
    ['one byte too long', MiB - 99, 100],
    ['wholly beyond the end', MiB, 1],
    ['at 2^64 - 512', 2n ** 64n - 512n, 512],
  ])('%s has no room, and nothing of it is stored', (_, offset, length) => {
    const device = disk();
    const payload = Buffer.alloc(length, 1);
    const session = send(device, { type: CMD.WRITE, offset, length, payload }, { type: CMD.FLUSH });
    expect(session.sent).toEqual(Buffer.concat([simpleReply(ENOSPC), simpleReply(0)]));
    expect(device.calls).toEqual(['flush']);
  });

  it.each([FLAG.NO_HOLE, FLAG.DF, FLAG.REQ_ONE, FLAG.FAST_ZERO, FLAG.PAYLOAD_LEN, 0x8000])(
    'with flag %i is refused',
    (flags) => {
      const device = disk();
      expect(send(device, write(0, Buffer.alloc(512), { flags })).sent).toEqual(
        simpleReply(EINVAL),
      );
      expect(device.calls).toEqual([]);
    },
  );

  it('with FUA is flushed before it is answered', () => {
    const device = disk();
    expect(send(device, write(0, Buffer.alloc(512), { flags: FLAG.FUA })).sent).toEqual(
      simpleReply(0),
    );
    expect(device.calls).toEqual(['write 0 512', 'flush']);
  });

  it('with FUA fails if the flush does', () => {
    const device = disk();
    device.flushFails = true;
    expect(send(device, write(0, Buffer.alloc(512), { flags: FLAG.FUA })).sent).toEqual(
      simpleReply(EIO),
    );
  });

  it.each([
    ['ENOSPC', ENOSPC],
    ['EDQUOT', ENOSPC],
    ['EFBIG', ENOSPC],
    ['EIO', EIO],
    ['ENOENT', EIO],
  ])('that fails with %s on the host is told so', (code, error) => {
    const device = disk();
    device.failsAt = 10;
    device.failure = new Qcow2Error('HOST', 'no', { cause: { code } });
    const session = send(device, write(0, Buffer.alloc(512)), { type: CMD.READ, length: 1 });
    expect(session.sent).toEqual(
      Buffer.concat([simpleReply(error), simpleReply(0, 7n, Buffer.alloc(1))]),
    );
    expect(session.errors).toEqual(['no']);
  });

  it('of 32 MiB is stored in pieces that end where clusters do, however it arrives', () => {
    const device = disk(40 * MiB);
    const data = pattern(32 * MiB);
    const bytes = Buffer.concat([
      request({ type: CMD.WRITE, offset: 1000, length: data.length }),
      data,
    ]);
    const chunks: Buffer[] = [];
    for (let at = 0; at < bytes.length; at += 65_536) chunks.push(bytes.subarray(at, at + 65_536));
    const session = talk(chunks, device, new BufferPool(), { isWritable: true });
    expect(session.sent).toEqual(simpleReply(0));
    expect(device.calls).toHaveLength(17);
    expect(device.calls.slice(0, 2)).toEqual([
      `write 1000 ${2 * MiB - 1000}`,
      `write ${2 * MiB} ${2 * MiB}`,
    ]);
    expect(
      contentOf(device)
        .subarray(1000, 1000 + data.length)
        .equals(data),
    ).toBe(true);
  });

  it('can be taken from where it arrives, in any pieces', () => {
    const data = pattern(5 * MiB);
    const disks = [1000, 70_000, 3 * MiB].map((most) => {
      const device = disk(6 * MiB);
      let sent = 100;
      const receive = (target: Uint8Array): number => {
        const part = data.subarray(sent, sent + Math.min(most, target.length));
        target.set(part);
        sent += part.length;
        return part.length;
      };
      const fields = { type: CMD.WRITE, offset: 1000, length: data.length };
      const bytes = Buffer.concat([request(fields), data.subarray(0, 100)]);
      const session = talk([bytes], device, new BufferPool(), { isWritable: true, receive });
      expect(session.sent).toEqual(simpleReply(0));
      return contentOf(device);
    });
    for (const content of disks) {
      expect(content.subarray(1000, 1000 + data.length).equals(data)).toBe(true);
    }
  });

  it('goes on when the first piece fails: the rest of the payload is dropped', () => {
    const device = disk(8 * MiB);
    device.failsAt = 5;
    const session = send(device, write(0, pattern(7 * MiB)), { type: CMD.FLUSH, cookie: 8n });
    expect(session.sent).toEqual(Buffer.concat([simpleReply(EIO), simpleReply(0, 8n)]));
    expect(device.calls).toEqual([`write 0 ${2 * MiB}`, 'flush']);
  });

  it('takes turns with other clients', () => {
    const device = disk(8 * MiB);
    const session = send(
      device,
      ...Array.from({ length: 8 }, (_, index) => write(index * MiB, pattern(MiB))),
    );
    expect(session.sent.length).toBe(8 * 16);
    expect(session.turns).toBeGreaterThan(5);
  });

  it('to memory that is used up arrives in small pieces', () => {
    const pool = new BufferPool();
    for (let count = 0; count < 32; count++) pool.takeInput(2 * MiB);
    const device = disk(4 * MiB);
    const data = pattern(2 * MiB);
    const bytes = Buffer.concat([request({ type: CMD.WRITE, length: data.length }), data]);
    const halves = [bytes.subarray(0, 1000), bytes.subarray(1000)];
    const { sent } = talk(halves, device, pool, { isWritable: true });
    expect(sent).toEqual(simpleReply(0));
    expect(device.calls.length).toBeGreaterThan(1);
    expect(contentOf(device).subarray(0, data.length).equals(data)).toBe(true);
  });
});

describe.each([
  ['NBD_CMD_TRIM', CMD.TRIM, 'discard', EINVAL],
  ['NBD_CMD_WRITE_ZEROES', CMD.WRITE_ZEROES, 'unmap', ENOSPC],
] as const)('%s', (_, type, call, beyond) => {
  it('is passed on', () => {
    const device = disk();
    expect(send(device, { type, offset: 4096, length: 8192 }).sent).toEqual(simpleReply(0));
    expect(device.calls).toEqual([`${call} 4096 8192`]);
  });

  it('is flushed with FUA', () => {
    const device = disk();
    send(device, { type, length: 512, flags: FLAG.FUA });
    expect(device.calls).toEqual([`${call} 0 512`, 'flush']);
  });

  it('does not go beyond the end', () => {
    const device = disk();
    expect(send(device, { type, offset: 1, length: MiB }).sent).toEqual(simpleReply(beyond));
    expect(device.calls).toEqual([]);
  });

  it('of 300 MiB is done in pieces, while shorter requests are answered', () => {
    const device = new Vast(2 ** 32);
    const bytes = [
      request({ type, offset: 4096, length: 300 * MiB, cookie: 1n }),
      request({ type: CMD.READ, length: 1, cookie: 2n }),
    ];
    const session = talk([Buffer.concat(bytes)], device, new BufferPool(), { isWritable: true });
    expect(session.sent).toEqual(
      Buffer.concat([simpleReply(0, 2n, Buffer.alloc(1)), simpleReply(0, 1n)]),
    );
  });

  it('of 300 MiB is done before the client may leave', () => {
    const device = new Vast(2 ** 32);
    const bytes = [request({ type, length: 300 * MiB }), request({ type: CMD.DISC })];
    const session = talk([Buffer.concat(bytes)], device, new BufferPool(), { isWritable: true });
    expect(session).toMatchObject({ sent: simpleReply(0), result: 'disconnect' });
  });

  it('that fails is told so', () => {
    const device = disk();
    device.failsAt = 100;
    expect(send(device, { type, length: 512 }).sent).toEqual(simpleReply(EIO));
  });

  it.each([FLAG.DF, FLAG.REQ_ONE, 0x8000])('with flag %i is refused', (flags) => {
    expect(send(disk(), { type, length: 512, flags }).sent).toEqual(simpleReply(EINVAL));
  });
});

describe('NBD_CMD_WRITE_ZEROES', () => {
  it('keeps the space with NO_HOLE', () => {
    const device = disk();
    send(device, { type: CMD.WRITE_ZEROES, length: 512, flags: FLAG.NO_HOLE });
    expect(device.calls).toEqual(['zero 0 512']);
  });

  it('with FAST_ZERO is done only where it is known to be fast', () => {
    const zero = { type: CMD.WRITE_ZEROES, length: 512, flags: FLAG.FAST_ZERO };
    expect(send(disk(), zero).sent).toEqual(simpleReply(0));
    const slow = new (class extends Watched {
      override readonly zeroesFast: boolean = false;
    })(Buffer.alloc(MiB));
    expect(send(slow, zero).sent).toEqual(simpleReply(ENOTSUP));
    expect(slow.calls).toEqual([]);
  });
});

describe('NBD_CMD_FLUSH', () => {
  it('flushes', () => {
    const device = disk();
    expect(send(device, { type: CMD.FLUSH }).sent).toEqual(simpleReply(0));
    expect(device.calls).toEqual(['flush']);
  });

  it('that fails is told so', () => {
    const device = disk();
    device.flushFails = true;
    expect(send(device, { type: CMD.FLUSH }).sent).toEqual(simpleReply(EIO));
  });
});

describe('FUA on what does not write', () => {
  it.each([CMD.READ, CMD.FLUSH, CMD.CACHE])('command %i takes it', (type) => {
    expect(send(disk(), { type, flags: FLAG.FUA }).sent).toEqual(simpleReply(0));
  });
});

describe('what cannot be written', () => {
  it.each([CMD.WRITE, CMD.TRIM, CMD.WRITE_ZEROES])('command %i is not permitted', (type) => {
    const device = disk();
    const { sent } = talk([request({ type, length: 0 })], device);
    expect(sent).toEqual(simpleReply(EPERM));
    expect(device.calls).toEqual([]);
  });

  it('is the rest of the disk to whoever uses a partition', () => {
    const device = disk();
    const slice = new SliceDevice(device, { offset: 4096, length: 8192 });
    const bytes = [
      request({ type: CMD.WRITE, offset: 8000, length: 193 }),
      Buffer.alloc(193, 1),
      request({ type: CMD.WRITE_ZEROES, offset: 8192, length: 1 }),
      request({ type: CMD.TRIM, offset: 0, length: 8193 }),
      request({ type: CMD.WRITE, offset: 8191, length: 1 }),
      Buffer.alloc(1, 9),
    ];
    const { sent } = talk([Buffer.concat(bytes)], slice, new BufferPool(), { isWritable: true });
    expect(sent).toEqual(
      Buffer.concat([ENOSPC, ENOSPC, EINVAL, 0].map((error) => simpleReply(error))),
    );
    expect(device.calls).toEqual(['write 12287 1']);
  });

  it('is what pads the last sector, except with zeroes', () => {
    const device = disk(1000);
    const padded = padToSector(device);
    expect(padded.size).toBe(1024);
    const bytes = [
      request({ type: CMD.WRITE, offset: 512, length: 512 }),
      Buffer.concat([Buffer.alloc(488, 5), Buffer.alloc(24)]),
      request({ type: CMD.WRITE, offset: 512, length: 512 }),
      Buffer.alloc(512, 6),
      request({ type: CMD.WRITE_ZEROES, offset: 990, length: 34 }),
    ];
    const { sent } = talk([Buffer.concat(bytes)], padded, new BufferPool(), { isWritable: true });
    expect(sent).toEqual(Buffer.concat([0, ENOSPC, 0].map((error) => simpleReply(error))));
    expect(device.calls).toEqual(['write 512 488', 'unmap 990 10']);
    expect(contentOf(device).subarray(512, 990)).toEqual(Buffer.alloc(478, 5));
  });
});

describe('delivery of writes', () => {
  const change = fc.record({
    type: fc.constantFrom(CMD.WRITE, CMD.WRITE, CMD.WRITE_ZEROES, CMD.READ),
    offset: fc.integer({ min: 0, max: 70_000 }),
    length: fc.integer({ min: 0, max: 9000 }),
    fill: fc.integer({ min: 1, max: 255 }),
  });

  it('does not matter: the same bytes in any pieces leave the same disk', () => {
    fc.assert(
      fc.property(
        fc.array(change, { maxLength: 20 }),
        fc.array(fc.integer({ min: 1, max: 5000 }), { minLength: 1, maxLength: 20 }),
        (changes, cuts) => {
          const bytes = Buffer.concat(
            changes.flatMap(({ fill, ...fields }) => [
              request(fields),
              Buffer.alloc(fields.type === CMD.WRITE ? fields.length : 0, fill),
            ]),
          );
          const chunks: Buffer[] = [];
          for (let at = 0, cut = 0; at < bytes.length; cut++) {
            const length = cuts[cut % cuts.length]!;
            chunks.push(bytes.subarray(at, at + length));
            at += length;
          }
          const [whole, pieces] = [disk(65_536), disk(65_536)];
          const first = talk([bytes], whole, new BufferPool(), { isWritable: true });
          const second = talk(chunks, pieces, new BufferPool(), { isWritable: true });
          expect(second.sent.equals(first.sent)).toBe(true);
          expect(contentOf(pieces).equals(contentOf(whole))).toBe(true);
        },
      ),
      { numRuns: 200 },
    );
  });
});
