/**
 * The transmission phase, server's side: requests in, replies out.
 *
 * A state machine over bytes that knows nothing of sockets. `run` handles requests until there
 * are no more, or the client must read its replies first, or it is another client's turn.
 *
 * Devices are synchronous: what is done at once is answered in the order of the requests. Trimming,
 * zeroing and reading ahead are done a piece at a time, between the other requests, and answered
 * when they are done. Long reads wait for the shorter ones that came after them, but for no more of
 * them than they send themselves.
 *
 * Specification: `doc/proto.md`, "Transmission" and "Request types".
 */

import type { BlockDevice } from '../../device/block-device.ts';
import { Qcow2Error } from '../../errors.ts';
import { readU32 } from '../../util/bytes.ts';
import type { RequestStats } from '../../util/request-stats.ts';
import { answerBlockStatus } from './block-status.ts';
import { failureOf, Failures } from './failure.ts';
import type { Failure } from './failure.ts';
import { HeaderSize, NBD_EXTENDED_REQUEST_MAGIC, NBD_REQUEST_MAGIC, Request } from './headers.ts';
import type { HeaderStyle } from './headers.ts';
import { IncomingFilter } from './incoming-filter.ts';
import { IncomingWrite } from './incoming-write.ts';
import type { MetaContext } from './meta-contexts.ts';
import { Command, CommandFlag, NBD_MAX_PAYLOAD } from './protocol.ts';
import { RangeTask } from './range-task.ts';
import { Reads } from './reads.ts';
import type { DirectOutput } from './reads.ts';
import { Replies } from './replies.ts';
import { RequestCounter } from './request-counter.ts';
import type { BufferPool, ReplyWriter } from './reply-writer.ts';

export type { DirectOutput } from './reads.ts';

/** Cost, in bytes read or written, that a client may cause before it is another client's turn. */
const TURN_BYTES = 512 * 1024;
/** Cost of a request besides the bytes that it reads or writes. */
const REQUEST_COST = 2048;
/** Cost that other requests may cause before it is a waiting read's turn. */
const SHARE_BYTES = 256 * 1024;
/** What sizes are multiples of: clients count in sectors. */
const SIZE_UNIT = 512;
/** Requests under way that take more than one turn; the next one waits. */
const MAX_TASKS = 16;

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
  readonly pool: BufferPool;
  /** Whether the client may write (default false). */
  readonly isWritable?: boolean;
  /** Changes the size of the device, where the client may ask for that. */
  readonly resize?: ((size: number) => void) | undefined;
  /** Headers that were agreed on (default `simple`). */
  readonly style?: HeaderStyle;
  /** Metadata contexts that were agreed on. */
  readonly contexts?: readonly MetaContext[];
  /** Where requests are counted (default: they are not). */
  readonly stats?: RequestStats | undefined;
  /** Whether as many bytes are on their way to the client as may be. */
  readonly isFull: () => boolean;
  /** The way into the client's socket beside its stream, if there is one. */
  readonly direct?: () => DirectOutput | undefined;
  /**
   * Fills what it can of a buffer with bytes that come after all that `run` was given, and says how
   * many; they are not given to `run` any more.
   */
  readonly receive?: (target: Uint8Array) => number;
  /** Told about what failed; the client sees an error of the protocol. */
  readonly onError: (error: unknown) => void;
}

const { NBD_CMD_FLAG_FUA, NBD_CMD_FLAG_NO_HOLE, NBD_CMD_FLAG_DF } = CommandFlag;
const { NBD_CMD_FLAG_REQ_ONE, NBD_CMD_FLAG_FAST_ZERO, NBD_CMD_FLAG_PAYLOAD_LEN } = CommandFlag;

/** One client's requests to one export. */
export class Transmission {
  /** How far into its input `run` came. */
  position = 0;
  /** What is wrong, after `violation`. */
  problem = '';
  readonly #device: BlockDevice;
  readonly #style: HeaderStyle;
  readonly #isWritable: boolean;
  readonly #context: TransmissionContext;
  readonly #replies: Replies;
  readonly #counter: RequestCounter | undefined;
  readonly #reads: Reads;
  readonly #request = new Request();
  readonly #magic: number;
  readonly #headerBytes: number;
  /** Flags that any command may have. */
  readonly #commonFlags: number;
  /** A request whose payload is still arriving. */
  #incoming: IncomingWrite | IncomingFilter | undefined;
  /** Requests that are being worked on a piece at a time, oldest first. */
  readonly #tasks: RangeTask[] = [];
  /** Cost of other requests since a waiting read had its turn. */
  #costSinceRead = 0;
  #isLeaving = false;

  constructor(device: BlockDevice, context: TransmissionContext) {
    const { writer, style = 'simple', isWritable = false, stats, direct, onError } = context;
    this.#device = device;
    this.#style = style;
    this.#context = context;
    this.#counter = stats && new RequestCounter(stats, style);
    this.#replies = new Replies(writer, style, this.#counter);
    this.#reads = new Reads({ device, replies: this.#replies, direct, onError });
    const isExtended = style === 'extended';
    this.#magic = isExtended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC;
    this.#headerBytes = isExtended ? HeaderSize.extendedRequest : HeaderSize.request;
    // Whoever is told that there is such a flag may set it on every command.
    this.#isWritable = isWritable && !device.readOnly;
    this.#commonFlags = this.#isWritable ? NBD_CMD_FLAG_FUA : 0;
  }

  /**
   * Handles what is in `input` from `start` on; {@link position} says how much of it was used.
   * All replies have been handed to the writer's `send` on return.
   */
  run(input: Uint8Array, start: number): TransmissionResult {
    this.position = start;
    this.#counter?.begin(input, start + (this.#incoming?.remaining ?? 0));
    const result = this.#run(input);
    this.#replies.writer.flush();
    this.#counter?.settle();
    return result;
  }

  /** Whether a payload is still arriving. */
  get isReceiving(): boolean {
    return this.#incoming !== undefined;
  }

  /** Whether nothing is under way: all that `run` was given is answered. */
  get isIdle(): boolean {
    const { isBusy, hasWaiting } = this.#reads;
    const isWorking = isBusy || hasWaiting || this.#tasks.length > 0;
    return !isWorking && !this.isReceiving && !this.#isLeaving;
  }

  /** Gives back what is held for requests that were not finished. */
  close(): void {
    this.#incoming?.release();
    this.#reads.close();
    this.#tasks.length = 0;
  }

  #run(input: Uint8Array): TransmissionResult {
    for (let cost = 0; ;) {
      if (this.#context.isFull()) return 'blocked';
      if (cost >= TURN_BYTES) return this.#endTurn();
      cost += REQUEST_COST;
      if (this.#reads.isBusy) {
        const progress = this.#reads.continue();
        cost += this.#reads.cost;
        if (progress === 'blocked') return 'blocked';
        if (progress === 'broken')
          return this.#violation('a read failed in the middle of its reply');
        continue;
      }
      const spent = this.#isReadNext ? undefined : this.#take(input);
      if (typeof spent === 'string') return spent;
      if (spent !== undefined) {
        cost += spent;
        this.#costSinceRead += this.#reads.hasWaiting ? REQUEST_COST + spent : 0;
      } else if (this.#reads.hasWaiting) {
        this.#costSinceRead = 0;
        this.#reads.resume();
        cost += this.#reads.cost;
      } else {
        return this.#rest();
      }
    }
  }

  /** Whether a read that waits has waited long enough. */
  get #isReadNext(): boolean {
    return this.#reads.hasWaiting && this.#costSinceRead >= SHARE_BYTES;
  }

  /**
   * Handles what is next in the input: a request, or some payload.
   * @returns what that cost; undefined if there is nothing to handle, or it has to wait
   */
  #take(input: Uint8Array): number | TransmissionResult | undefined {
    if (this.#incoming !== undefined) {
      const incoming = this.#incoming;
      const before = incoming.remaining;
      // Where it is not complete, there is no more of it now.
      return this.#receive(incoming, input) ? before - incoming.remaining : undefined;
    }
    const at = this.position;
    const mustFinish = this.#isLeaving || this.#tasks.length >= MAX_TASKS || this.#reads.isFull;
    if (mustFinish || input.length - at < this.#headerBytes) return undefined;
    if (readU32(input, at) !== this.#magic) {
      return this.#violation('a request does not begin with NBD_REQUEST_MAGIC');
    }
    const request = this.#request;
    request.load(input, at, this.#style);
    this.#counter?.arrived(request);
    this.position = at + this.#headerBytes;
    const problem = this.#payloadViolation(request);
    if (problem !== undefined) return this.#violation(problem);
    if (request.type === Command.NBD_CMD_READ) {
      this.#read(request, input.length - at);
      return this.#reads.cost;
    }
    if (request.type === Command.NBD_CMD_DISC) {
      this.#isLeaving = true;
      return 0;
    }
    return this.#other(request);
  }

  /** Works on what takes long; the result when there is nothing else to do. */
  #rest(): TransmissionResult {
    if (this.#tasks.length === 0) return this.#isLeaving ? 'disconnect' : 'wait';
    return this.#endTurn();
  }

  #endTurn(): TransmissionResult {
    const task = this.#tasks.shift();
    if (task !== undefined) this.#step(task);
    return 'yield';
  }

  #step(task: RangeTask): void {
    const { request } = task;
    try {
      if (!task.step()) {
        this.#tasks.push(task);
        return;
      }
      this.#flushFor(request);
    } catch (error) {
      this.#fail(request, error);
      return;
    }
    this.#replies.done(request);
  }

  /** Answers a read, or begins to. */
  #read(request: Request, arrivedBytes: number): void {
    const allowed = this.#commonFlags | (this.#style === 'simple' ? 0 : NBD_CMD_FLAG_DF);
    const failure =
      this.#payloadProblem(request) ??
      (request.length > NBD_MAX_PAYLOAD
        ? Failures.tooLong
        : this.#problem(request, allowed, Failures.beyondEnd));
    if (failure === undefined) {
      this.#reads.start(request, Math.floor(arrivedBytes / this.#headerBytes));
    } else {
      this.#reads.cost = 0;
      this.#refuse(request, failure);
    }
  }

  /** Answers any other request, or begins to; returns what that cost. */
  #other(request: Request): number {
    switch (request.type) {
      case Command.NBD_CMD_WRITE:
        this.#write(request);
        return 0;
      case Command.NBD_CMD_FLUSH:
        this.#flush(request);
        return 0;
      case Command.NBD_CMD_TRIM:
        return this.#change(request, { flags: 0, beyond: Failures.beyondEnd });
      case Command.NBD_CMD_WRITE_ZEROES: {
        const flags = NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
        return this.#change(request, { flags, beyond: Failures.noRoom });
      }
      case Command.NBD_CMD_CACHE: {
        const failure =
          this.#payloadProblem(request) ??
          this.#problem(request, this.#commonFlags, Failures.beyondEnd);
        return failure === undefined ? this.#begin(request) : this.#refuse(request, failure);
      }
      case Command.NBD_CMD_BLOCK_STATUS:
        this.#blockStatus(request);
        return 0;
      case Command.NBD_CMD_RESIZE:
        return this.#resize(request);
      default:
        return this.#refuse(request, this.#payloadProblem(request) ?? Failures.unknownCommand);
    }
  }

  /** What is wrong with the payload of a request so that what follows it cannot be found. */
  #payloadViolation({ type, flags, length }: Request): string | undefined {
    const isWrite = type === Command.NBD_CMD_WRITE;
    const isAnnounced =
      this.#style === 'extended' ? (flags & NBD_CMD_FLAG_PAYLOAD_LEN) !== 0 : isWrite;
    if (isAnnounced && length > NBD_MAX_PAYLOAD) return `a request announces ${length} bytes`;
    if (isWrite && !isAnnounced) return 'an extended write does not announce its payload';
    return undefined;
  }

  #write(request: Request): void {
    const isExtended = this.#style === 'extended';
    const allowed = this.#commonFlags | (isExtended ? NBD_CMD_FLAG_PAYLOAD_LEN : 0);
    const failure = this.#isWritable
      ? this.#problem(request, allowed, Failures.noRoom)
      : Failures.readOnly;
    this.#expect(request, failure);
  }

  /** Takes the payload of a request, of which some, or none, may have arrived. */
  #expect(request: Request, failure?: Failure): void {
    const { pool, onError } = this.#context;
    const context = { device: this.#device, pool, onError };
    this.#incoming = new IncomingWrite(request, context, failure);
  }

  /** Takes payload from the input; false if more of it is to come. */
  #receive(incoming: IncomingWrite | IncomingFilter, input: Uint8Array): boolean {
    this.position += incoming.take(input.subarray(this.position));
    const { receive } = this.#context;
    while (receive !== undefined && incoming.remaining > 0 && this.position === input.length) {
      if (incoming.takeFrom(receive) === 0) break;
    }
    if (incoming.remaining > 0) return false;
    this.#incoming = undefined;
    const { request, failure } = incoming;
    if (failure !== undefined) {
      this.#replies.error(request, failure);
      return true;
    }
    if (incoming instanceof IncomingFilter) {
      const contexts = incoming.select();
      if (contexts === undefined) this.#replies.error(request, incoming.failure!);
      else this.#answerBlockStatus(request, contexts);
      return true;
    }
    try {
      this.#flushFor(request);
    } catch (error) {
      this.#fail(request, error);
      return true;
    }
    this.#replies.done(request);
    return true;
  }

  /** Makes what a request wrote durable, if it asks for that. */
  #flushFor({ flags, type }: Request): void {
    if ((flags & NBD_CMD_FLAG_FUA) === 0 || type === Command.NBD_CMD_CACHE) return;
    this.#device.flush();
  }

  #flush(request: Request): void {
    const { offset, length, flags } = request;
    let failure = this.#payloadProblem(request);
    if ((flags & ~this.#commonFlags) !== 0) failure ??= Failures.badFlags;
    if (offset !== 0 || length !== 0) failure ??= Failures.badFlush;
    if (failure !== undefined) {
      this.#refuse(request, failure);
      return;
    }
    try {
      this.#device.flush();
    } catch (error) {
      this.#fail(request, error);
      return;
    }
    this.#replies.done(request);
  }

  /** Trims or zeroes, or begins to. */
  #change(request: Request, { flags, beyond }: { flags: number; beyond: Failure }): number {
    let failure = this.#payloadProblem(request);
    if (!this.#isWritable) failure ??= Failures.readOnly;
    failure ??= this.#problem(request, this.#commonFlags | flags, beyond);
    const mustBeFast = (request.flags & NBD_CMD_FLAG_FAST_ZERO) !== 0;
    if (mustBeFast && this.#device.zeroesFast !== true) failure ??= Failures.notFast;
    return failure === undefined ? this.#begin(request) : this.#refuse(request, failure);
  }

  /** Does what can be done in one step at once; returns what that cost. */
  #begin(request: Request): number {
    const task = new RangeTask(request, this.#device);
    if (task.isLong) this.#tasks.push(task);
    else this.#step(task);
    return task.stepCost;
  }

  #blockStatus(request: Request): void {
    const { contexts = [] } = this.#context;
    if (this.#payloadProblem(request) === undefined) this.#answerBlockStatus(request, contexts);
    else this.#incoming = new IncomingFilter(request, contexts);
  }

  #answerBlockStatus(request: Request, contexts: readonly MetaContext[]): void {
    const isFiltered = this.#payloadProblem(request) !== undefined;
    const allowed =
      this.#commonFlags | NBD_CMD_FLAG_REQ_ONE | (isFiltered ? NBD_CMD_FLAG_PAYLOAD_LEN : 0);
    let failure = this.#problem(request, allowed, Failures.beyondEnd);
    if (request.length === 0) failure ??= Failures.nothing;
    if (failure !== undefined) {
      this.#replies.error(request, failure);
      return;
    }
    const { onError } = this.#context;
    const device = this.#device;
    answerBlockStatus(request, { device, replies: this.#replies, contexts, onError });
  }

  #resize(request: Request): number {
    const { resize } = this.#context;
    const { offset, length, flags } = request;
    let failure = this.#payloadProblem(request);
    if (resize === undefined || !this.#isWritable) failure ??= Failures.unknownCommand;
    if ((flags & ~this.#commonFlags) !== 0) failure ??= Failures.badFlags;
    if (length !== 0 || offset === 0 || offset % SIZE_UNIT !== 0) failure ??= Failures.badResize;
    if (offset > Number.MAX_SAFE_INTEGER) failure ??= Failures.noRoom;
    if (failure !== undefined) return this.#refuse(request, failure);
    try {
      resize?.(offset);
    } catch (error) {
      this.#context.onError(error);
      const isImpossible =
        error instanceof Qcow2Error && ['INVALID_OPTION', 'UNSUPPORTED'].includes(error.code);
      this.#replies.error(request, isImpossible ? Failures.badSize : failureOf(error));
      return 0;
    }
    this.#replies.done(request);
    return 0;
  }

  /** What is wrong with the flags or the range of a request. */
  #problem(request: Request, flags: number, beyond: Failure): Failure | undefined {
    if ((request.flags & ~flags) !== 0) return Failures.badFlags;
    // Asked for each time: another client may have changed it.
    return request.offset + request.length > this.#device.size ? beyond : undefined;
  }

  /** The failure of a request that has a payload though its command takes none. */
  #payloadProblem({ flags }: Request): Failure | undefined {
    const hasPayload = this.#style === 'extended' && (flags & NBD_CMD_FLAG_PAYLOAD_LEN) !== 0;
    return hasPayload ? Failures.badPayload : undefined;
  }

  #refuse(request: Request, failure: Failure): number {
    if (failure === Failures.badPayload) this.#expect(request, failure);
    else this.#replies.error(request, failure);
    return 0;
  }

  #fail(request: Request, error: unknown): void {
    this.#context.onError(error);
    this.#replies.error(request, failureOf(error));
  }

  #violation(problem: string): TransmissionResult {
    this.problem = problem;
    return 'violation';
  }
}
