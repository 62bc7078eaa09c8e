import { describe, expect, it } from 'vitest';
import { MemoryDevice, NullDevice } from '../../../src/device/memory.ts';
import type { BlockDevice, Extent, ExtentKind } from '../../../src/device/block-device.ts';
import { Qcow2Error } from '../../../src/errors.ts';
import { metaContextsOf } from '../../../src/export/nbd/meta-contexts.ts';
import { BufferPool } from '../../../src/export/nbd/reply-writer.ts';
import { talk } from './session.ts';
import {
  assemble,
  be,
  CHUNK,
  chunksOf,
  CMD,
  EINVAL,
  EIO,
  ENOSPC,
  EOVERFLOW,
  EPERM,
  extendedRequest,
  FLAG,
  pattern,
  request,
} from './wire.ts';
import type { Chunk, RequestFields } from './wire.ts';

const KiB = 1024;
const MiB = 1024 * KiB;

/** A disk whose every third 64 KiB are a hole, and which may have a byte that cannot be read. */
class Spotted extends MemoryDevice {
  failsAt = -1;

  constructor(size: number) {
    const bytes = pattern(size);
    for (let at = 0; at < size; at += 192 * KiB) bytes.fill(0, at, at + 64 * KiB);
    super(bytes);
  }

  override read(target: Uint8Array, offset: number): void {
    if (offset <= this.failsAt && this.failsAt < offset + target.length) {
      throw new Qcow2Error('CORRUPT', 'it is broken here');
    }
    super.read(target, offset);
  }

  override *extents(offset: number, length: number): Generator<Extent> {
    for (let at = offset; at < offset + length;) {
      const isHole = at % (192 * KiB) < 64 * KiB;
      const end = at - (at % (192 * KiB)) + (isHole ? 64 : 192) * KiB;
      const count = Math.min(end, offset + length) - at;
      const kind: ExtentKind = isHole ? 'hole' : 'data';
      yield { offset: at, length: count, kind, zero: isHole, present: !isHole, depth: 0 };
      at += count;
    }
  }
}

const STYLES = ['structured', 'extended'] as const;
type Style = (typeof STYLES)[number];

function encode(style: Style, fields: RequestFields): Buffer {
  return style === 'extended' ? extendedRequest(fields) : request(fields);
}

/** The chunks of the only reply to a request. */
function answer(
  style: Style,
  fields: RequestFields,
  { device = new Spotted(MiB), pool = new BufferPool(), isWritable = false } = {},
): Chunk[] {
  const contexts = metaContextsOf([]);
  const session = talk([encode(style, fields)], device, pool, { style, contexts, isWritable });
  expect(session.result).toBe('wait');
  const chunks = chunksOf(session.sent) as Chunk[];
  const isLast = chunks.map((chunk) => chunk.isLast);
  expect(isLast).toEqual(chunks.map((_, index) => index === chunks.length - 1));
  for (const { cookie, requestOffset } of chunks) {
    expect(cookie).toBe(7n);
    if (style === 'extended') expect(requestOffset).toBe(BigInt(fields.offset ?? 0));
  }
  return chunks;
}

function errorOf({ type, payload }: Chunk): { error: number; text: string; offset?: bigint } {
  expect([CHUNK.ERROR, CHUNK.ERROR_OFFSET]).toContain(type);
  const textEnd = 6 + payload.readUInt16BE(4);
  const hasOffset = type === CHUNK.ERROR_OFFSET;
  expect(payload.length).toBe(textEnd + (hasOffset ? 8 : 0));
  return {
    error: payload.readUInt32BE(0),
    text: payload.toString('utf8', 6, textEnd),
    ...(hasOffset ? { offset: payload.readBigUInt64BE(textEnd) } : {}),
  };
}

function content(device: BlockDevice, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  device.read(bytes, offset);
  return bytes;
}

describe.each(STYLES)('a read with %s replies', (style) => {
  it('that is short is one chunk of data', () => {
    const chunks = answer(style, { type: CMD.READ, offset: 100, length: 4096 });
    expect(chunks).toHaveLength(1);
    const expected = Buffer.concat([be([64, 100]), content(new Spotted(MiB), 100, 4096)]);
    expect(chunks[0]).toMatchObject({ type: CHUNK.DATA });
    expect(chunks[0]!.payload.equals(expected)).toBe(true);
  });

  it('of nothing is a chunk of nothing', () => {
    const [chunk] = answer(style, { type: CMD.READ, offset: MiB });
    expect(chunk).toMatchObject({ type: CHUNK.NONE, payload: Buffer.alloc(0) });
  });

  it('that is long tells holes and does not send them', () => {
    const device = new Spotted(4 * MiB);
    const range = { offset: 1000, length: 3 * MiB };
    const chunks = answer(style, { type: CMD.READ, ...range }, { device });
    expect(chunks.filter(({ type }) => type === CHUNK.HOLE)).toHaveLength(17);
    expect(assemble(chunks, range).equals(content(device, range.offset, range.length))).toBe(true);
    const sent = chunks.reduce((sum, { payload }) => sum + payload.length, 0);
    expect(sent).toBeLessThan(2.1 * MiB);
  });

  it('is not fragmented with DF', () => {
    const device = new Spotted(4 * MiB);
    const range = { offset: 1000, length: 3 * MiB };
    const chunks = answer(style, { type: CMD.READ, flags: FLAG.DF, ...range }, { device });
    expect(chunks).toHaveLength(1);
    expect(assemble(chunks, range).equals(content(device, range.offset, range.length))).toBe(true);
  });

  it('is too much at once with DF when there is no memory for it', () => {
    const pool = new BufferPool();
    expect(pool.take(64 * MiB)).toBeDefined();
    const read = { type: CMD.READ, flags: FLAG.DF, length: 5 * MiB };
    const [chunk] = answer(style, read, { device: new Spotted(8 * MiB), pool });
    expect(errorOf(chunk!)).toMatchObject({ error: EOVERFLOW });
    const chunks = answer(style, { ...read, flags: 0 }, { device: new Spotted(8 * MiB), pool });
    expect(chunks.length).toBeGreaterThan(10);
  });

  it.each([
    ['short', 100_000 - 5000, 8000],
    ['long', 70_000, 900_000],
  ])(
    'that is %s and fails sends what can be read, and tells where it failed',
    (_, offset, length) => {
      const device = new Spotted(MiB);
      device.failsAt = 100_000;
      const chunks = answer(style, { type: CMD.READ, offset, length }, { device });
      const { error, offset: failedAt } = errorOf(chunks.at(-1)!);
      const blockStart = 100_000 - (100_000 % 4096);
      expect({ error, failedAt }).toEqual({ error: EIO, failedAt: BigInt(blockStart) });
      device.failsAt = -1;
      const good = { offset, length: blockStart - offset };
      expect(assemble(chunks, good).equals(content(device, good.offset, good.length))).toBe(true);
    },
  );

  it('that fails with DF has no data', () => {
    const device = new Spotted(MiB);
    device.failsAt = 100_000;
    const chunks = answer(style, { type: CMD.READ, flags: FLAG.DF, length: MiB }, { device });
    expect(chunks).toHaveLength(1);
    expect(errorOf(chunks[0]!)).toEqual({ error: EIO, text: 'the image is damaged' });
  });

  it.each([
    [{ offset: MiB, length: 1 }, EINVAL, 'beyond the end of the export'],
    [{ length: 32 * MiB + 1 }, EINVAL, 'more than the 32 MiB of a request'],
    [{ length: 1, flags: FLAG.REQ_ONE }, EINVAL, 'flags that this command does not take'],
  ])('of %j is refused with a reason', (fields, error, text) => {
    const [chunk] = answer(style, { type: CMD.READ, ...fields });
    expect(errorOf(chunk!)).toEqual({ error, text });
  });
});

describe('replies without data', () => {
  const write = Buffer.concat([request({ type: CMD.WRITE, length: 3 }), Buffer.alloc(3)]);

  it('are simple where headers are structured', () => {
    const { sent } = talk([write], new Spotted(MiB), new BufferPool(), {
      style: 'structured',
      isWritable: true,
    });
    expect(chunksOf(sent)).toEqual([{ error: 0, cookie: 7n }]);
  });

  it('are chunks where headers are extended, and so are errors', () => {
    const chunks = answer('extended', { type: CMD.FLUSH });
    expect(chunks).toMatchObject([{ type: CHUNK.NONE, payload: Buffer.alloc(0) }]);
    expect(errorOf(answer('extended', { type: 99 })[0]!)).toMatchObject({ error: EINVAL });
  });

  it('say why a change is refused', () => {
    const trim = { type: CMD.TRIM, length: 512 };
    expect(errorOf(answer('structured', trim)[0]!)).toEqual({
      error: EPERM,
      text: 'the export can only be read',
    });
    const zero = { type: CMD.WRITE_ZEROES, offset: MiB, length: 1 };
    expect(errorOf(answer('structured', zero, { isWritable: true })[0]!)).toMatchObject({
      error: ENOSPC,
    });
  });
});

describe('extended requests', () => {
  const agreed = { style: 'extended', isWritable: true } as const;

  class Vast extends NullDevice {
    override readonly readOnly = false;
    readonly calls: string[] = [];

    override writeZeroes(offset: number, length: number): void {
      this.calls.push(`zero ${offset} ${length}`);
    }

    override discard(offset: number, length: number): void {
      this.calls.push(`discard ${offset} ${length}`);
    }
  }

  it.each([CMD.TRIM, CMD.WRITE_ZEROES, CMD.CACHE])('have 64-bit lengths (command %i)', (type) => {
    const length = type === CMD.CACHE ? 2 ** 28 : 2 ** 34 + 512;
    const device = new Vast(2 ** 40);
    const { sent } = talk([extendedRequest({ type, length })], device, new BufferPool(), agreed);
    expect(chunksOf(sent)).toMatchObject([{ type: CHUNK.NONE, isLast: true }]);
    if (type === CMD.CACHE) return;
    const total = device.calls.reduce((sum, call) => sum + Number(call.split(' ')[2]), 0);
    expect(total).toBe(length);
  });

  it.each([2n ** 64n - 1n, 2n ** 63n, 2n ** 40n + 1n])(
    'of %i bytes are beyond the end',
    (length) => {
      const device = new Vast(2 ** 40);
      const bytes = extendedRequest({ type: CMD.TRIM, length });
      const [chunk] = chunksOf(talk([bytes], device, new BufferPool(), agreed).sent) as Chunk[];
      expect(errorOf(chunk!).error).toBe(EINVAL);
      expect(device.calls).toEqual([]);
    },
  );

  it('announce the payload of a write', () => {
    const device = new MemoryDevice(Buffer.alloc(512));
    const data = pattern(100);
    const flags = FLAG.PAYLOAD_LEN | FLAG.FUA;
    const header = extendedRequest({ type: CMD.WRITE, offset: 5, length: 100, flags });
    const bytes = Buffer.concat([header, data, extendedRequest({ type: CMD.FLUSH, cookie: 8n })]);
    const { sent } = talk([bytes], device, new BufferPool(), agreed);
    expect(chunksOf(sent)).toMatchObject([
      { type: CHUNK.NONE, cookie: 7n, requestOffset: 5n },
      { type: CHUNK.NONE, cookie: 8n, requestOffset: 0n },
    ]);
    expect(content(device, 5, 100)).toEqual(data);
  });

  it('that write without announcing it end the connection', () => {
    const bytes = extendedRequest({ type: CMD.WRITE, length: 100 });
    const session = talk([bytes], new Vast(512), new BufferPool(), agreed);
    expect(session).toMatchObject({ result: 'violation', sent: Buffer.alloc(0) });
  });

  it.each([CMD.READ, CMD.FLUSH, CMD.TRIM, CMD.WRITE_ZEROES, CMD.CACHE, 77])(
    'that announce a payload though command %i has none are refused, and it is dropped',
    (type) => {
      const header = extendedRequest({ type, length: 60, flags: FLAG.PAYLOAD_LEN });
      const payload = Buffer.alloc(60, extendedRequest({ type: CMD.DISC }));
      const bytes = Buffer.concat([header, payload, extendedRequest({ type: CMD.FLUSH })]);
      const { sent } = talk([bytes], new Vast(512), new BufferPool(), agreed);
      const [refused, flushed] = chunksOf(sent) as Chunk[];
      expect(errorOf(refused!)).toEqual({
        error: EINVAL,
        text: 'this command takes no such payload',
      });
      expect(flushed).toMatchObject({ type: CHUNK.NONE });
    },
  );

  it.each([CMD.WRITE, CMD.TRIM])(
    'that announce more than 32 MiB end the connection (%i)',
    (type) => {
      const flags = FLAG.PAYLOAD_LEN;
      const bytes = extendedRequest({ type, length: 32 * MiB + 1, flags });
      expect(talk([bytes], new Vast(2 ** 40), new BufferPool(), agreed).result).toBe('violation');
    },
  );

  it('with the magic of compact ones end the connection', () => {
    const bytes = Buffer.concat([request({ type: CMD.FLUSH }), Buffer.alloc(4)]);
    expect(talk([bytes], new Vast(512), new BufferPool(), agreed).result).toBe('violation');
  });
});
