import { describe, expect, it } from 'vitest';
import type { BlockDevice, Extent } from '../../../src/device/block-device.ts';
import { MemoryDevice, NullDevice } from '../../../src/device/memory.ts';
import { Qcow2Error } from '../../../src/errors.ts';
import type { HeaderStyle } from '../../../src/export/nbd/headers.ts';
import { metaContextsOf } from '../../../src/export/nbd/meta-contexts.ts';
import type { MetaContext } from '../../../src/export/nbd/meta-contexts.ts';
import { BufferPool } from '../../../src/export/nbd/reply-writer.ts';
import { talk } from './session.ts';
import { be, CHUNK, chunksOf, CMD, EINVAL, EIO, extendedRequest, FLAG, request } from './wire.ts';
import type { Chunk, RequestFields } from './wire.ts';

const GiB = 2 ** 30;

/** What is below each 512 bytes of the disk, again and again. */
const PATTERN: Pick<Extent, 'kind' | 'zero' | 'present' | 'depth'>[] = [
  { kind: 'data', zero: false, present: true, depth: 0 },
  { kind: 'compressed', zero: false, present: true, depth: 0 },
  { kind: 'data', zero: true, present: true, depth: 1 },
  { kind: 'zero', zero: true, present: true, depth: 2 },
  { kind: 'hole', zero: true, present: false, depth: 0 },
];

class Patterned extends NullDevice {
  override *extents(offset: number, length: number): Generator<Extent> {
    for (let at = offset; at < offset + length;) {
      const count = Math.min(512 - (at % 512), offset + length - at);
      yield { ...PATTERN[Math.floor(at / 512) % PATTERN.length]!, offset: at, length: count };
      at += count;
    }
  }
}

const BITMAP = {
  name: 'b',
  dirtyRanges: () => [
    { offset: 100, length: 50 },
    { offset: 200, length: 1000 },
  ],
};
const ALL = metaContextsOf([BITMAP]);

interface Statuses {
  id: number;
  /** Length and flags of each extent. */
  extents: [number, number][];
}

function decode({ type, payload }: Chunk): Statuses {
  const isExtended = type === CHUNK.STATUS_EXT;
  expect(type).toBe(isExtended ? CHUNK.STATUS_EXT : CHUNK.STATUS);
  const extents: [number, number][] = [];
  if (isExtended) {
    expect(payload.readUInt32BE(4)).toBe((payload.length - 8) / 16);
    for (let at = 8; at < payload.length; at += 16) {
      extents.push([Number(payload.readBigUInt64BE(at)), Number(payload.readBigUInt64BE(at + 8))]);
    }
  } else {
    for (let at = 4; at < payload.length; at += 8) {
      extents.push([payload.readUInt32BE(at), payload.readUInt32BE(at + 4)]);
    }
  }
  return { id: payload.readUInt32BE(0), extents };
}

function ask(
  fields: Omit<RequestFields, 'type'>,
  {
    device = new Patterned(1_000_000),
    contexts = ALL,
    style = 'structured',
  }: { device?: BlockDevice; contexts?: readonly MetaContext[]; style?: HeaderStyle } = {},
): Chunk[] {
  const encode = style === 'extended' ? extendedRequest : request;
  const bytes = encode({ type: CMD.BLOCK_STATUS, ...fields });
  return chunksOf(talk([bytes], device, new BufferPool(), { style, contexts }).sent) as Chunk[];
}

const [allocation, depth, bitmap] = ALL.map((context) => [context]);

describe('NBD_CMD_BLOCK_STATUS', () => {
  it.each(['structured', 'extended'] as const)('answers for each context (%s)', (style) => {
    const chunks = ask({ offset: 100, length: 2560 }, { style });
    expect(chunks.map(({ isLast }) => isLast)).toEqual([false, false, true]);
    expect(chunks.map(decode)).toEqual([
      // Data and compressed data look the same; holes of the host are zero, and no holes.
      {
        id: 1,
        extents: [
          [924, 0],
          [512, 2],
          [1024, 3],
          [100, 0],
        ],
      },
      {
        id: 2,
        extents: [
          [924, 1],
          [512, 2],
          [512, 3],
          [512, 0],
          [100, 1],
        ],
      },
      {
        id: 3,
        extents: [
          [50, 1],
          [50, 0],
          [1000, 1],
          [1460, 0],
        ],
      },
    ]);
  });

  it('answers with one extent where one is asked for, and no more than was asked about', () => {
    const one = { offset: 0, length: 700, flags: FLAG.REQ_ONE };
    expect(ask(one).map((chunk) => decode(chunk).extents)).toEqual([
      [[700, 0]],
      [[700, 1]],
      [[100, 0]],
    ]);
  });

  it('never speaks of what is past the range', () => {
    const [chunk] = ask({ offset: 0, length: 10 }, { contexts: bitmap! });
    expect(decode(chunk!).extents).toEqual([[10, 0]]);
  });

  it('has a bound for the extents of an answer', () => {
    const device = new Patterned(GiB);
    const [chunk] = ask({ length: GiB }, { device, contexts: depth! });
    expect(decode(chunk!).extents).toHaveLength(8192);
  });

  it('answers for a part of a disk that is long to look through', () => {
    let looked = 0;
    class Slow extends NullDevice {
      override *extents(offset: number, length: number): Generator<Extent> {
        const end = performance.now() + 15;
        while (performance.now() < end) looked++;
        yield { offset, length, kind: 'data', zero: false, present: true, depth: 0 };
      }
    }
    const device = new Slow(2 ** 42);
    const [chunk] = ask({ length: 2 ** 42 }, { device, contexts: allocation!, style: 'extended' });
    const [[length, flags] = []] = decode(chunk!).extents;
    expect(flags).toBe(0);
    expect(length).toBeGreaterThanOrEqual(GiB);
    expect(length).toBeLessThan(100 * GiB);
    expect(looked).toBeGreaterThan(0);
  });

  it('splits what is too long for a compact reply', () => {
    const clean = metaContextsOf([{ name: 'b', dirtyRanges: () => [] }]).slice(2);
    const device = new NullDevice(2 ** 33);
    const [compact] = ask({ length: 0xffff_ffff }, { device, contexts: clean });
    expect(decode(compact!).extents).toEqual([
      [0xffff_0000, 0],
      [0xffff, 0],
    ]);
    const [extended] = ask({ length: 2 ** 33 }, { device, contexts: clean, style: 'extended' });
    expect(decode(extended!).extents).toEqual([[2 ** 33, 0]]);
  });

  it.each([
    ['nothing', { length: 0 }, ALL],
    ['what is beyond the end', { offset: 999_999, length: 2 }, ALL],
    ['anything with a flag that it does not take', { length: 1, flags: FLAG.DF }, ALL],
    ['anything where no context was agreed on', { length: 1 }, []],
  ])('refuses to tell of %s', (_, fields, contexts) => {
    const [chunk] = ask(fields, { contexts });
    expect(chunk).toMatchObject({ type: CHUNK.ERROR, isLast: true });
    expect(chunk!.payload.readUInt32BE(0)).toBe(EINVAL);
  });

  it('tells that extents cannot be found out', () => {
    class Broken extends MemoryDevice {
      override extents(): Generator<Extent> {
        throw new Qcow2Error('CORRUPT', 'its tables are odd');
      }
    }
    const [chunk] = ask({ length: 512 }, { device: new Broken(Buffer.alloc(512)) });
    expect(chunk!.payload.readUInt32BE(0)).toBe(EIO);
  });
});

describe('NBD_CMD_BLOCK_STATUS with a payload', () => {
  const device = new Patterned(1_000_000);
  const NEXT = extendedRequest({ type: CMD.FLUSH, cookie: 99n });

  /** A request for the status of `length` bytes, with whatever payload. */
  function filtered(payload: Buffer, fields: Omit<RequestFields, 'type'> = {}): Buffer {
    const { flags = 0, ...rest } = fields;
    const header = { type: CMD.BLOCK_STATUS, ...rest, flags: flags | FLAG.PAYLOAD_LEN };
    return Buffer.concat([extendedRequest({ ...header, length: payload.length }), payload]);
  }

  function payload(length: number | bigint, ...ids: number[]): Buffer {
    return be([64, length], ...ids.map((id) => [32, id] as const));
  }

  /** The chunks of the reply; the request behind it has to be answered too. */
  function answer(bytes: Buffer, contexts: readonly MetaContext[] = ALL, chunkBytes = 4096) {
    const all = Buffer.concat([bytes, NEXT]);
    const pieces: Buffer[] = [];
    for (let at = 0; at < all.length; at += chunkBytes) {
      pieces.push(all.subarray(at, at + chunkBytes));
    }
    const { sent } = talk(pieces, device, new BufferPool(), { style: 'extended', contexts });
    const chunks = chunksOf(sent) as Chunk[];
    expect(chunks.pop()).toMatchObject({ type: CHUNK.NONE, cookie: 99n });
    return chunks;
  }

  it.each([4096, 1, 37])('answers for the contexts that it names (%i bytes at a time)', (size) => {
    const chunks = answer(filtered(payload(1000, 3, 1), { offset: 100 }), ALL, size);
    expect(chunks.map(({ isLast }) => isLast)).toEqual([false, true]);
    expect(chunks.map(({ requestOffset }) => requestOffset)).toEqual([100n, 100n]);
    expect(chunks.map(decode)).toEqual([
      {
        id: 3,
        extents: [
          [50, 1],
          [50, 0],
          [900, 1],
        ],
      },
      {
        id: 1,
        extents: [
          [924, 0],
          [76, 2],
        ],
      },
    ]);
  });

  it('takes REQ_ONE, and as long a range as there is', () => {
    const chunks = answer(filtered(payload(1_000_000, 3), { flags: FLAG.REQ_ONE }));
    expect(chunks.map(decode)).toEqual([{ id: 3, extents: [[100, 0]] }]);
  });

  it.each<[string, Buffer, Omit<RequestFields, 'type'>, readonly MetaContext[]]>([
    ['a context twice', payload(512, 1, 1), {}, ALL],
    ['a context that there is not', payload(512, 1, 9), {}, ALL],
    ['a context that was not agreed on', payload(512, 2), {}, allocation!],
    ['no context', payload(512), {}, ALL],
    ['more contexts than there are', payload(512, 1, 2, 3, 1), {}, ALL],
    ['half a context', payload(512, 1, 2).subarray(0, 14), {}, ALL],
    ['no whole length', payload(512).subarray(0, 4), {}, ALL],
    ['nothing at all', Buffer.alloc(0), {}, ALL],
    ['a context though none was agreed on', payload(512, 1), {}, []],
    ['a length of 0', payload(0, 1), {}, ALL],
    ['what is beyond the end', payload(2, 1), { offset: 999_999 }, ALL],
    ['what is far beyond the end', payload(2n ** 64n - 1n, 1), { offset: 1 }, ALL],
    ['a flag that it does not take', payload(512, 1), { flags: FLAG.DF }, ALL],
    ['a megabyte', Buffer.alloc(2 ** 20, NEXT), {}, ALL],
  ])('refuses %s, and goes on behind it', (_, bytes, fields, contexts) => {
    const chunks = answer(filtered(bytes, fields), contexts, 2 ** 16);
    expect(chunks).toMatchObject([{ type: CHUNK.ERROR, isLast: true, cookie: 7n }]);
    expect(chunks[0]!.payload.readUInt32BE(0)).toBe(EINVAL);
  });

  it('of more than 32 MiB ends the connection', () => {
    const header = { type: CMD.BLOCK_STATUS, flags: FLAG.PAYLOAD_LEN, length: 2 ** 25 + 1 };
    const agreed = { style: 'extended', contexts: ALL } as const;
    const { result } = talk([extendedRequest(header)], device, new BufferPool(), agreed);
    expect(result).toBe('violation');
  });

  it('is no payload where headers are not extended', () => {
    const [chunk] = ask({ length: 12, flags: FLAG.PAYLOAD_LEN });
    expect(chunk).toMatchObject({ type: CHUNK.ERROR, isLast: true });
    expect(chunk!.payload.readUInt32BE(0)).toBe(EINVAL);
  });
});
