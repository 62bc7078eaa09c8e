import { describe, expect, it } from 'vitest';
import { BufferPool, ReplyWriter } from '../../../src/export/nbd/reply-writer.ts';

const KiB = 1024;
const MiB = 1024 * KiB;

describe('BufferPool', () => {
  it('gives a buffer again that came back', () => {
    const pool = new BufferPool();
    const buffer = pool.take(4112)!;
    expect(buffer.length).toBeGreaterThanOrEqual(4112);
    pool.give(buffer);
    expect(pool.take(100)).toBe(buffer);
    expect(pool.take(100)).not.toBe(buffer);
  });

  it('keeps no more idle buffers than it may', () => {
    const pool = new BufferPool();
    const buffers = Array.from({ length: 100 }, () => pool.take(256 * KiB + 16)!);
    for (const buffer of buffers) pool.give(buffer);
    const known = new Set(buffers);
    let kept = 0;
    for (let index = 0; index < 100; index++) if (known.has(pool.take(256 * KiB + 16)!)) kept++;
    expect(kept).toBeGreaterThan(50);
    expect(kept * 260 * KiB).toBeLessThanOrEqual(16 * MiB);
  });

  it('has 64 MiB for large replies at one time, and again when they are gone', () => {
    const pool = new BufferPool();
    const first = pool.take(32 * MiB)!;
    const second = pool.take(32 * MiB)!;
    expect(pool.take(3 * MiB)).toBeUndefined();
    expect(pool.take(2 * MiB)).toBeDefined();
    pool.give(first);
    expect(pool.take(3 * MiB)).toBeDefined();
    pool.give(second);
    expect(pool.take(32 * MiB)).toBeDefined();
  });
});

describe('ReplyWriter', () => {
  it('packs what fits one buffer, and sends nothing that was not committed', () => {
    const pool = new BufferPool();
    const sent: string[] = [];
    const writer = new ReplyWriter(pool, (buffer, length) => {
      sent.push(Buffer.from(buffer.subarray(0, length)).toString());
      pool.give(buffer);
    });
    const put = (text: string, reserved: number): void => {
      expect(writer.reserve(reserved, reserved)).toBe(true);
      Buffer.from(text).copy(writer.buffer, writer.position);
      writer.commit(text.length);
    };
    put('one', 10);
    put('two', 10);
    put('three', 10 * KiB);
    writer.flush();
    writer.flush();
    expect(sent).toEqual(['onetwo', 'three']);
    writer.reserve(100, 100);
    writer.flush();
    expect(sent).toHaveLength(2);
  });

  it('takes a small buffer for a small reply that comes alone', () => {
    const writer = new ReplyWriter(new BufferPool(), () => undefined);
    writer.reserve(16, 16);
    expect(writer.buffer.length).toBeLessThanOrEqual(8 * KiB);
  });
});
