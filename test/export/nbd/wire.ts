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

export const OPT = { EXPORT_NAME: 1, ABORT: 2, LIST: 3, STARTTLS: 5, INFO: 6, GO: 7 } as const;
export const CMD = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
} as const;
export const REP = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  UNSUP: 0x80000001,
  INVALID: 0x80000003,
  UNKNOWN: 0x80000006,
  TOO_BIG: 0x80000009,
} as const;
export const EPERM = 1;
export const EIO = 5;
export const EINVAL = 22;

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

/** Bytes that differ at every offset that a test could mix up. */
export function pattern(length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let at = 0; at + 4 <= length; at += 4) bytes.writeUInt32LE((at * 2654435761) >>> 0, at);
  return bytes;
}
