/**
 * Answering reads: at once where the reply fits a buffer, otherwise a piece at a time, copied or
 * sent by the host from its file. Where replies are structured, what is known to be zeroes is told
 * and not sent, a read that fails is answered up to the block that cannot be read, and between the
 * chunks of a long reply others have their turn.
 */

import { fstatSync } from 'node:fs';
import type { BlockDevice, Extent, HostRange } from '../../device/block-device.ts';
import type { DirectSocket } from '../../host/sendfile.ts';
import { alignDown } from '../../util/bytes.ts';
import { failureOf, Failures } from './failure.ts';
import type { Request } from './headers.ts';
import { CommandFlag } from './protocol.ts';
import type { Replies } from './replies.ts';

/** Cost of a byte that the host sends from its file, which takes no copying. */
const DIRECT_COST = 0.25;
/** Bytes of a piece of a reply that is sent in pieces. */
const PIECE_BYTES = 256 * 1024;
/** Most bytes that one call has the host send. */
const DIRECT_PIECE_BYTES = 512 * 1024;
/** Most bytes of a chunk, where a read may be answered with several. Fewer cost throughput. */
const CHUNK_BYTES = 2 * 1024 * 1024;
/** The same for a client that has asked for less meanwhile, and may do so again. */
const MIXED_CHUNK_BYTES = 512 * 1024;
/** How many chunks of long reads are that short after it has. */
const MIXED_CHUNKS = 32;
/** Long reads that may wait for each other; no more requests are looked at while there are so many. */
const MAX_WAITING = 128;
/** Shortest read whose bytes are sent from the host file; for less, copying is cheaper. */
const MIN_DIRECT_BYTES = 32 * 1024;
/** Shortest read that is looked at for zeroes that need not be sent. */
const MIN_SPARSE_BYTES = 64 * 1024;
/** Share of a host file's bytes that have space, below which it has holes worth looking for. */
const SPARSE_BELOW = 31 / 32;
/** Bytes that go through the socket's stream when the socket is full, to learn when it is not. */
const WAKING_BYTES = 4 * 1024;
/** How exactly the place is found where a read fails. */
const FAILURE_BYTES = 4096;

/** What is used of a {@link DirectSocket}. */
export type DirectOutput = Pick<
  DirectSocket,
  'isUsable' | 'isReady' | 'reaches' | 'send' | 'sendFile'
>;

/** What reads need from their connection. */
export interface ReadContext {
  readonly device: BlockDevice;
  readonly replies: Replies;
  /** The way into the client's socket beside its stream, if there is one. */
  readonly direct?: (() => DirectOutput | undefined) | undefined;
  /** Told about what went wrong; the client sees an error of the protocol. */
  readonly onError: (error: unknown) => void;
}

/** How {@link Reads.continue} went. */
export type ReadProgress =
  /** A piece was sent. */
  | 'sent'
  /** The socket takes no more now. */
  | 'blocked'
  /** A reply that has begun cannot be completed. */
  | 'broken';

/** A reply that takes more than one turn. */
interface Job {
  readonly request: Request;
  /** Whether it is made of as many chunks as there is reason to, so that it can end in an error. */
  readonly isChunked: boolean;
  /** The next byte to be sent, and how many there are. */
  offset: number;
  remaining: number;
  /** Bytes from `offset` on that are known to be data. */
  dataLength: number;
  /** What of the header of the current chunk, or of the simple reply, has not been sent. */
  header: Uint8Array;
  /** Bytes of the current chunk that have not been sent. */
  inChunk: number;
  /** Whether the host sends them from its file. */
  isDirect: boolean;
}

/** What a {@link Job} begins with, besides its request. */
type JobStyle = Pick<Job, 'isChunked' | 'isDirect' | 'dataLength'>;

/** In one chunk, or a simple reply, that is read and not sent by the host. */
const COPIED: JobStyle = { isChunked: false, isDirect: false, dataLength: 0 };

const NOTHING = new Uint8Array(0);

/**
 * Devices where a read failed in the middle of a reply, which cost the client its connection: from
 * then on they are read before the reply begins, so that it can tell the error.
 */
const failedDevices = new WeakSet<BlockDevice>();

/** One client's reads of one export. */
export class Reads {
  /** What the last {@link start} or {@link continue} cost, in bytes read. */
  cost = 0;
  readonly #context: ReadContext;
  readonly #device: BlockDevice;
  readonly #replies: Replies;
  /** By descriptor; one that has become another file's costs time at most. */
  readonly #sparseFiles = new Map<number, boolean>();
  /** The one whose chunk, or whole reply, has begun. */
  #job: Job | undefined;
  /** Those that wait for their turn, oldest first. */
  readonly #waiting: Job[] = [];
  #isOldestNext = false;
  /** Chunks of {@link MIXED_CHUNK_BYTES} that are still to come. */
  #mixedChunks = 0;

  constructor(context: ReadContext) {
    this.#context = context;
    this.#device = context.device;
    this.#replies = context.replies;
  }

  /** Whether a chunk, or a whole reply, has begun that {@link continue} is to go on with first. */
  get isBusy(): boolean {
    return this.#job !== undefined;
  }

  /** Whether long reads wait for {@link resume}. */
  get hasWaiting(): boolean {
    return this.#waiting.length > 0;
  }

  /** Whether no more reads may be started. */
  get isFull(): boolean {
    return this.#waiting.length >= MAX_WAITING;
  }

  get #chunkBytes(): number {
    return this.#mixedChunks > 0 ? MIXED_CHUNK_BYTES : CHUNK_BYTES;
  }

  /**
   * Chooses one of those that wait, for {@link continue}: in turn the oldest, and the one that has the
   * least to send. So reads of one length are answered in their order, a shorter one does not wait
   * for a longer one, and none waits for ever.
   */
  resume(): void {
    this.#isOldestNext = !this.#isOldestNext;
    if (this.#mixedChunks > 0) this.#mixedChunks--;
    let index = 0;
    if (!this.#isOldestNext) {
      for (const [other, { remaining }] of this.#waiting.entries()) {
        if (remaining < this.#waiting[index]!.remaining) index = other;
      }
    }
    const job = this.#waiting.splice(index, 1)[0]!;
    this.cost = 0;
    // The file may have been cut short since it was looked at.
    const isDirect = job.isDirect && this.#directRange(job.offset, job.remaining) !== undefined;
    if (job.isChunked || isDirect) this.#begin(job);
    else this.#answerWhole(job.request, 1);
  }

  /** Forgets those that wait. */
  close(): void {
    this.#waiting.length = 0;
  }

  /**
   * Answers a read that was found valid, or begins to.
   * @param pending how many such requests may have arrived, this one among them
   */
  start(request: Request, pending: number): void {
    const { offset, length } = request;
    this.cost = 0;
    if (length === 0) {
      this.#replies.done(request);
      return;
    }
    if (this.hasWaiting && length <= MIXED_CHUNK_BYTES) this.#mixedChunks = MIXED_CHUNKS;
    const isSimple = this.#replies.style === 'simple';
    const isWhole = isSimple || (request.flags & CommandFlag.NBD_CMD_FLAG_DF) !== 0;
    const range = length < MIN_DIRECT_BYTES ? undefined : this.#directRange(offset, length);
    const mayBeSparse = !isWhole && length >= MIN_SPARSE_BYTES;
    // What is in one piece has no zeroes that an image knows of, but a host file may have holes.
    if (range !== undefined && !(mayBeSparse && this.#isSparse(range.descriptor))) {
      const isChunked = !isWhole && length > this.#chunkBytes;
      this.#startJob(request, { isChunked, isDirect: true, dataLength: length });
      return;
    }
    if (mayBeSparse) {
      this.#startJob(request, { isChunked: true, isDirect: false, dataLength: 0 });
      return;
    }
    if (length > this.#chunkBytes) this.#startJob(request, COPIED);
    else this.#answerWhole(request, pending);
  }

  /** Answers a read in one piece, as far as there is memory for that. */
  #answerWhole(request: Request, pending: number): void {
    const { offset, length, flags } = request;
    const isSimple = this.#replies.style === 'simple';
    const { writer, dataHeaderBytes } = this.#replies;
    const total = dataHeaderBytes + length;
    if (!writer.reserve(total, total * pending)) {
      if (isSimple) this.#begin(this.#jobOf(request, COPIED));
      else this.#replies.error(request, Failures.noMemory);
      return;
    }
    this.cost = length;
    const { buffer, position } = writer;
    const payload = buffer.subarray(position + dataHeaderBytes, position + total);
    try {
      this.#device.read(payload, offset);
    } catch (error) {
      const isWhole = isSimple || (flags & CommandFlag.NBD_CMD_FLAG_DF) !== 0;
      this.#fail(request, { payload, offset, error, isWhole });
      return;
    }
    this.#replies.writeDataHeader(buffer, position, request, { offset, length, isLast: true });
    writer.commit(total);
    this.#replies.counter?.finished(request, false);
  }

  /** Sends the next piece of the reply that has begun. */
  continue(): ReadProgress {
    const job = this.#job!;
    const before = job.remaining;
    const costOfByte = job.isDirect ? DIRECT_COST : 1;
    const progress = this.#continue(job);
    this.cost = (before - job.remaining) * costOfByte;
    if (job.remaining > 0 && job.inChunk > 0) return progress;
    this.#job = undefined;
    if (job.remaining > 0) this.#waiting.push(job);
    else this.#replies.counter?.finished(job.request, progress === 'broken');
    return progress;
  }

  #continue(job: Job): ReadProgress {
    if (job.inChunk === 0) return this.#nextChunk(job);
    let length = Math.min(job.inChunk, PIECE_BYTES);
    if (job.isDirect) {
      this.#replies.writer.flush();
      if (this.#context.direct?.()?.isReady === false) return 'blocked';
      length = this.#sendDirectly(job);
    }
    return length === 0 || this.#sendPiece(job, length) ? 'sent' : 'broken';
  }

  #startJob(request: Request, how: JobStyle): void {
    const job = this.#jobOf(request, how);
    if (request.length > this.#chunkBytes) this.#waiting.push(job);
    else this.#begin(job);
  }

  #jobOf(request: Request, how: JobStyle): Job {
    const { offset, length } = request;
    const copy = request.copy();
    return { ...how, request: copy, offset, remaining: length, header: NOTHING, inChunk: 0 };
  }

  #begin(job: Job): void {
    this.#job = job;
    if (!job.isChunked) this.#beginChunk(job, job.remaining);
  }

  /** Begins a chunk of data, or the simple reply. */
  #beginChunk(job: Job, length: number): void {
    const { request, offset, remaining } = job;
    job.header = new Uint8Array(this.#replies.dataHeaderBytes);
    const range = { offset, length, isLast: length === remaining };
    this.#replies.writeDataHeader(job.header, 0, request, range);
    job.inChunk = length;
  }

  /** Begins the next chunk of a chunked reply, and sends it whole if that is possible. */
  #nextChunk(job: Job): ReadProgress {
    const { request, offset, remaining } = job;
    if (job.dataLength === 0) {
      let run: Extent;
      try {
        run = firstExtent(this.#device, offset, remaining);
      } catch (error) {
        this.#context.onError(error);
        this.#replies.error(request, failureOf(error), offset);
        job.remaining = 0;
        return 'sent';
      }
      const { length } = run;
      if (run.zero) {
        this.#replies.hole(request, { offset, length, isLast: length === remaining });
        job.offset += length;
        job.remaining -= length;
        return 'sent';
      }
      // What is written meanwhile may make it zeroes, which can be sent all the same.
      job.dataLength = length;
    }
    const length = Math.min(job.dataLength, this.#chunkBytes);
    job.isDirect = length >= MIN_DIRECT_BYTES && this.#directRange(offset, length) !== undefined;
    if (job.isDirect) this.#beginChunk(job, length);
    else this.#sendChunk(job, Math.min(length, PIECE_BYTES));
    return 'sent';
  }

  /** Reads a piece and sends it as a chunk of its own, so that an error can follow it. */
  #sendChunk(job: Job, length: number): void {
    const { writer, dataHeaderBytes } = this.#replies;
    const { request, offset } = job;
    const total = dataHeaderBytes + length;
    // The pool always has room for a piece: only whole large replies are ever refused.
    writer.reserve(total, total);
    const { buffer, position } = writer;
    const payload = buffer.subarray(position + dataHeaderBytes, position + total);
    try {
      this.#device.read(payload, offset);
    } catch (error) {
      this.#fail(request, { payload, offset, error, isWhole: false });
      job.remaining = 0;
      return;
    }
    const range = { offset, length, isLast: length === job.remaining };
    this.#replies.writeDataHeader(buffer, position, request, range);
    writer.commit(total);
    job.offset += length;
    job.remaining -= length;
    job.dataLength -= length;
  }

  /**
   * Ends a reply in an error. Unless it has to be whole, what can be read goes before it.
   * @param payload room for the data at the place where it would be sent from
   */
  #fail(
    request: Request,
    {
      payload,
      offset,
      error,
      isWhole,
    }: { payload: Uint8Array; offset: number; error: unknown; isWhole: boolean },
  ): void {
    this.#context.onError(error);
    const failure = failureOf(error);
    if (isWhole) {
      this.#replies.error(request, failure);
      return;
    }
    const { writer, dataHeaderBytes } = this.#replies;
    const length = this.#readUntilFailure(payload, offset);
    if (length > 0) {
      const range = { offset, length, isLast: false };
      this.#replies.writeDataHeader(writer.buffer, writer.position, request, range);
      writer.commit(dataHeaderBytes + length);
    }
    this.#replies.error(request, failure, offset + length);
  }

  /** How many bytes at the start of a range can be read; they are in `target` then. */
  #readUntilFailure(target: Uint8Array, offset: number): number {
    let done = 0;
    try {
      while (done < target.length) {
        const next = alignDown(offset + done, FAILURE_BYTES) + FAILURE_BYTES - offset;
        const end = Math.min(next, target.length);
        this.#device.read(target.subarray(done, end), offset + done);
        done = end;
      }
    } catch {
      return done;
    }
    // It could be read this time, but the client is told what happened all the same.
    return Math.max(0, target.length - FAILURE_BYTES);
  }

  /** Reads the next piece of a chunk, and sends it; false if that is not possible any more. */
  #sendPiece(job: Job, length: number): boolean {
    const { writer } = this.#replies;
    const header = job.header.length;
    writer.reserve(header + length, header + length);
    const { buffer, position } = writer;
    try {
      this.#device.read(buffer.subarray(position + header, position + header + length), job.offset);
    } catch (error) {
      this.#context.onError(error);
      job.remaining = 0;
      if (header === this.#replies.dataHeaderBytes) {
        this.#replies.error(job.request, failureOf(error));
        return true;
      }
      failedDevices.add(this.#device);
      return false;
    }
    buffer.set(job.header, position);
    job.header = NOTHING;
    writer.commit(header + length);
    this.#count(job, length);
    return true;
  }

  #count(job: Job, length: number): void {
    job.offset += length;
    job.remaining -= length;
    job.dataLength -= length;
    job.inChunk -= length;
  }

  /** Where the host can send a range from; undefined if it cannot. */
  #directRange(offset: number, length: number): HostRange | undefined {
    const direct = this.#device.hostRange === undefined ? undefined : this.#context.direct?.();
    if (direct?.isUsable !== true || failedDevices.has(this.#device)) return undefined;
    try {
      const range = this.#device.hostRange?.(offset, length);
      if (range === undefined) return undefined;
      return direct.reaches(range.descriptor, range.hostOffset + length) ? range : undefined;
    } catch {
      // The ordinary way meets the same problem, and reports it.
      return undefined;
    }
  }

  /** Whether a good part of a host file is holes, so that it pays to look for them. */
  #isSparse(descriptor: number): boolean {
    let known = this.#sparseFiles.get(descriptor);
    if (known === undefined) {
      const stats = fstatSync(descriptor);
      known = stats.blocks * 512 < stats.size * SPARSE_BELOW;
      this.#sparseFiles.set(descriptor, known);
    }
    return known;
  }

  /**
   * Has the host send the next bytes of a chunk, as many as the socket takes.
   * @returns how many bytes are to be read and sent after them
   */
  #sendDirectly(job: Job): number {
    const direct = this.#context.direct?.();
    if (direct !== undefined && job.header.length > 0) {
      job.header = job.header.subarray(direct.send(job.header));
    }
    const wanted = Math.min(job.inChunk, DIRECT_PIECE_BYTES);
    // Asked for each time: while the client was waited for, the device may have been closed.
    const range = this.#device.hostRange?.(job.offset, wanted);
    let sent = 0;
    if (range !== undefined && job.header.length === 0) {
      sent = direct?.sendFile(range.descriptor, range.hostOffset, wanted) ?? 0;
    }
    this.#count(job, sent);
    if (range !== undefined && sent > 0) this.#replies.counter?.sent(range.descriptor, sent);
    if (sent === wanted) return 0;
    if (range !== undefined && direct?.isUsable === true) {
      return Math.min(job.inChunk, WAKING_BYTES);
    }
    job.isDirect = false;
    return Math.min(job.inChunk, PIECE_BYTES);
  }
}

function firstExtent(device: BlockDevice, offset: number, length: number): Extent {
  for (const extent of device.extents(offset, length)) return extent;
  throw new RangeError('a range that is not empty has an extent');
}
