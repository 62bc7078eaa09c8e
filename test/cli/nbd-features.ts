/**
 * What an NBD server can do, found out by doing it: each feature is asked for on the wire, and counts
 * where it is offered and answered as the specification says. The names are those of the table in
 * `src/export/nbd/README.md`.
 */

import { TestClient } from '../export/nbd/client.ts';
import {
  CHUNK,
  clientFlags,
  CMD,
  contextData,
  EINVAL,
  ENOSPC,
  ENOTSUP,
  FLAG,
  infoData,
  OPT,
  option,
  REP,
  request,
} from '../export/nbd/wire.ts';
import type { RequestFields } from '../export/nbd/wire.ts';

/** Bytes of the disks that are asked about; nothing is written at their end. */
export const DISK_BYTES = 64 * 1024 * 1024;
/** Name of a bitmap of theirs, where they can have some. */
export const BITMAP = 'b';

const CONTEXTS = ['base:allocation', 'qemu:allocation-depth', `qemu:dirty-bitmap:${BITMAP}`];

/** Transmission flags, by the names of the features they tell of. */
const OFFERS = {
  NBD_CMD_FLUSH: 1 << 2,
  NBD_CMD_FLAG_FUA: 1 << 3,
  NBD_CMD_TRIM: 1 << 5,
  NBD_CMD_WRITE_ZEROES: 1 << 6,
  NBD_CMD_FLAG_DF: 1 << 7,
  NBD_FLAG_CAN_MULTI_CONN: 1 << 8,
  NBD_CMD_RESIZE: 1 << 9,
  NBD_CMD_CACHE: 1 << 10,
  NBD_CMD_FLAG_FAST_ZERO: 1 << 11,
} as const;

interface OptionReply {
  type: number;
  data: Buffer;
}

interface ReplyChunk {
  type: number;
  payload: Buffer;
}

/** A connection that reads replies one at a time. */
class Prober {
  readonly #client: TestClient;
  /** What the server said first: its handshake flags. */
  readonly handshakeFlags: number;
  /** Of the export, once it is chosen. */
  flags = 0;
  contexts: string[] = [];

  private constructor(client: TestClient, handshakeFlags: number) {
    this.#client = client;
    this.handshakeFlags = handshakeFlags;
  }

  static async connect(path: string): Promise<Prober> {
    const client = await TestClient.connect({ path });
    const greeting = await client.take(18);
    client.send(clientFlags());
    return new Prober(client, greeting.readUInt16BE(16));
  }

  /** Goes on to the transmission phase, with structured replies and all contexts there are. */
  static async open(path: string): Promise<Prober> {
    const prober = await Prober.connect(path);
    await prober.option(OPT.STRUCTURED_REPLY);
    const chosen = await prober.option(OPT.SET_META_CONTEXT, contextData('', CONTEXTS));
    prober.contexts = chosen
      .filter(({ type }) => type === REP.META_CONTEXT)
      .map(({ data }) => data.toString('utf8', 4));
    const replies = await prober.option(OPT.GO, infoData(''));
    const info = replies.find(({ type, data }) => type === REP.INFO && data.readUInt16BE(0) === 0);
    prober.flags = info?.data.readUInt16BE(10) ?? 0;
    return prober;
  }

  close(): void {
    this.#client.destroy();
  }

  /** All replies to an option; none if the server hangs up. */
  async option(type: number, data?: Uint8Array): Promise<OptionReply[]> {
    this.#client.send(option(type, data));
    const replies: OptionReply[] = [];
    for (;;) {
      const header = await this.#client.take(20);
      if (header.length < 20) return replies;
      const reply = header.readUInt32BE(12);
      replies.push({ type: reply, data: await this.#client.take(header.readUInt32BE(16)) });
      if (reply === REP.ACK || reply >= REP.UNSUP) return replies;
    }
  }

  /** Whether an option is taken. */
  async takes(type: number, data?: Uint8Array): Promise<boolean> {
    return (await this.option(type, data)).at(-1)?.type === REP.ACK;
  }

  /** The size and flags that the oldest way of choosing an export gives. */
  async exportName(): Promise<boolean> {
    this.#client.send(option(OPT.EXPORT_NAME));
    const reply = await this.#client.take(10);
    return reply.length === 10 && reply.readBigUInt64BE(0) === BigInt(DISK_BYTES);
  }

  /** The error of a request, and the chunks of its reply if it is structured. */
  async ask(
    fields: RequestFields,
    payload = Buffer.alloc(0),
  ): Promise<{ error: number; chunks: ReplyChunk[] }> {
    this.#client.send(request(fields), payload);
    const chunks: ReplyChunk[] = [];
    for (;;) {
      const start = await this.#client.take(16);
      if (start.length < 16) throw new Error('the server hung up');
      if (start.readUInt32BE(0) === 0x67446698) return { error: start.readUInt32BE(4), chunks };
      const length = (await this.#client.take(4)).readUInt32BE(0);
      const type = start.readUInt16BE(6);
      chunks.push({ type, payload: await this.#client.take(length) });
      if (start.readUInt16BE(4) !== 1) continue;
      const failed = chunks.find((chunk) => chunk.type >= CHUNK.ERROR);
      return { error: failed?.payload.readUInt32BE(0) ?? 0, chunks };
    }
  }
}

type Features = Record<string, boolean>;

/** Runs `probe` on a connection of its own. */
async function on<T>(opened: Promise<Prober>, probe: (prober: Prober) => Promise<T>): Promise<T> {
  const prober = await opened;
  try {
    return await probe(prober);
  } finally {
    prober.close();
  }
}

async function handshakeFeatures(path: string): Promise<Features> {
  const takes = (type: number, data?: Uint8Array): Promise<boolean> =>
    on(Prober.connect(path), (prober) => prober.takes(type, data));
  const kinds = await on(Prober.connect(path), async (prober) => {
    const replies = await prober.option(OPT.INFO, infoData('', [1, 2, 3]));
    const infos = replies.filter(({ type }) => type === REP.INFO);
    return infos.map(({ data }) => data.readUInt16BE(0));
  });
  return {
    NBD_FLAG_NO_ZEROES: await on(Prober.connect(path), (prober) =>
      Promise.resolve((prober.handshakeFlags & 2) !== 0),
    ),
    NBD_OPT_EXPORT_NAME: await on(Prober.connect(path), (prober) => prober.exportName()),
    NBD_OPT_ABORT: await takes(OPT.ABORT),
    NBD_OPT_LIST: await takes(OPT.LIST),
    NBD_OPT_INFO: await takes(OPT.INFO, infoData('')),
    NBD_INFO_NAME: kinds.includes(1),
    NBD_INFO_DESCRIPTION: kinds.includes(2),
    NBD_INFO_BLOCK_SIZE: kinds.includes(3),
    NBD_OPT_STRUCTURED_REPLY: await takes(OPT.STRUCTURED_REPLY),
    'NBD_OPT_LIST_META_CONTEXT before structured replies': await takes(
      OPT.LIST_META_CONTEXT,
      contextData('', []),
    ),
    NBD_OPT_EXTENDED_HEADERS: await takes(OPT.EXTENDED_HEADERS),
  };
}

const LENGTH = 64 * 1024;
const AT = { offset: 1024 * 1024, length: LENGTH };
const WRITTEN = Buffer.alloc(LENGTH, 'w');

async function commandFeatures(prober: Prober): Promise<Features> {
  const offers = (name: keyof typeof OFFERS): boolean => (prober.flags & OFFERS[name]) !== 0;
  const does = async (name: keyof typeof OFFERS, fields: RequestFields): Promise<boolean> =>
    offers(name) && (await prober.ask(fields)).error === 0;
  const write = { type: CMD.WRITE, ...AT };
  const zero = { type: CMD.WRITE_ZEROES, ...AT };
  const written = (await prober.ask(write, WRITTEN)).error === 0;
  const whole = await prober.ask({ type: CMD.READ, ...AT, flags: FLAG.DF });
  const hole = await prober.ask({ type: CMD.READ, offset: DISK_BYTES / 2, length: 2 ** 20 });
  // Asked for without being offered, it brings nbdkit 1.32 to its end.
  const fast = offers('NBD_CMD_FLAG_FAST_ZERO')
    ? await prober.ask({ ...zero, flags: FLAG.FAST_ZERO })
    : undefined;
  const durably = await prober.ask({ ...write, flags: FLAG.FUA }, WRITTEN);
  return {
    NBD_CMD_WRITE: written,
    'NBD_CMD_READ with DF':
      offers('NBD_CMD_FLAG_DF') &&
      whole.chunks.filter(({ type }) => type === CHUNK.DATA).length === 1 &&
      whole.chunks[0]!.payload.subarray(8).equals(WRITTEN),
    'holes told, not sent': hole.chunks.some(({ type }) => type === CHUNK.HOLE),
    NBD_CMD_FLUSH: await does('NBD_CMD_FLUSH', { type: CMD.FLUSH }),
    NBD_CMD_TRIM: await does('NBD_CMD_TRIM', { type: CMD.TRIM, ...AT }),
    NBD_CMD_CACHE: await does('NBD_CMD_CACHE', { type: CMD.CACHE, ...AT }),
    NBD_CMD_WRITE_ZEROES: await does('NBD_CMD_WRITE_ZEROES', zero),
    NBD_CMD_FLAG_NO_HOLE: await does('NBD_CMD_WRITE_ZEROES', { ...zero, flags: FLAG.NO_HOLE }),
    // To say that it would not be fast is as good an answer.
    NBD_CMD_FLAG_FAST_ZERO: fast !== undefined && [0, ENOTSUP].includes(fast.error),
    NBD_CMD_FLAG_FUA: offers('NBD_CMD_FLAG_FUA') && durably.error === 0,
    'several connections that write': offers('NBD_FLAG_CAN_MULTI_CONN'),
  };
}

async function statusFeatures(prober: Prober): Promise<Features> {
  const status = { type: CMD.BLOCK_STATUS, offset: 0, length: DISK_BYTES };
  const answered = async (flags: number): Promise<ReplyChunk[]> => {
    const { error, chunks } = await prober.ask({ ...status, flags });
    const found = chunks.filter(({ type }) => type === CHUNK.STATUS);
    return error === 0 && found.length === prober.contexts.length ? found : [];
  };
  const all = await answered(0);
  const one = await answered(FLAG.REQ_ONE);
  const has = (context: string): boolean => all.length > 0 && prober.contexts.includes(context);
  return {
    'base:allocation': has('base:allocation'),
    'qemu:allocation-depth': has('qemu:allocation-depth'),
    'qemu:dirty-bitmap:NAME': has(CONTEXTS[2]!),
    NBD_CMD_FLAG_REQ_ONE: one.length > 0 && one.every(({ payload }) => payload.length === 12),
  };
}

async function errorFeatures(prober: Prober): Promise<Features> {
  const beyond = { offset: DISK_BYTES, length: 512 };
  const read = await prober.ask({ type: CMD.READ, ...beyond });
  const write = await prober.ask({ type: CMD.WRITE, ...beyond }, Buffer.alloc(512));
  const unknown = await prober.ask({ type: 77 });
  const flag = await prober.ask({ type: CMD.READ, ...AT, flags: 0x8000 });
  return {
    'EINVAL for reading past the end': read.error === EINVAL,
    'ENOSPC for writing past the end': write.error === ENOSPC,
    'EINVAL for an unknown command': unknown.error === EINVAL,
    'EINVAL for an unknown flag': flag.error === EINVAL,
  };
}

/** Whether the status of one context can be asked for, where several were agreed on. */
async function canFilter(path: string): Promise<boolean> {
  return on(Prober.connect(path), async (prober) => {
    if (!(await prober.takes(OPT.EXTENDED_HEADERS))) return false;
    await prober.option(OPT.SET_META_CONTEXT, contextData('', CONTEXTS));
    const replies = await prober.option(OPT.GO, infoData(''));
    const info = replies.find(({ type, data }) => type === REP.INFO && data.readUInt16BE(0) === 0);
    return info !== undefined && (info.data.readUInt16BE(10) & (1 << 12)) !== 0;
  });
}

/**
 * All features of a server that listens on a Unix socket and whose default export can be written.
 * Its disk has {@link DISK_BYTES}, all of them zeroes, and another size in the end where that is
 * possible.
 */
export async function featuresOf(path: string): Promise<Features> {
  const found = await handshakeFeatures(path);
  const rest = await on(Prober.open(path), async (prober) => ({
    ...(await commandFeatures(prober)),
    ...(await statusFeatures(prober)),
    'status of chosen contexts (NBD_FLAG_BLOCK_STAT_PAYLOAD)': await canFilter(path),
    ...(await errorFeatures(prober)),
    'NBD_CMD_RESIZE (an experiment)':
      (prober.flags & OFFERS.NBD_CMD_RESIZE) !== 0 &&
      (await prober.ask({ type: CMD.RESIZE, offset: 2 * DISK_BYTES })).error === 0,
  }));
  return { ...found, ...rest };
}
