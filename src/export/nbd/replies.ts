/**
 * Replies in the style that client and server agreed on: simple, structured or extended. They are
 * packed into the buffers of a {@link ReplyWriter}.
 *
 * A reply without data is a simple one, 16 bytes, unless headers are extended; every reply to a read
 * is structured where that was agreed on, and so is every error, since it has room for a reason.
 */

import { writeU16, writeU32, writeU64 } from '../../util/bytes.ts';
import type { Failure } from './failure.ts';
import {
  HeaderSize,
  writeExtendedHeader,
  writeSimpleReply,
  writeStructuredHeader,
} from './headers.ts';
import type { ChunkFields, HeaderStyle, Request } from './headers.ts';
import { Command, ReplyType } from './protocol.ts';
import type { ReplyWriter } from './reply-writer.ts';
import type { RequestCounter } from './request-counter.ts';

/** Bytes that follow the header of a chunk of data: its offset. */
const OFFSET_BYTES = 8;

/** The bit that all types of chunks that tell an error have. */
const ERROR_TYPES = 1 << 15;

/** A part of an export that a chunk speaks of. */
export interface ChunkRange {
  offset: number;
  length: number;
  /** Whether no more chunks of the reply follow. */
  isLast: boolean;
}

/** Writes one client's replies. */
export class Replies {
  readonly style: HeaderStyle;
  readonly writer: ReplyWriter;
  /** Bytes before the data of a read, in a simple reply or a chunk. */
  readonly dataHeaderBytes: number;
  /** Bytes of the header of a chunk. */
  readonly #chunkHeaderBytes: number;
  /** Told of every reply that is complete; who writes data by {@link writeDataHeader} tells it. */
  readonly counter: RequestCounter | undefined;

  constructor(writer: ReplyWriter, style: HeaderStyle, counter?: RequestCounter) {
    this.writer = writer;
    this.style = style;
    this.counter = counter;
    const { simpleReply, structuredReply, extendedReply } = HeaderSize;
    this.#chunkHeaderBytes = style === 'extended' ? extendedReply : structuredReply;
    this.dataHeaderBytes = style === 'simple' ? simpleReply : this.#chunkHeaderBytes + OFFSET_BYTES;
  }

  /** Says that a request succeeded; no data belongs to the reply. */
  done(request: Request): void {
    const isSimple =
      this.style === 'simple' ||
      (this.style === 'structured' && request.type !== Command.NBD_CMD_READ);
    if (isSimple) this.#simple(request, 0);
    else this.chunk({ request, type: ReplyType.NBD_REPLY_TYPE_NONE, length: 0, isLast: true });
  }

  /**
   * Says that a request failed.
   * @param offset of the byte that could not be read, where that is known
   */
  error(request: Request, failure: Failure, offset?: number): void {
    if (this.style === 'simple') {
      this.#simple(request, failure.code);
      return;
    }
    const text = Buffer.from(failure.text);
    const hasOffset = offset !== undefined;
    const payload = new Uint8Array(6 + text.length + (hasOffset ? OFFSET_BYTES : 0));
    writeU32(payload, 0, failure.code);
    writeU16(payload, 4, text.length);
    payload.set(text, 6);
    if (hasOffset) writeU64(payload, 6 + text.length, offset);
    const { NBD_REPLY_TYPE_ERROR, NBD_REPLY_TYPE_ERROR_OFFSET } = ReplyType;
    const type = hasOffset ? NBD_REPLY_TYPE_ERROR_OFFSET : NBD_REPLY_TYPE_ERROR;
    this.chunk({ request, type, length: payload.length, isLast: true }, payload);
  }

  /** Says that a part of what is read is zeroes. */
  hole(request: Request, { offset, length, isLast }: ChunkRange): void {
    const payload = new Uint8Array(OFFSET_BYTES + 4);
    writeU64(payload, 0, offset);
    writeU32(payload, OFFSET_BYTES, length);
    const type = ReplyType.NBD_REPLY_TYPE_OFFSET_HOLE;
    this.chunk({ request, type, length: payload.length, isLast }, payload);
  }

  /**
   * Writes what goes before data: {@link dataHeaderBytes} bytes at `at`.
   * @param range of the data; all of it in a simple reply
   */
  writeDataHeader(bytes: Uint8Array, at: number, request: Request, range: ChunkRange): void {
    if (this.style === 'simple') {
      writeSimpleReply(bytes, at, { error: 0, request });
      return;
    }
    const { offset, length, isLast } = range;
    const type = ReplyType.NBD_REPLY_TYPE_OFFSET_DATA;
    const header = { request, type, length: OFFSET_BYTES + length, isLast };
    this.#writeHeader(bytes, at, header);
    writeU64(bytes, at + this.#chunkHeaderBytes, offset);
  }

  /** A whole chunk, with `length` bytes of payload that are short. */
  chunk(fields: ChunkFields, payload?: Uint8Array): void {
    const { writer } = this;
    const total = this.#chunkHeaderBytes + fields.length;
    // The pool refuses only what is longer than any such chunk.
    writer.reserve(total, total);
    this.#writeHeader(writer.buffer, writer.position, fields);
    if (payload !== undefined) {
      writer.buffer.set(payload, writer.position + this.#chunkHeaderBytes);
    }
    writer.commit(total);
    const { request, type, isLast } = fields;
    if (isLast) this.counter?.finished(request, (type & ERROR_TYPES) !== 0);
  }

  #simple(request: Request, error: number): void {
    const { writer } = this;
    const length = HeaderSize.simpleReply;
    writer.reserve(length, length);
    writeSimpleReply(writer.buffer, writer.position, { error, request });
    writer.commit(length);
    this.counter?.finished(request, error !== 0);
  }

  #writeHeader(bytes: Uint8Array, at: number, fields: ChunkFields): void {
    if (this.style === 'extended') writeExtendedHeader(bytes, at, fields);
    else writeStructuredHeader(bytes, at, fields);
  }
}
