/** What a client sends and gets, byte by byte: written from the specification, not from `src/`. */

/** Big-endian bytes of integers, each given with its width in bits. */
export function be(
  ...fields: readonly (readonly [bits: 8 | 16 | 32 | 64, value: number | bigint])[]
) {
  return Buffer.concat(
    fields.map(([bits, value]) => {
      const bytes = Buffer.alloc(8);
      bytes.writeBigUInt64BE(BigInt(value));
      return bytes.subarray(8 - bits / 8);
    }),
  );
}

export const OPT = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const;
export const FLAG = {
  FUA: 1,
  NO_HOLE: 2,
  DF: 4,
  REQ_ONE: 8,
  FAST_ZERO: 16,
  PAYLOAD_LEN: 32,
} as const;
/** Types of chunks. */
export const CHUNK = {
  NONE: 0,
  DATA: 1,
  HOLE: 2,
  STATUS: 5,
  STATUS_EXT: 6,
  ERROR: 0x8001,
  ERROR_OFFSET: 0x8002,
} as const;
export const CMD = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
  RESIZE: 8,
} as const;
export const REP = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  TLS_REQD: 0x80000005,
  EXT_HEADER_REQD: 0x8000000a,
  UNSUP: 0x80000001,
  INVALID: 0x80000003,
  UNKNOWN: 0x80000006,
  TOO_BIG: 0x80000009,
} as const;
export const EPERM = 1;
export const EIO = 5;
export const EINVAL = 22;
export const ENOSPC = 28;
export const EOVERFLOW = 75;
export const ENOTSUP = 95;

/** HAS_FLAGS, READ_ONLY, SEND_FLUSH, CAN_MULTI_CONN, SEND_CACHE. */
export const FLAGS = 0b101_0000_0111;
export const GREETING = Buffer.concat([Buffer.from('NBDMAGICIHAVEOPT', 'latin1'), be([16, 0b11])]);

/** The client's flags: fixed newstyle, and no zeroes unless told otherwise. */
export function clientFlags(flags = 3): Buffer {
  return be([32, flags]);
}

export function option(type: number, data: Uint8Array = Buffer.alloc(0)): Buffer {
  return Buffer.concat([
    Buffer.from('IHAVEOPT', 'latin1'),
    be([32, type], [32, data.length]),
    data,
  ]);
}

/** Data of INFO and GO. */
export function infoData(name: string, kinds: readonly number[] = []): Buffer {
  const bytes = Buffer.from(name);
  return Buffer.concat([
    be([32, bytes.length]),
    bytes,
    be([16, kinds.length], ...kinds.map((kind) => [16, kind] as const)),
  ]);
}

export function optionReply(type: number, reply: number, data: Uint8Array = Buffer.alloc(0)) {
  return Buffer.concat([
    be([64, 0x3e889045565a9n], [32, type], [32, reply], [32, data.length]),
    data,
  ]);
}

export interface RequestFields {
  type: number;
  offset?: number | bigint;
  length?: number;
  flags?: number;
  cookie?: bigint;
  magic?: number;
}

export function request({
  type,
  offset = 0,
  length = 0,
  flags = 0,
  cookie = 7n,
  magic = 0x25609513,
}: RequestFields): Buffer {
  return be([32, magic], [16, flags], [16, type], [64, cookie], [64, offset], [32, length]);
}

export function simpleReply(error: number, cookie = 7n, payload: Uint8Array = Buffer.alloc(0)) {
  return Buffer.concat([be([32, 0x67446698], [32, error], [64, cookie]), payload]);
}

/** A request with extended headers. */
export function extendedRequest({
  type,
  offset = 0,
  length = 0,
  flags = 0,
  cookie = 7n,
  magic = 0x21e41c71,
}: Omit<RequestFields, 'length'> & { length?: number | bigint }): Buffer {
  return be([32, magic], [16, flags], [16, type], [64, cookie], [64, offset], [64, length]);
}

/** Data of the options about metadata contexts. */
export function contextData(exportName: string, queries: readonly string[]): Buffer {
  const text = (value: string): Buffer =>
    Buffer.concat([be([32, Buffer.byteLength(value)]), Buffer.from(value)]);
  return Buffer.concat([text(exportName), be([32, queries.length]), ...queries.map(text)]);
}

/** One chunk of a structured or extended reply. */
export interface Chunk {
  type: number;
  isLast: boolean;
  cookie: bigint;
  payload: Buffer;
  /** In extended replies: the offset of the request. */
  requestOffset?: bigint;
}

/** Takes a stream of replies apart; simple ones have no `type`, and no payload. */
export function chunksOf(bytes: Buffer): (Chunk | { error: number; cookie: bigint })[] {
  const found: (Chunk | { error: number; cookie: bigint })[] = [];
  for (let at = 0; at < bytes.length;) {
    const magic = bytes.readUInt32BE(at);
    if (magic === 0x67446698) {
      found.push({ error: bytes.readUInt32BE(at + 4), cookie: bytes.readBigUInt64BE(at + 8) });
      at += 16;
      continue;
    }
    const isExtended = magic === 0x6e8a278c;
    if (!isExtended && magic !== 0x668e33ef) throw new Error(`no reply begins at byte ${at}`);
    const header = isExtended ? 32 : 20;
    const length = isExtended
      ? Number(bytes.readBigUInt64BE(at + 24))
      : bytes.readUInt32BE(at + 16);
    const payload = bytes.subarray(at + header, at + header + length);
    if (payload.length < length) throw new Error('the last chunk is not whole');
    found.push({
      type: bytes.readUInt16BE(at + 6),
      isLast: bytes.readUInt16BE(at + 4) === 1,
      cookie: bytes.readBigUInt64BE(at + 8),
      payload,
      ...(isExtended ? { requestOffset: bytes.readBigUInt64BE(at + 16) } : {}),
    });
    at += header + length;
  }
  return found;
}

/** What the chunks of a read say that the range holds; bytes that none speaks of stay 0xee. */
export function assemble(
  chunks: readonly Chunk[],
  { offset, length }: { offset: number; length: number },
): Buffer {
  const bytes = Buffer.alloc(length, 0xee);
  for (const { type, payload } of chunks) {
    if (type !== CHUNK.DATA && type !== CHUNK.HOLE) continue;
    const at = Number(payload.readBigUInt64BE(0)) - offset;
    if (type === CHUNK.HOLE) bytes.fill(0, at, at + payload.readUInt32BE(8));
    else payload.copy(bytes, at, 8);
  }
  return bytes;
}

/** Bytes that differ at every offset that a test could mix up. */
export function pattern(length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let at = 0; at + 4 <= length; at += 4) bytes.writeUInt32LE((at * 2654435761) >>> 0, at);
  return bytes;
}

/**
 * Takes simple replies apart that may come in any order.
 * @param lengthOf bytes of data that belong to a cookie, unless its request failed
 */
export function simpleReplies(
  bytes: Buffer,
  lengthOf: (cookie: bigint) => number,
): { cookie: bigint; error: number; data: Buffer }[] {
  const found: { cookie: bigint; error: number; data: Buffer }[] = [];
  for (let at = 0; at < bytes.length;) {
    if (bytes.readUInt32BE(at) !== 0x67446698) throw new Error(`no reply begins at byte ${at}`);
    const error = bytes.readUInt32BE(at + 4);
    const cookie = bytes.readBigUInt64BE(at + 8);
    const length = error === 0 ? lengthOf(cookie) : 0;
    const data = bytes.subarray(at + 16, at + 16 + length);
    if (data.length < length) throw new Error('the last reply is not whole');
    found.push({ cookie, error, data });
    at += 16 + length;
  }
  return found;
}
