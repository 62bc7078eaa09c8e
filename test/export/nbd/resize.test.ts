import { describe, expect, it } from 'vitest';
import { GrowableMemoryDevice } from '../../../src/device/memory.ts';
import { Qcow2Error } from '../../../src/errors.ts';
import { BufferPool } from '../../../src/export/nbd/reply-writer.ts';
import { answer, negotiate } from './negotiation.ts';
import { talk } from './session.ts';
import {
  be,
  CHUNK,
  chunksOf,
  clientFlags,
  CMD,
  EINVAL,
  EIO,
  ENOSPC,
  extendedRequest,
  FLAG,
  infoData,
  OPT,
  option,
  REP,
  request,
  simpleReply,
} from './wire.ts';
import type { RequestFields } from './wire.ts';

const SIZE = 64 * 1024;

function growable() {
  const device = new GrowableMemoryDevice(Buffer.alloc(SIZE, 1));
  const sizes: number[] = [];
  const resize = (size: number): void => {
    sizes.push(size);
    device.resize(size);
  };
  return { device, sizes, resize };
}

/** The error of the only, simple reply. */
function errorOf(
  fields: Omit<RequestFields, 'type'>,
  agreed: { isWritable?: boolean; resize?: (size: number) => void },
): number {
  const bytes = request({ type: CMD.RESIZE, ...fields });
  const { device } = growable();
  const { sent } = talk([bytes], device, new BufferPool(), { isWritable: true, ...agreed });
  expect(sent).toHaveLength(16);
  return sent.readUInt32BE(4);
}

describe('NBD_FLAG_SEND_RESIZE', () => {
  const resize = (): void => undefined;

  it.each([
    ['an export that clients may resize', { writable: true, resize }, true],
    ['one that they may write to only', { writable: true }, false],
    ['one that they may only read', { resize }, false],
  ])('is told of %s', (_, options, isOffered) => {
    const { device } = growable();
    const { sent } = negotiate(
      [clientFlags(), option(OPT.GO, infoData(''))],
      [{ name: '', device, ...options }],
    );
    const infoAt = sent.indexOf(be([32, OPT.GO], [32, REP.INFO], [32, 12], [16, 0]));
    expect((sent.readUInt16BE(infoAt + 22) & (1 << 9)) !== 0).toBe(isOffered);
  });

  it('is not told of the exports of other tests', () => {
    const replies = answer(option(OPT.GO, infoData('disk')));
    expect(replies.readUInt16BE(20 + 10) & (1 << 9)).toBe(0);
  });
});

describe('NBD_CMD_RESIZE', () => {
  it('makes the disk larger, and from then on it ends there', () => {
    const { device, sizes, resize } = growable();
    const beyond = { type: CMD.WRITE_ZEROES, offset: SIZE, length: 512 };
    const bytes = Buffer.concat([
      request({ ...beyond, cookie: 1n }),
      request({ type: CMD.RESIZE, offset: 2 * SIZE, cookie: 2n }),
      request({ ...beyond, cookie: 3n }),
      request({ type: CMD.READ, offset: 2 * SIZE - 4, length: 4, cookie: 4n }),
      request({ type: CMD.READ, offset: 2 * SIZE - 4, length: 5, cookie: 5n }),
    ]);
    const { sent, result } = talk([bytes], device, new BufferPool(), { isWritable: true, resize });
    const expected = [
      simpleReply(ENOSPC, 1n),
      simpleReply(0, 2n),
      simpleReply(0, 3n),
      simpleReply(0, 4n, Buffer.alloc(4)),
      simpleReply(EINVAL, 5n),
    ];
    expect(sent.equals(Buffer.concat(expected))).toBe(true);
    expect(result).toBe('wait');
    expect(sizes).toEqual([2 * SIZE]);
  });

  it('makes it smaller, and what is beyond its new end is beyond it', () => {
    const { device, resize } = growable();
    const bytes = Buffer.concat([
      request({ type: CMD.RESIZE, offset: 512, cookie: 1n, flags: FLAG.FUA }),
      request({ type: CMD.READ, offset: 512, length: 1, cookie: 2n }),
    ]);
    const { sent } = talk([bytes], device, new BufferPool(), { isWritable: true, resize });
    expect(sent.equals(Buffer.concat([simpleReply(0, 1n), simpleReply(EINVAL, 2n)]))).toBe(true);
  });

  it.each<[string, Omit<RequestFields, 'type'>, number]>([
    ['with a length', { offset: SIZE, length: 512 }, EINVAL],
    ['to half a sector', { offset: SIZE + 256 }, EINVAL],
    ['to nothing', { offset: 0 }, EINVAL],
    ['with a flag of another command', { offset: SIZE, flags: FLAG.REQ_ONE }, EINVAL],
    ['to more than any disk has', { offset: 2n ** 53n }, ENOSPC],
    ['to all that there is', { offset: 2n ** 64n - 512n }, ENOSPC],
  ])('%s is refused', (_, fields, error) => {
    const { sizes, resize } = growable();
    expect(errorOf(fields, { resize })).toBe(error);
    expect(sizes).toEqual([]);
  });

  it('is no command where it is not offered', () => {
    expect(errorOf({ offset: SIZE }, {})).toBe(EINVAL);
    const { resize } = growable();
    expect(errorOf({ offset: SIZE }, { isWritable: false, resize })).toBe(EINVAL);
  });

  it.each([
    ['INVALID_OPTION', EINVAL],
    ['UNSUPPORTED', EINVAL],
    ['TOO_LARGE', ENOSPC],
    ['HOST', EIO],
  ] as const)('tells why the device refuses (%s)', (code, error) => {
    const resize = (): void => {
      throw new Qcow2Error(code, 'no');
    };
    expect(errorOf({ offset: SIZE }, { resize })).toBe(error);
  });

  it('has no payload, and takes the size as it is where headers are extended', () => {
    const { device, sizes, resize } = growable();
    const flags = FLAG.PAYLOAD_LEN;
    const bytes = Buffer.concat([
      extendedRequest({ type: CMD.RESIZE, offset: 1024, length: 20, flags, cookie: 1n }),
      Buffer.alloc(20),
      extendedRequest({ type: CMD.RESIZE, offset: 2048, cookie: 2n }),
    ]);
    const agreed = { isWritable: true, resize, style: 'extended' } as const;
    const { sent } = talk([bytes], device, new BufferPool(), agreed);
    expect(chunksOf(sent)).toMatchObject([
      { type: CHUNK.ERROR, cookie: 1n },
      { type: CHUNK.NONE, cookie: 2n, requestOffset: 2048n },
    ]);
    expect(sizes).toEqual([2048]);
  });
});
