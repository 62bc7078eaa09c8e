/**
 * A write whose payload is still arriving. It is gathered in a buffer and stored piece by piece, in
 * pieces that end where clusters do, so that a long write takes no more memory than a short one.
 */

import type { BlockDevice } from '../../device/block-device.ts';
import { failureOf } from './failure.ts';
import type { Failure } from './failure.ts';
import type { Request } from './headers.ts';
import type { BufferPool } from './reply-writer.ts';

/** Largest piece: a cluster of the largest size, so that it is stored as a whole. */
const PIECE_BYTES = 2 * 1024 * 1024;

/** Shortest buffer that a piece is gathered in, unless it is shorter itself. */
const MIN_PIECE_BYTES = 64 * 1024;

/** What an incoming write needs. */
export interface WriteContext {
  readonly device: BlockDevice;
  readonly pool: BufferPool;
  readonly onError: (error: unknown) => void;
}

/** The payload of one request. */
export class IncomingWrite {
  readonly request: Request;
  /** Bytes that have not arrived. */
  remaining: number;
  /** Why it cannot succeed; what arrives is dropped from then on. */
  failure: Failure | undefined;
  readonly #context: WriteContext;
  /** Where the next bytes are to be stored that are not stored yet. */
  #offset: number;
  #buffer: Uint8Array | undefined;
  #filled = 0;
  /** Bytes of the current piece. */
  #pieceLength = 0;

  /** @param failure why it is refused: the payload is only skipped */
  constructor(request: Request, context: WriteContext, failure?: Failure) {
    this.request = request.copy();
    this.remaining = request.length;
    this.failure = failure;
    this.#context = context;
    this.#offset = request.offset;
  }

  /**
   * Takes bytes from the front of what has arrived, and stores them once a piece is complete.
   * @returns how many; never more than {@link remaining}
   */
  take(input: Uint8Array): number {
    const length = Math.min(this.remaining, input.length);
    for (let done = 0; done < length && this.failure === undefined;) {
      done += this.#gather(input.subarray(done, length));
    }
    this.remaining -= length;
    if (this.remaining === 0 || this.failure !== undefined) this.release();
    return length;
  }

  /**
   * Has bytes put where they are to be gathered.
   * @param receive fills what it can of a buffer, and says how many bytes that were
   * @returns how many were taken; 0 if there are none now
   */
  takeFrom(receive: (target: Uint8Array) => number): number {
    if (this.failure !== undefined || this.remaining === 0) return 0;
    this.#prepare();
    const length = receive(this.#buffer!.subarray(this.#filled, this.#pieceLength));
    if (length > 0) this.#added(length);
    this.remaining -= length;
    if (this.remaining === 0 || this.failure !== undefined) this.release();
    return length;
  }

  /** Gives the buffer back; safe to call again. */
  release(): void {
    if (this.#buffer !== undefined) this.#context.pool.giveInput(this.#buffer);
    this.#buffer = undefined;
  }

  #gather(bytes: Uint8Array): number {
    if (this.#filled === 0) {
      // What lies in one piece and is complete already is stored without a copy.
      const whole = this.#wholePiece();
      if (bytes.length >= whole) {
        this.#store(bytes.subarray(0, whole));
        return whole;
      }
      this.#prepare();
    }
    const count = Math.min(bytes.length, this.#pieceLength - this.#filled);
    this.#buffer!.set(bytes.subarray(0, count), this.#filled);
    this.#added(count);
    return count;
  }

  /** Bytes up to where the piece ends that begins at `#offset`. */
  #wholePiece(): number {
    const left = this.request.offset + this.request.length - this.#offset;
    return Math.min(left, PIECE_BYTES - (this.#offset % PIECE_BYTES));
  }

  /** Makes room for a piece, unless one has begun. */
  #prepare(): void {
    if (this.#filled > 0) return;
    const whole = this.#wholePiece();
    // A buffer that was too short for one piece may do for the next.
    if (this.#buffer === undefined || this.#buffer.length < Math.min(whole, MIN_PIECE_BYTES)) {
      this.release();
      this.#buffer = this.#context.pool.takeInput(whole);
    }
    this.#pieceLength = Math.min(whole, this.#buffer.length);
  }

  #added(count: number): void {
    this.#filled += count;
    if (this.#filled < this.#pieceLength) return;
    this.#filled = 0;
    this.#store(this.#buffer!.subarray(0, this.#pieceLength));
  }

  #store(bytes: Uint8Array): void {
    try {
      this.#context.device.write(bytes, this.#offset);
      this.#offset += bytes.length;
    } catch (error) {
      this.#context.onError(error);
      this.failure = failureOf(error);
    }
  }
}
