/**
 * Memory for replies: a pool of buffers shared by all clients, and a writer that packs the replies
 * of one client into them.
 *
 * A reply is built where it is sent from: the device fills the payload behind the header, and
 * nothing is copied. Replies to requests that came together leave together, in one `write`.
 */

import { assert } from '../../util/assert.ts';
import { PoolUsage, Usage } from './pool-usage.ts';

const KiB = 1024;
const MiB = 1024 * KiB;

/**
 * Bytes of the buffers that are kept for reuse. The 4 KiB above a power of two hold the headers,
 * so that 64 replies of 4 KiB, or one of 256 KiB, fit one buffer.
 */
const SIZES = [8 * KiB, 68 * KiB, 260 * KiB, 1028 * KiB, 2052 * KiB] as const;
/** Largest buffer that replies are packed into; a longer reply has a buffer of its own. */
const MAX_PACKED_BYTES = 260 * KiB;
/** Bytes of idle buffers that a pool keeps. */
const MAX_IDLE_BYTES = 16 * MiB;
/** Bytes that all replies too long for {@link SIZES} may hold at one time, over all clients. */
const MAX_LARGE_BYTES = 64 * MiB;

/** Bytes that payloads which are still arriving may hold in large buffers, over all clients. */
const MAX_INPUT_BYTES = 64 * MiB;
/** What a payload has in any case. */
const MIN_INPUT_BYTES = 64 * KiB;
/** Bytes in use above which each client has to do with less. */
const TIGHT_BYTES = 256 * MiB;

/** Buffers for replies and payloads, shared by all clients of a thread. */
export class BufferPool {
  readonly #idle = new Map<number, Uint8Array[]>(SIZES.map((size) => [size, []]));
  readonly #usage: PoolUsage;
  #idleBytes = 0;

  /** @param usage what is in use by all threads of the server (default: there are no others) */
  constructor(usage = new PoolUsage()) {
    this.#usage = usage;
  }

  /** Whether so much is in use that no client may hold more than it needs to go on. */
  get isTight(): boolean {
    return this.#usage.total(Usage.all) > TIGHT_BYTES;
  }

  /**
   * A buffer of at least `length` bytes, with anything in it.
   * @returns undefined if the reply is a large one and those in flight hold all they may
   */
  take(length: number): Uint8Array | undefined {
    const usage = this.#usage;
    const size = SIZES.find((candidate) => candidate >= length);
    if (size === undefined) {
      // One is always let through, so that the limit cannot shut a request out.
      const largeBytes = usage.total(Usage.large);
      if (largeBytes > 0 && largeBytes + length > MAX_LARGE_BYTES) return undefined;
      if (this.isTight) return undefined;
      const buffer = Buffer.allocUnsafeSlow(length);
      usage.add(Usage.large, buffer);
      usage.add(Usage.all, buffer);
      return buffer;
    }
    if (length > MAX_PACKED_BYTES && this.isTight) return undefined;
    let buffer = this.#idle.get(size)?.pop();
    if (buffer === undefined) buffer = Buffer.allocUnsafeSlow(size);
    else this.#idleBytes -= size;
    usage.add(Usage.all, buffer);
    return buffer;
  }

  /** Gives a buffer back that nobody reads any more. */
  give(buffer: Uint8Array): void {
    this.#usage.subtract(Usage.all, buffer);
    const idle = this.#idle.get(buffer.length);
    if (idle === undefined) {
      this.#usage.subtract(Usage.large, buffer);
    } else if (this.#idleBytes + buffer.length <= MAX_IDLE_BYTES) {
      this.#idleBytes += buffer.length;
      idle.push(buffer);
    }
  }

  /**
   * A buffer for a payload that is still arriving: for all of `length` bytes as long as there is
   * memory, otherwise for a part of them. Give it back with {@link giveInput}.
   */
  takeInput(length: number): Uint8Array {
    const inputBytes = this.#usage.total(Usage.input);
    const isShort = this.isTight || inputBytes + length > MAX_INPUT_BYTES;
    const shortBytes = Math.min(length, MIN_INPUT_BYTES);
    // Another thread may have taken the last of the memory just now.
    const buffer = (isShort ? undefined : this.take(length)) ?? this.take(shortBytes);
    assert(buffer !== undefined, 'only what is longer than a packed reply is ever refused');
    this.#usage.add(Usage.input, buffer);
    return buffer;
  }

  /** Gives a buffer of {@link takeInput} back. */
  giveInput(buffer: Uint8Array): void {
    this.#usage.subtract(Usage.input, buffer);
    this.give(buffer);
  }
}

/** Sends the first `length` bytes of a buffer, then gives it back to the pool. */
export type SendBuffer = (buffer: Uint8Array, length: number) => void;

const NONE = new Uint8Array(0);

/** Packs one client's replies into buffers of the pool. */
export class ReplyWriter {
  /** The buffer that is being filled; replies go in at {@link position}. */
  buffer: Uint8Array = NONE;
  position = 0;
  readonly #pool: BufferPool;
  readonly #send: SendBuffer;

  constructor(pool: BufferPool, send: SendBuffer) {
    this.#pool = pool;
    this.#send = send;
  }

  /**
   * Makes room for `length` bytes at {@link position} of {@link buffer}.
   * @param expected bytes that this and the replies likely to follow at once will need
   * @returns false if there is no memory for a reply as long as this now
   */
  reserve(length: number, expected: number): boolean {
    if (this.position + length <= this.buffer.length) return true;
    this.flush();
    const buffer = this.#pool.take(Math.max(length, Math.min(expected, MAX_PACKED_BYTES)));
    if (buffer === undefined) return false;
    this.buffer = buffer;
    return true;
  }

  /** Counts `length` bytes at {@link position} as written. */
  commit(length: number): void {
    this.position += length;
  }

  /** Sends what has been packed. */
  flush(): void {
    const { buffer, position } = this;
    if (buffer === NONE) return;
    this.buffer = NONE;
    this.position = 0;
    if (position === 0) this.#pool.give(buffer);
    else this.#send(buffer, position);
  }
}
