/** Replies that the host sends from its file: in what pieces a socket takes them does not matter. */

import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { HostRange } from '../../../src/device/block-device.ts';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { Qcow2Error } from '../../../src/errors.ts';
import { BufferPool, ReplyWriter } from '../../../src/export/nbd/reply-writer.ts';
import type { DirectOutput } from '../../../src/export/nbd/transmission.ts';
import { Transmission } from '../../../src/export/nbd/transmission.ts';
import { CMD, EIO, pattern, request, simpleReplies, simpleReply } from './wire.ts';

const KiB = 1024;
const DISK = pattern(3 * KiB * KiB);
/** Where the disk is in the imagined host file. */
const HOST_START = 512;

/** A device whose bytes are in a host file, as far as it says. */
class HostedDevice extends MemoryDevice {
  readBytes = 0;
  failsFrom = Infinity;
  isHosted = true;

  override read(target: Uint8Array, offset: number): void {
    if (offset + target.length > this.failsFrom) throw new Qcow2Error('TRUNCATED', 'it is gone');
    this.readBytes += target.length;
    super.read(target, offset);
  }

  hostRange(offset: number): HostRange | undefined {
    return this.isHosted ? { descriptor: 99, hostOffset: HOST_START + offset } : undefined;
  }
}

/** A socket that takes, in turn, as many bytes as it is told to. */
class FakeSocket implements DirectOutput {
  readonly sent: Buffer[] = [];
  readonly #takes: readonly number[];
  /** Calls after which the system refuses for good. */
  readonly #lastCall: number;
  readonly #device: HostedDevice;
  #calls = 0;
  directBytes = 0;
  isReady = true;

  constructor(device: HostedDevice, takes: readonly number[], lastCall = Infinity) {
    this.#device = device;
    this.#takes = takes;
    this.#lastCall = lastCall;
  }

  get isUsable(): boolean {
    return this.#calls <= this.#lastCall;
  }

  reaches(descriptor: number, size: number): boolean {
    expect(descriptor).toBe(99);
    return size <= HOST_START + Math.min(DISK.length, this.#device.failsFrom);
  }

  send(bytes: Uint8Array): number {
    return this.#take(bytes);
  }

  sendFile(descriptor: number, hostOffset: number, length: number): number {
    expect(descriptor).toBe(99);
    const offset = hostOffset - HOST_START;
    const end = Math.min(offset + length, this.#device.failsFrom);
    const sent = this.#take(DISK.subarray(offset, Math.max(offset, end)));
    this.directBytes += sent;
    return sent;
  }

  #take(bytes: Uint8Array): number {
    // Bytes of the stream that are on their way would be overtaken.
    expect(this.isReady).toBe(true);
    const limit = this.#takes[this.#calls % this.#takes.length]!;
    this.#calls++;
    if (!this.isUsable) return 0;
    const count = Math.min(limit, bytes.length);
    this.sent.push(Buffer.from(bytes.subarray(0, count)));
    return count;
  }
}

/** Lets a transmission answer `input`; the client reads whatever blocks it. */
function answer(input: Uint8Array, device: HostedDevice, socket: FakeSocket) {
  const pool = new BufferPool();
  const writer = new ReplyWriter(pool, (buffer, length) => {
    socket.sent.push(Buffer.from(buffer.subarray(0, length)));
    socket.isReady = false;
    pool.give(buffer);
  });
  const errors: unknown[] = [];
  const transmission = new Transmission(device, {
    writer,
    pool,
    isFull: () => false,
    direct: () => socket,
    onError: (error) => errors.push(error),
  });
  let result;
  do {
    result = transmission.run(input, transmission.position);
    if (result === 'blocked') {
      expect(socket.isReady, 'blocked by a socket that is full').toBe(false);
      socket.isReady = true;
    }
  } while (result === 'yield' || result === 'blocked');
  return { result, errors, sent: Buffer.concat(socket.sent), problem: transmission.problem };
}

function read(offset: number, length: number, cookie = 7n): Buffer {
  return request({ type: CMD.READ, offset, length, cookie });
}

const ALL = [Infinity];

describe('a long read of bytes in a host file', () => {
  it('is sent from there, and not read', () => {
    const device = new HostedDevice(DISK);
    const socket = new FakeSocket(device, ALL);
    const { sent } = answer(read(1000, 2 * KiB * KiB), device, socket);
    const payload = DISK.subarray(1000, 1000 + 2 * KiB * KiB);
    expect(sent.equals(simpleReply(0, 7n, payload))).toBe(true);
    expect(socket.directBytes).toBe(payload.length);
    expect(device.readBytes).toBe(0);
  });

  it('is read where the bytes are not in one piece', () => {
    const device = new HostedDevice(DISK);
    device.isHosted = false;
    const socket = new FakeSocket(device, ALL);
    const { sent } = answer(read(0, 256 * KiB), device, socket);
    expect(sent.equals(simpleReply(0, 7n, DISK.subarray(0, 256 * KiB)))).toBe(true);
    expect(socket.directBytes).toBe(0);
  });

  it('comes after the short replies before it, and before those after it', () => {
    const lengths = [100, 5000, 64 * KiB, 1, 40 * KiB, 512 * KiB, 7, 300 * KiB];
    const device = new HostedDevice(DISK);
    const requests = lengths.map((length, index) => read(index * 333, length, BigInt(index)));
    const expected = lengths.map((length, index) =>
      simpleReply(0, BigInt(index), DISK.subarray(index * 333, index * 333 + length)),
    );
    const socket = new FakeSocket(device, [Infinity, 30_000, 0]);
    const { sent } = answer(Buffer.concat(requests), device, socket);
    expect(sent.equals(Buffer.concat(expected))).toBe(true);
    expect(socket.directBytes).toBeGreaterThan(0);
  });

  it('arrives whole, whatever the socket takes, and when the system refuses at last', () => {
    fc.assert(
      fc.property(
        fc.array(
          fc.tuple(
            fc.integer({ min: 0, max: 1024 * KiB }),
            fc.oneof(
              fc.integer({ min: 0, max: 5000 }),
              fc.integer({ min: 30_000, max: 1024 * KiB }),
            ),
          ),
          { minLength: 1, maxLength: 5 },
        ),
        fc.array(fc.oneof(fc.constant(0), fc.constant(7), fc.integer({ min: 0, max: 400_000 })), {
          minLength: 1,
          maxLength: 10,
        }),
        fc.oneof(fc.constant(Infinity), fc.integer({ min: 0, max: 10 })),
        (reads, takes, lastCall) => {
          const device = new HostedDevice(DISK);
          const input = Buffer.concat(
            reads.map(([offset, length], index) => read(offset, length, BigInt(index))),
          );
          const socket = new FakeSocket(device, takes, lastCall);
          const { sent, result } = answer(input, device, socket);
          const replies = simpleReplies(sent, (cookie) => reads[Number(cookie)]![1]);
          expect(replies).toHaveLength(reads.length);
          for (const [index, [offset, length]] of reads.entries()) {
            const reply = replies.find(({ cookie }) => cookie === BigInt(index));
            expect(reply?.error).toBe(0);
            expect(reply?.data.equals(DISK.subarray(offset, offset + length))).toBe(true);
          }
          expect(result).toBe('wait');
        },
      ),
      { numRuns: 60 },
    );
  });
});

describe('a file that has become shorter', () => {
  it('fails a read with NBD_EIO, and the connection goes on', () => {
    const device = new HostedDevice(DISK);
    device.failsFrom = 300 * KiB;
    const input = Buffer.concat([read(200 * KiB, 200 * KiB, 1n), read(0, 100 * KiB, 2n)]);
    const { sent, result } = answer(input, device, new FakeSocket(device, ALL));
    const second = simpleReply(0, 2n, DISK.subarray(0, 100 * KiB));
    expect(sent.equals(Buffer.concat([simpleReply(EIO, 1n), second]))).toBe(true);
    expect(result).toBe('wait');
  });

  it('ends the connection in the middle of a reply, and the next time says NBD_EIO', () => {
    class Late extends FakeSocket {
      override reaches(): boolean {
        return true;
      }
    }
    const device = new HostedDevice(DISK);
    device.failsFrom = 300 * KiB;
    const first = answer(read(0, 400 * KiB), device, new Late(device, ALL));
    expect(first).toMatchObject({
      result: 'violation',
      problem: 'a read failed in the middle of its reply',
    });
    expect(first.sent.length).toBe(16 + 300 * KiB);
    expect(first.errors).toHaveLength(1);
    const second = answer(read(0, 400 * KiB), device, new Late(device, ALL));
    expect(second).toMatchObject({ result: 'wait', sent: simpleReply(EIO) });
  });

  it('ends the connection where the device has been closed meanwhile', () => {
    const device = new HostedDevice(DISK);
    const socket = new FakeSocket(device, [16, 100_000]);
    const send = socket.sendFile.bind(socket);
    socket.sendFile = (...range) => {
      device.isHosted = false;
      device.failsFrom = 0;
      return send(...range);
    };
    device.failsFrom = Infinity;
    const { result, sent } = answer(read(0, 400 * KiB), device, socket);
    expect(result).toBe('violation');
    expect(sent.length).toBe(16);
  });
});
