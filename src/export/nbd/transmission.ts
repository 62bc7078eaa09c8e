/**
 * The transmission phase, server's side, for exports that are read: requests in, simple replies
 * out, in the order of the requests.
 *
 * A state machine over bytes that knows nothing of sockets. `run` handles requests until there
 * are no more, or the client must read its replies first, or it is another client's turn.
 *
 * Specification: `doc/proto.md`, "Transmission" and "Request types".
 */

import type { BlockDevice } from '../../device/block-device.ts';
import { readU16, readU32 } from '../../util/bytes.ts';
import {
  Command,
  MessageSize,
  NBD_MAX_PAYLOAD,
  NBD_REQUEST_MAGIC,
  NbdError,
  requestOffset,
  writeSimpleReply,
} from './protocol.ts';
import type { ReplyWriter } from './reply-writer.ts';

/** Cost, in bytes read, that a client may cause before it is another client's turn. */
const TURN_BYTES = 512 * 1024;
/** Cost of a request besides the bytes that it reads. */
const REQUEST_COST = 2048;
/** Bytes of a piece of a reply that is sent in pieces, or of a range that is read ahead. */
const PIECE_BYTES = 256 * 1024;

/** Why {@link Transmission.run} returned. */
export type TransmissionResult =
  /** All whole requests have been handled. */
  | 'wait'
  /** The client must read replies first. */
  | 'blocked'
  /** There is more to do, after the other clients' turn. */
  | 'yield'
  /** The client said goodbye. */
  | 'disconnect'
  /** The client broke the protocol, or a reply cannot be completed: {@link Transmission.problem}. */
  | 'violation';

/** What a transmission needs from its connection. */
export interface TransmissionContext {
  readonly writer: ReplyWriter;
  /** Whether as many bytes are on their way to the client as may be. */
  readonly isFull: () => boolean;
  /** Told about reads that failed; the client sees `NBD_EIO`. */
  readonly onReadError: (error: unknown) => void;
}

/** Work for one request that takes more than one turn. */
interface Job {
  /** `stream` sends what it reads, `cache` only reads it, so that the next read is quick. */
  kind: 'stream' | 'cache';
  /** The request, for its cookie. */
  request: Uint8Array;
  offset: number;
  remaining: number;
}

/** One client's requests to one export. */
export class Transmission {
  /** How far into its input `run` came. */
  position = 0;
  /** What is wrong, after `violation`. */
  problem = '';
  readonly #device: BlockDevice;
  readonly #size: number;
  readonly #writer: ReplyWriter;
  readonly #context: TransmissionContext;
  #job: Job | undefined;
  /** A write request whose payload is still arriving, and how much of it. */
  #refusedWrite: { request: Uint8Array; remaining: number } | undefined;

  constructor(device: BlockDevice, context: TransmissionContext) {
    this.#device = device;
    this.#size = device.size;
    this.#writer = context.writer;
    this.#context = context;
  }

  /**
   * Handles what is in `input` from `start` on; {@link position} says how much of it was used.
   * All replies have been handed to the writer's `send` on return.
   */
  run(input: Uint8Array, start: number): TransmissionResult {
    this.position = start;
    const result = this.#run(input);
    this.#writer.flush();
    return result;
  }

  #run(input: Uint8Array): TransmissionResult {
    for (let cost = 0; ;) {
      if (this.#context.isFull()) return 'blocked';
      if (cost >= TURN_BYTES) return 'yield';
      if (this.#job !== undefined) {
        cost += PIECE_BYTES;
        if (!this.#continueJob(this.#job)) return 'violation';
        continue;
      }
      if (this.#refusedWrite !== undefined && !this.#skipPayload(this.#refusedWrite, input)) {
        return 'wait';
      }
      const at = this.position;
      if (input.length - at < MessageSize.request) return 'wait';
      if (readU32(input, at) !== NBD_REQUEST_MAGIC) {
        return this.#violation('a request does not begin with NBD_REQUEST_MAGIC');
      }
      const type = readU16(input, at + 6);
      if (type === Command.NBD_CMD_DISC) return 'disconnect';
      const length = readU32(input, at + 24);
      if (type === Command.NBD_CMD_READ) {
        cost += REQUEST_COST + this.#read(input, length);
      } else {
        cost += REQUEST_COST;
        if (type === Command.NBD_CMD_WRITE && length > NBD_MAX_PAYLOAD) {
          return this.#violation(`a write announces ${length} bytes`);
        }
        this.#other(type, input, length);
      }
      this.position = at + MessageSize.request;
    }
  }

  /** Answers the read at {@link position}; returns how many bytes that took from the device. */
  #read(input: Uint8Array, length: number): number {
    const at = this.position;
    const offset = requestOffset(input, at);
    const flags = readU16(input, at + 4);
    if (flags !== 0 || length > NBD_MAX_PAYLOAD || offset + length > this.#size) {
      this.#reply(input, at, NbdError.NBD_EINVAL);
      return 0;
    }
    const total = MessageSize.simpleReply + length;
    const pending = Math.floor((input.length - at) / MessageSize.request);
    const writer = this.#writer;
    if (!writer.reserve(total, total * pending)) {
      const request = copyRequest(input, at);
      this.#job = { kind: 'stream', request, offset, remaining: length };
      return 0;
    }
    const { buffer, position } = writer;
    try {
      const payload = buffer.subarray(position + MessageSize.simpleReply, position + total);
      if (length > 0) this.#device.read(payload, offset);
    } catch (error) {
      this.#context.onReadError(error);
      this.#reply(input, at, NbdError.NBD_EIO);
      return length;
    }
    writeSimpleReply(buffer, position, { error: 0, request: input, requestAt: at });
    writer.commit(total);
    return length;
  }

  /** Answers a request that is neither a read nor a disconnect. */
  #other(type: number, input: Uint8Array, length: number): void {
    const at = this.position;
    switch (type) {
      case Command.NBD_CMD_WRITE: {
        const request = copyRequest(input, at);
        this.#refusedWrite = { request, remaining: length };
        return;
      }
      case Command.NBD_CMD_TRIM:
      case Command.NBD_CMD_WRITE_ZEROES:
        this.#reply(input, at, NbdError.NBD_EPERM);
        return;
      case Command.NBD_CMD_FLUSH: {
        const flags = readU16(input, at + 4);
        const isPlain = flags === 0 && length === 0 && requestOffset(input, at) === 0;
        // Nothing can have been written.
        this.#reply(input, at, isPlain ? 0 : NbdError.NBD_EINVAL);
        return;
      }
      case Command.NBD_CMD_CACHE: {
        const offset = requestOffset(input, at);
        if (readU16(input, at + 4) !== 0 || offset + length > this.#size) {
          this.#reply(input, at, NbdError.NBD_EINVAL);
          return;
        }
        const request = copyRequest(input, at);
        this.#job = { kind: 'cache', request, offset, remaining: length };
        return;
      }
      default:
        this.#reply(input, at, NbdError.NBD_EINVAL);
    }
  }

  /** Sends a reply without payload to the request at `at`. */
  #reply(request: Uint8Array, at: number, error: number): void {
    const writer = this.#writer;
    const length = MessageSize.simpleReply;
    if (!writer.reserve(length, length)) return;
    writeSimpleReply(writer.buffer, writer.position, { error, request, requestAt: at });
    writer.commit(length);
  }

  /** Drops payload of a write; false if more of it is to come. */
  #skipPayload(write: { request: Uint8Array; remaining: number }, input: Uint8Array): boolean {
    const skipped = Math.min(write.remaining, input.length - this.position);
    write.remaining -= skipped;
    this.position += skipped;
    if (write.remaining > 0) return false;
    this.#refusedWrite = undefined;
    this.#reply(write.request, 0, NbdError.NBD_EPERM);
    return true;
  }

  /** Does one piece of a job; false if its reply has begun and cannot be completed. */
  #continueJob(job: Job): boolean {
    const isStream = job.kind === 'stream';
    const writer = this.#writer;
    const length = Math.min(job.remaining, PIECE_BYTES);
    const isFirst = job.offset === requestOffset(job.request, 0);
    const header = isStream && isFirst ? MessageSize.simpleReply : 0;
    // The pool always has room for a piece: only whole large replies are ever refused.
    writer.reserve(header + length, header + length);
    const { buffer, position } = writer;
    try {
      this.#device.read(buffer.subarray(position + header, position + header + length), job.offset);
    } catch (error) {
      this.#context.onReadError(error);
      this.#job = undefined;
      if (isStream && !isFirst) {
        this.problem = 'a read failed in the middle of its reply';
        return false;
      }
      this.#reply(job.request, 0, NbdError.NBD_EIO);
      return true;
    }
    if (header > 0)
      writeSimpleReply(buffer, position, { error: 0, request: job.request, requestAt: 0 });
    if (isStream) writer.commit(header + length);
    job.offset += length;
    job.remaining -= length;
    if (job.remaining > 0) return true;
    this.#job = undefined;
    if (!isStream) this.#reply(job.request, 0, 0);
    return true;
  }

  #violation(problem: string): TransmissionResult {
    this.problem = problem;
    return 'violation';
  }
}

/** A request for later; `slice` of a Buffer would keep all that arrived with it. */
function copyRequest(input: Uint8Array, at: number): Uint8Array {
  return new Uint8Array(input.subarray(at, at + MessageSize.request));
}
