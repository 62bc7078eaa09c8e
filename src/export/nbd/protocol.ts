/**
 * The NBD wire format: names and numbers, and the layouts of the messages of the handshake. Those of
 * the transmission phase are in `headers.ts`.
 *
 * Specification: `doc/proto.md` of the NetworkBlockDevice project. All integers are big-endian.
 */

import { readU16, readU32, writeU16, writeU32, writeU64 } from '../../util/bytes.ts';

/** `NBDMAGIC`, the first eight bytes that a server sends, as two 32-bit halves. */
export const NBDMAGIC = [0x4e42444d, 0x41474943] as const;
/** `IHAVEOPT`, which follows it and opens every option of the client. */
export const IHAVEOPT = [0x49484156, 0x454f5054] as const;
/** Opens every reply to an option. */
export const NBD_REP_MAGIC = [0x0003e889, 0x045565a9] as const;
/** Port that IANA reserves for NBD. */
export const NBD_DEFAULT_PORT = 10809;
/** Bytes that a string (export name, description, message) may have. */
export const NBD_MAX_STRING = 4096;
/** Bytes that one read or write may carry: what clients assume where nothing was negotiated. */
export const NBD_MAX_PAYLOAD = 32 * 1024 * 1024;

/** Handshake flags, sent by the server (16 bits). */
export const HandshakeFlag = {
  NBD_FLAG_FIXED_NEWSTYLE: 1 << 0,
  NBD_FLAG_NO_ZEROES: 1 << 1,
} as const;

/** Client flags, the answer to the handshake flags (32 bits). */
export const ClientFlag = {
  NBD_FLAG_C_FIXED_NEWSTYLE: 1 << 0,
  NBD_FLAG_C_NO_ZEROES: 1 << 1,
} as const;

/** Transmission flags: what an export can do (16 bits). */
export const TransmissionFlag = {
  NBD_FLAG_HAS_FLAGS: 1 << 0,
  NBD_FLAG_READ_ONLY: 1 << 1,
  NBD_FLAG_SEND_FLUSH: 1 << 2,
  NBD_FLAG_SEND_FUA: 1 << 3,
  NBD_FLAG_ROTATIONAL: 1 << 4,
  NBD_FLAG_SEND_TRIM: 1 << 5,
  NBD_FLAG_SEND_WRITE_ZEROES: 1 << 6,
  NBD_FLAG_SEND_DF: 1 << 7,
  NBD_FLAG_CAN_MULTI_CONN: 1 << 8,
  NBD_FLAG_SEND_RESIZE: 1 << 9,
  NBD_FLAG_SEND_CACHE: 1 << 10,
  NBD_FLAG_SEND_FAST_ZERO: 1 << 11,
  NBD_FLAG_BLOCK_STAT_PAYLOAD: 1 << 12,
} as const;

/** Options of the handshake phase. */
export const Option = {
  NBD_OPT_EXPORT_NAME: 1,
  NBD_OPT_ABORT: 2,
  NBD_OPT_LIST: 3,
  NBD_OPT_STARTTLS: 5,
  NBD_OPT_INFO: 6,
  NBD_OPT_GO: 7,
  NBD_OPT_STRUCTURED_REPLY: 8,
  NBD_OPT_LIST_META_CONTEXT: 9,
  NBD_OPT_SET_META_CONTEXT: 10,
  NBD_OPT_EXTENDED_HEADERS: 11,
} as const;

/** Types of the replies to options; errors have bit 31 set. */
export const Reply = {
  NBD_REP_ACK: 1,
  NBD_REP_SERVER: 2,
  NBD_REP_INFO: 3,
  NBD_REP_META_CONTEXT: 4,
  NBD_REP_ERR_UNSUP: 0x8000_0001,
  NBD_REP_ERR_POLICY: 0x8000_0002,
  NBD_REP_ERR_INVALID: 0x8000_0003,
  NBD_REP_ERR_TLS_REQD: 0x8000_0005,
  NBD_REP_ERR_UNKNOWN: 0x8000_0006,
  NBD_REP_ERR_SHUTDOWN: 0x8000_0007,
  NBD_REP_ERR_TOO_BIG: 0x8000_0009,
  NBD_REP_ERR_EXT_HEADER_REQD: 0x8000_000a,
} as const;

/** Kinds of information in `NBD_REP_INFO` (16 bits). */
export const Info = {
  NBD_INFO_EXPORT: 0,
  NBD_INFO_NAME: 1,
  NBD_INFO_DESCRIPTION: 2,
  NBD_INFO_BLOCK_SIZE: 3,
} as const;

/** Request types of the transmission phase (16 bits). */
export const Command = {
  NBD_CMD_READ: 0,
  NBD_CMD_WRITE: 1,
  NBD_CMD_DISC: 2,
  NBD_CMD_FLUSH: 3,
  NBD_CMD_TRIM: 4,
  NBD_CMD_CACHE: 5,
  NBD_CMD_WRITE_ZEROES: 6,
  NBD_CMD_BLOCK_STATUS: 7,
  /** Of an extension that is still an experiment. */
  NBD_CMD_RESIZE: 8,
} as const;

/** Flags of requests (16 bits). */
export const CommandFlag = {
  NBD_CMD_FLAG_FUA: 1 << 0,
  NBD_CMD_FLAG_NO_HOLE: 1 << 1,
  NBD_CMD_FLAG_DF: 1 << 2,
  NBD_CMD_FLAG_REQ_ONE: 1 << 3,
  NBD_CMD_FLAG_FAST_ZERO: 1 << 4,
  NBD_CMD_FLAG_PAYLOAD_LEN: 1 << 5,
} as const;

/** Types of the chunks of structured and extended replies (16 bits); errors have bit 15 set. */
export const ReplyType = {
  NBD_REPLY_TYPE_NONE: 0,
  NBD_REPLY_TYPE_OFFSET_DATA: 1,
  NBD_REPLY_TYPE_OFFSET_HOLE: 2,
  NBD_REPLY_TYPE_BLOCK_STATUS: 5,
  NBD_REPLY_TYPE_BLOCK_STATUS_EXT: 6,
  NBD_REPLY_TYPE_ERROR: 0x8001,
  NBD_REPLY_TYPE_ERROR_OFFSET: 0x8002,
} as const;

/** Error values of replies: numbers of the protocol, whatever the host's `errno` says. */
export const NbdError = {
  NBD_EPERM: 1,
  NBD_EIO: 5,
  NBD_ENOMEM: 12,
  NBD_EINVAL: 22,
  NBD_ENOSPC: 28,
  NBD_EOVERFLOW: 75,
  NBD_ENOTSUP: 95,
  NBD_ESHUTDOWN: 108,
} as const;

/** Bytes of the fixed part of each message. */
export const MessageSize = {
  greeting: 18,
  clientFlags: 4,
  optionHeader: 16,
  optionReplyHeader: 20,
  /** Reply to `NBD_OPT_EXPORT_NAME`, without the zeroes. */
  exportNameReply: 10,
  exportNameZeroes: 124,
} as const;

/** Whether the eight bytes at `offset` are `magic`. */
export function hasMagic(
  bytes: Uint8Array,
  offset: number,
  magic: readonly [number, number],
): boolean {
  return readU32(bytes, offset) === magic[0] && readU32(bytes, offset + 4) === magic[1];
}

function writeMagic(bytes: Uint8Array, offset: number, magic: readonly [number, number]): void {
  writeU32(bytes, offset, magic[0]);
  writeU32(bytes, offset + 4, magic[1]);
}

/** The server's first message: both magics and the handshake flags. */
export function encodeGreeting(handshakeFlags: number): Uint8Array {
  const bytes = new Uint8Array(MessageSize.greeting);
  writeMagic(bytes, 0, NBDMAGIC);
  writeMagic(bytes, 8, IHAVEOPT);
  writeU16(bytes, 16, handshakeFlags);
  return bytes;
}

/** A reply to an option; `data` may be empty. */
export function encodeOptionReply(option: number, type: number, data: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(MessageSize.optionReplyHeader + data.length);
  writeMagic(bytes, 0, NBD_REP_MAGIC);
  writeU32(bytes, 8, option);
  writeU32(bytes, 12, type);
  writeU32(bytes, 16, data.length);
  bytes.set(data, MessageSize.optionReplyHeader);
  return bytes;
}

/** Data of `NBD_REP_SERVER`: the name with its length, then text for people. */
export function encodeServerReply(name: Uint8Array, description: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(4 + name.length + description.length);
  writeU32(bytes, 0, name.length);
  bytes.set(name, 4);
  bytes.set(description, 4 + name.length);
  return bytes;
}

/** Data of `NBD_REP_INFO` with `NBD_INFO_EXPORT`. */
export function encodeInfoExport(size: number, transmissionFlags: number): Uint8Array {
  const bytes = new Uint8Array(12);
  writeU16(bytes, 0, Info.NBD_INFO_EXPORT);
  writeU64(bytes, 2, size);
  writeU16(bytes, 10, transmissionFlags);
  return bytes;
}

/** Data of `NBD_REP_INFO` with text: `NBD_INFO_NAME` or `NBD_INFO_DESCRIPTION`. */
export function encodeInfoText(kind: number, text: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(2 + text.length);
  writeU16(bytes, 0, kind);
  bytes.set(text, 2);
  return bytes;
}

/** Sizes in bytes that `NBD_INFO_BLOCK_SIZE` tells a client to keep to. */
export interface BlockSizes {
  minimum: number;
  preferred: number;
  maximum: number;
}

/** Data of `NBD_REP_INFO` with `NBD_INFO_BLOCK_SIZE`. */
export function encodeInfoBlockSize({ minimum, preferred, maximum }: BlockSizes): Uint8Array {
  const bytes = new Uint8Array(14);
  writeU16(bytes, 0, Info.NBD_INFO_BLOCK_SIZE);
  writeU32(bytes, 2, minimum);
  writeU32(bytes, 6, preferred);
  writeU32(bytes, 10, maximum);
  return bytes;
}

/** Reply to `NBD_OPT_EXPORT_NAME`, followed by 124 zeroes unless the client asked for none. */
export function encodeExportNameReply(
  size: number,
  transmissionFlags: number,
  options: { zeroes: boolean },
): Uint8Array {
  const { exportNameReply, exportNameZeroes } = MessageSize;
  const bytes = new Uint8Array(exportNameReply + (options.zeroes ? exportNameZeroes : 0));
  writeU64(bytes, 0, size);
  writeU16(bytes, 8, transmissionFlags);
  return bytes;
}

/** What `NBD_OPT_INFO` and `NBD_OPT_GO` ask for. */
export interface InfoRequest {
  /** The export's name, as the client sent it. */
  name: Uint8Array;
  /** Kinds of {@link Info} wanted; unknown ones are left out by the server. */
  kinds: number[];
}

/** Data of `NBD_OPT_INFO` or `NBD_OPT_GO`; undefined if its lengths do not add up. */
export function decodeInfoRequest(data: Uint8Array): InfoRequest | undefined {
  if (data.length < 6) return undefined;
  const nameLength = readU32(data, 0);
  if (nameLength > data.length - 6) return undefined;
  const count = readU16(data, 4 + nameLength);
  const kindsAt = 6 + nameLength;
  if (data.length !== kindsAt + 2 * count) return undefined;
  const kinds = Array.from({ length: count }, (_, index) => readU16(data, kindsAt + 2 * index));
  return { name: data.subarray(4, 4 + nameLength), kinds };
}

/** What `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT` ask for. */
export interface MetaContextRequest {
  /** The export's name, as the client sent it. */
  name: Uint8Array;
  queries: Uint8Array[];
}

/** Data of the options about metadata contexts; undefined if its lengths do not add up. */
export function decodeMetaContextRequest(data: Uint8Array): MetaContextRequest | undefined {
  if (data.length < 8) return undefined;
  const nameLength = readU32(data, 0);
  if (nameLength > data.length - 8) return undefined;
  const count = readU32(data, 4 + nameLength);
  const queries: Uint8Array[] = [];
  let at = 8 + nameLength;
  // Each query has a length of its own, so that there are no more than the data has room for.
  while (at + 4 <= data.length) {
    const end = at + 4 + readU32(data, at);
    if (end > data.length) return undefined;
    queries.push(data.subarray(at + 4, end));
    at = end;
  }
  if (at !== data.length || queries.length !== count) return undefined;
  return { name: data.subarray(4, 4 + nameLength), queries };
}

/** Data of `NBD_REP_META_CONTEXT`. */
export function encodeMetaContext(id: number, name: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(4 + name.length);
  writeU32(bytes, 0, id);
  bytes.set(name, 4);
  return bytes;
}
