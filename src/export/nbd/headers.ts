/**
 * The headers of the transmission phase: requests, compact and extended, and the three kinds of
 * replies, simple, structured and extended.
 *
 * Specification: `doc/proto.md`, "Transmission", "Request message" and "Structured reply chunk
 * message". All integers are big-endian.
 */

import { readU16, readU32, TWO_32, writeU16, writeU32, writeU64 } from '../../util/bytes.ts';
import type { ReplyType } from './protocol.ts';

/** Opens every compact request. */
export const NBD_REQUEST_MAGIC = 0x25609513;
/** Opens every extended request. */
export const NBD_EXTENDED_REQUEST_MAGIC = 0x21e41c71;
/** Opens every simple reply. */
const NBD_SIMPLE_REPLY_MAGIC = 0x67446698;
/** Opens every chunk of a structured reply. */
const NBD_STRUCTURED_REPLY_MAGIC = 0x668e33ef;
/** Opens every chunk of an extended reply. */
const NBD_EXTENDED_REPLY_MAGIC = 0x6e8a278c;

/** In the flags of a chunk: it is the last one of its reply. */
const NBD_REPLY_FLAG_DONE = 1;

/** Bytes of each kind of header. */
export const HeaderSize = {
  request: 28,
  extendedRequest: 32,
  simpleReply: 16,
  structuredReply: 20,
  extendedReply: 32,
} as const;

/** What a client and the server agreed on: `extended` goes for requests too. */
export type HeaderStyle = 'simple' | 'structured' | 'extended';

/** A request, without its payload. One object is filled again and again: {@link copy} it to keep. */
export class Request {
  flags = 0;
  type = 0;
  /**
   * First byte. Above 2^53 the value is rounded; no device is that large, so a comparison with a
   * device's size comes out right all the same. The same holds for the length.
   */
  offset = 0;
  length = 0;
  /** The offset as it was sent, for extended replies. */
  offsetHigh = 0;
  offsetLow = 0;
  /** The 64 bits that the client knows the request by. */
  cookieHigh = 0;
  cookieLow = 0;
  /** When it began to be handled, and whether its end was counted: see `request-counter.ts`. */
  arrivedMs = 0;
  isCounted = false;

  /** Takes the fields of a header that starts at `at`; its magic is not looked at. */
  load(bytes: Uint8Array, at: number, style: HeaderStyle): void {
    this.flags = readU16(bytes, at + 4);
    this.type = readU16(bytes, at + 6);
    this.cookieHigh = readU32(bytes, at + 8);
    this.cookieLow = readU32(bytes, at + 12);
    this.offsetHigh = readU32(bytes, at + 16);
    this.offsetLow = readU32(bytes, at + 20);
    this.offset = this.offsetHigh * TWO_32 + this.offsetLow;
    const high = readU32(bytes, at + 24);
    this.length = style === 'extended' ? high * TWO_32 + readU32(bytes, at + 28) : high;
  }

  copy(): Request {
    return Object.assign(new Request(), this);
  }
}

/** Writes the 16 bytes of a simple reply at `at`. */
export function writeSimpleReply(
  bytes: Uint8Array,
  at: number,
  { error, request }: { error: number; request: Request },
): void {
  writeU32(bytes, at, NBD_SIMPLE_REPLY_MAGIC);
  writeU32(bytes, at + 4, error);
  writeU32(bytes, at + 8, request.cookieHigh);
  writeU32(bytes, at + 12, request.cookieLow);
}

/** The fields of a chunk's header. */
export interface ChunkFields {
  request: Request;
  type: (typeof ReplyType)[keyof typeof ReplyType];
  /** Bytes of payload that follow. */
  length: number;
  /** Whether it is the last one of the reply. */
  isLast: boolean;
}

/** Writes the 20 bytes of the header of a structured reply's chunk at `at`. */
export function writeStructuredHeader(bytes: Uint8Array, at: number, chunk: ChunkFields): void {
  const { request, type, length, isLast } = chunk;
  writeU32(bytes, at, NBD_STRUCTURED_REPLY_MAGIC);
  writeU16(bytes, at + 4, isLast ? NBD_REPLY_FLAG_DONE : 0);
  writeU16(bytes, at + 6, type);
  writeU32(bytes, at + 8, request.cookieHigh);
  writeU32(bytes, at + 12, request.cookieLow);
  writeU32(bytes, at + 16, length);
}

/** Writes the 32 bytes of the header of an extended reply's chunk at `at`. */
export function writeExtendedHeader(bytes: Uint8Array, at: number, chunk: ChunkFields): void {
  const { request, type, length, isLast } = chunk;
  writeU32(bytes, at, NBD_EXTENDED_REPLY_MAGIC);
  writeU16(bytes, at + 4, isLast ? NBD_REPLY_FLAG_DONE : 0);
  writeU16(bytes, at + 6, type);
  writeU32(bytes, at + 8, request.cookieHigh);
  writeU32(bytes, at + 12, request.cookieLow);
  writeU32(bytes, at + 16, request.offsetHigh);
  writeU32(bytes, at + 20, request.offsetLow);
  writeU64(bytes, at + 24, length);
}
