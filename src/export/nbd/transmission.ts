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
import type { DirectSocket } from '../../host/sendfile.ts';
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
/** Cost of a byte that the host sends from its file, which takes no copying. */
const DIRECT_COST = 0.25;
/** Cost of a request besides the bytes that it reads. */
const REQUEST_COST = 2048;
/** Bytes of a piece of a reply that is sent in pieces, or of a range that is read ahead. */
const PIECE_BYTES = 256 * 1024;
/** Shortest read whose bytes are sent from the host file; for less, copying is cheaper. */
const MIN_DIRECT_BYTES = 32 * 1024;
/** Bytes that go through the socket's stream when the socket is full, to learn when it is not. */
const WAKING_BYTES = 4 * 1024;

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

/** What is used of a {@link DirectSocket}. */
export type DirectOutput = Pick<
  DirectSocket,
  'isUsable' | 'isReady' | 'reaches' | 'send' | 'sendFile'
>;

/** What a transmission needs from its connection. */
export interface TransmissionContext {
  readonly writer: ReplyWriter;
  /** Whether as many bytes are on their way to the client as may be. */
  readonly isFull: () => boolean;
  /** The way into the client's socket beside its stream, if there is one. */
  readonly direct?: () => DirectOutput | undefined;
  /** Told about reads that failed; the client sees `NBD_EIO`. */
  readonly onReadError: (error: unknown) => void;
}

/** Work for one request that takes more than one turn. */
interface Job {
  /**
   * `stream` sends what it reads, `direct` has the host send it from its file, `cache` only reads
   * it, so that the next read is quick.
   */
  kind: 'stream' | 'direct' | 'cache';
  /** The request, for its cookie. */
  request: Uint8Array;
  /** What of the reply's header has not been sent. */
  header: Uint8Array;
  offset: number;
  remaining: number;
}

const NOTHING = new Uint8Array(0);

/**
 * Devices where a read failed in the middle of a reply, which cost the client its connection: from
 * then on they are read before the reply begins, so that it can say `NBD_EIO`.
 */
const failedDevices = new WeakSet<BlockDevice>();

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
        const job = this.#job;
        const before = job.remaining;
        const byteCost = job.kind === 'direct' ? DIRECT_COST : 1;
        const result = this.#continueJob(job);
        if (result !== undefined) return result;
        cost += REQUEST_COST + (before - job.remaining) * byteCost;
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
    if (length >= MIN_DIRECT_BYTES && this.#canSendDirectly(offset, length)) {
      this.#startJob('direct', input, at);
      return 0;
    }
    const total = MessageSize.simpleReply + length;
    const pending = Math.floor((input.length - at) / MessageSize.request);
    const writer = this.#writer;
    if (!writer.reserve(total, total * pending)) {
      this.#startJob('stream', input, at);
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
        this.#startJob('cache', input, at);
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

  #startJob(kind: Job['kind'], input: Uint8Array, at: number): void {
    const request = copyRequest(input, at);
    const header = new Uint8Array(MessageSize.simpleReply);
    writeSimpleReply(header, 0, { error: 0, request, requestAt: 0 });
    const remaining = readU32(input, at + 24);
    this.#job = { kind, request, header, offset: requestOffset(input, at), remaining };
  }

  /** Does one piece of a job; the result is not undefined if nothing more can be done now. */
  #continueJob(job: Job): TransmissionResult | undefined {
    let length = Math.min(job.remaining, PIECE_BYTES);
    if (job.kind === 'direct') {
      this.#writer.flush();
      if (this.#context.direct?.()?.isReady === false) return 'blocked';
      length = this.#sendDirectly(job);
    }
    if (length > 0 && !this.#readPiece(job, length)) return 'violation';
    if (this.#job === undefined || job.remaining > 0) return undefined;
    this.#job = undefined;
    if (job.kind === 'cache') this.#reply(job.request, 0, 0);
    return undefined;
  }

  /** Reads the next piece, and sends it; false if the reply has begun and cannot be completed. */
  #readPiece(job: Job, length: number): boolean {
    const writer = this.#writer;
    const isSent = job.kind !== 'cache';
    const header = isSent ? job.header.length : 0;
    // The pool always has room for a piece: only whole large replies are ever refused.
    writer.reserve(header + length, header + length);
    const { buffer, position } = writer;
    try {
      this.#device.read(buffer.subarray(position + header, position + header + length), job.offset);
    } catch (error) {
      this.#context.onReadError(error);
      this.#job = undefined;
      if (job.header.length < MessageSize.simpleReply) {
        failedDevices.add(this.#device);
        this.problem = 'a read failed in the middle of its reply';
        return false;
      }
      this.#reply(job.request, 0, NbdError.NBD_EIO);
      return true;
    }
    if (isSent) {
      buffer.set(job.header, position);
      job.header = NOTHING;
      writer.commit(header + length);
    }
    job.offset += length;
    job.remaining -= length;
    return true;
  }

  /** Whether the host can send a range from its file. */
  #canSendDirectly(offset: number, length: number): boolean {
    const direct = this.#device.hostRange === undefined ? undefined : this.#context.direct?.();
    if (direct?.isUsable !== true || failedDevices.has(this.#device)) return false;
    try {
      const range = this.#device.hostRange?.(offset, length);
      return range !== undefined && direct.reaches(range.descriptor, range.hostOffset + length);
    } catch {
      // The ordinary way meets the same problem, and reports it.
      return false;
    }
  }

  /**
   * Has the host send the next bytes of a reply, as many as the socket takes.
   * @returns how many bytes are to be read and sent after them
   */
  #sendDirectly(job: Job): number {
    const direct = this.#context.direct?.();
    if (direct !== undefined && job.header.length > 0) {
      job.header = job.header.subarray(direct.send(job.header));
    }
    const wanted = Math.min(job.remaining, TURN_BYTES);
    // Asked for each time: while the client was waited for, the device may have been closed.
    const range = this.#device.hostRange?.(job.offset, wanted);
    let sent = 0;
    if (range !== undefined && job.header.length === 0) {
      sent = direct?.sendFile(range.descriptor, range.hostOffset, wanted) ?? 0;
    }
    job.offset += sent;
    job.remaining -= sent;
    if (sent === wanted) return 0;
    if (range !== undefined && direct?.isUsable === true) {
      return Math.min(job.remaining, WAKING_BYTES);
    }
    job.kind = 'stream';
    return Math.min(job.remaining, PIECE_BYTES);
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
