/**
 * The handshake phase, server's side: fixed newstyle negotiation.
 *
 * A state machine over bytes that knows nothing of sockets. Each call of `step` takes at most one
 * message from the front of what has arrived and says what to answer and how to go on, so that the
 * caller can hold a client that does not read its answers.
 *
 * Specification: `doc/proto.md`, "Fixed newstyle negotiation" and "Option types".
 */

import { readU32 } from '../../util/bytes.ts';
import type { ExportTable, OpenExport } from './exports.ts';
import type { HeaderStyle } from './headers.ts';
import { chooseContexts, listContexts } from './meta-contexts.ts';
import type { MetaContext } from './meta-contexts.ts';
import {
  ClientFlag,
  decodeInfoRequest,
  decodeMetaContextRequest,
  encodeExportNameReply,
  encodeGreeting,
  encodeInfoBlockSize,
  encodeInfoExport,
  encodeInfoText,
  encodeMetaContext,
  encodeOptionReply,
  encodeServerReply,
  HandshakeFlag,
  hasMagic,
  IHAVEOPT,
  Info,
  MessageSize,
  NBD_MAX_PAYLOAD,
  NBD_MAX_STRING,
  Option,
  Reply,
  TransmissionFlag,
} from './protocol.ts';

/** Largest option data that is looked at; longer data is skipped and answered with an error. */
const MAX_OPTION_BYTES = 16 * 1024;
/** Largest option data that is skipped; a client that announces more is dropped. */
const MAX_SKIPPED_BYTES = NBD_MAX_PAYLOAD;
/** Options in one handshake: far above what any client sends, and an end to those that loop. */
const MAX_OPTIONS = 10_000;

/** What can be done with an export, by a client that agreed on these headers and contexts. */
function transmissionFlags({ used, style, contexts }: Agreement): number {
  const { isWritable, resize } = used;
  const reading =
    TransmissionFlag.NBD_FLAG_HAS_FLAGS |
    TransmissionFlag.NBD_FLAG_SEND_FLUSH |
    // All connections share one device: each sees at once what another wrote, and flushes it.
    TransmissionFlag.NBD_FLAG_CAN_MULTI_CONN |
    TransmissionFlag.NBD_FLAG_SEND_CACHE |
    (style === 'simple' ? 0 : TransmissionFlag.NBD_FLAG_SEND_DF) |
    (style === 'extended' && contexts.length > 0
      ? TransmissionFlag.NBD_FLAG_BLOCK_STAT_PAYLOAD
      : 0);
  const writing =
    TransmissionFlag.NBD_FLAG_SEND_FUA |
    TransmissionFlag.NBD_FLAG_SEND_TRIM |
    TransmissionFlag.NBD_FLAG_SEND_WRITE_ZEROES |
    TransmissionFlag.NBD_FLAG_SEND_FAST_ZERO;
  const resizing = resize === undefined ? 0 : TransmissionFlag.NBD_FLAG_SEND_RESIZE;
  return reading | (isWritable ? writing | resizing : TransmissionFlag.NBD_FLAG_READ_ONLY);
}

/** Whether clients can, or have to, go over to TLS (`NBD_OPT_STARTTLS`). */
export type TlsMode = 'off' | 'on' | 'require';

/** What a handshake leads to. */
export interface Agreement {
  used: OpenExport;
  style: HeaderStyle;
  contexts: readonly MetaContext[];
}

/** How the handshake goes on after a step. */
export type HandshakeStep =
  /** `consumed` bytes were used up; send `reply`, log `warning`, if there is one, and go on. */
  | { next: 'continue'; consumed: number; reply?: Uint8Array; warning?: string }
  /** Not one whole message is there yet: call again with more bytes behind these. */
  | { next: 'wait' }
  /** Send `reply`, then speak the transmission phase as agreed; the caller releases `used`. */
  | ({ next: 'transmission'; consumed: number; reply: Uint8Array } & Agreement)
  /** Send `reply`, then go on in TLS; not a byte may have arrived after this option. */
  | { next: 'starttls'; consumed: number; reply: Uint8Array }
  /** Send `reply` if there is one, and close; `reason` is for the log, '' where all is well. */
  | { next: 'close'; reply?: Uint8Array; reason: string };

const EMPTY = new Uint8Array(0);
const utf8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true });

/** One client's negotiation. */
export class Handshake {
  readonly #exports: ExportTable;
  readonly #tls: TlsMode;
  #isSecure = false;
  #style: HeaderStyle = 'simple';
  /** What was chosen last, and for which export. */
  #chosen: { exportName: string; contexts: MetaContext[] } | undefined;
  /** undefined until the client has sent its flags. */
  #clientFlags: number | undefined;
  #options = 0;
  #optionsInTheClear = 0;
  /** A client may ask again and again; what it is told of TLS is logged once. */
  #hasWarned = false;
  /** What remains of an option that is too long to be looked at. */
  #skip: { option: number; remaining: number } | undefined;

  constructor(exports: ExportTable, tls: TlsMode = 'off') {
    this.#exports = exports;
    this.#tls = tls;
  }

  /** The connection is encrypted from here on; what was agreed on before it does not count. */
  secured(): void {
    this.#isSecure = true;
    this.#optionsInTheClear = this.#options;
    this.#style = 'simple';
    this.#chosen = undefined;
  }

  /** Whether the connection is encrypted, and the client has asked for nothing since it is. */
  get isSilentSinceTls(): boolean {
    return this.#isSecure && this.#options === this.#optionsInTheClear;
  }

  /** What the server says first. */
  greeting(): Uint8Array {
    return encodeGreeting(HandshakeFlag.NBD_FLAG_FIXED_NEWSTYLE | HandshakeFlag.NBD_FLAG_NO_ZEROES);
  }

  /**
   * Handles one message at the front of `input`, which holds all that was not consumed yet.
   * @returns never more than `MAX_OPTION_BYTES` + 16 bytes have to be kept for the next call
   */
  step(input: Uint8Array): HandshakeStep {
    if (this.#clientFlags === undefined) return this.#takeClientFlags(input);
    if (this.#skip !== undefined) return this.#skipData(this.#skip, input);
    const headerSize = MessageSize.optionHeader;
    if (input.length < headerSize) return { next: 'wait' };
    if (!hasMagic(input, 0, IHAVEOPT)) return close('an option does not begin with IHAVEOPT');
    const option = readU32(input, 8);
    const length = readU32(input, 12);
    if (length > MAX_SKIPPED_BYTES) return close(`option ${option} announces ${length} bytes`);
    if (length > MAX_OPTION_BYTES) {
      if (option === Option.NBD_OPT_EXPORT_NAME) return close('the export name is too long');
      this.#skip = { option, remaining: length };
      return { next: 'continue', consumed: headerSize };
    }
    const end = headerSize + length;
    if (input.length < end) return { next: 'wait' };
    this.#options++;
    if (this.#options > MAX_OPTIONS) return close(`more than ${MAX_OPTIONS} options`);
    return this.#takeOption(option, input.subarray(headerSize, end), end);
  }

  #takeClientFlags(input: Uint8Array): HandshakeStep {
    if (input.length < MessageSize.clientFlags) return { next: 'wait' };
    const flags = readU32(input, 0);
    const known = ClientFlag.NBD_FLAG_C_FIXED_NEWSTYLE | ClientFlag.NBD_FLAG_C_NO_ZEROES;
    if ((flags & ~known) !== 0) return close(`unknown client flags 0x${flags.toString(16)}`);
    this.#clientFlags = flags;
    return { next: 'continue', consumed: MessageSize.clientFlags };
  }

  #skipData(skip: { option: number; remaining: number }, input: Uint8Array): HandshakeStep {
    if (input.length === 0) return { next: 'wait' };
    const consumed = Math.min(skip.remaining, input.length);
    skip.remaining -= consumed;
    if (skip.remaining > 0) return { next: 'continue', consumed };
    this.#skip = undefined;
    return refuse(skip.option, consumed, Reply.NBD_REP_ERR_TOO_BIG, 'the option is too long');
  }

  #takeOption(option: number, data: Uint8Array, consumed: number): HandshakeStep {
    const isEarly = this.#tls === 'require' && !this.#isSecure;
    if (isEarly && option !== Option.NBD_OPT_STARTTLS && option !== Option.NBD_OPT_ABORT) {
      const problem = 'this server wants TLS first';
      if (option === Option.NBD_OPT_EXPORT_NAME) return close('no TLS, which is required');
      const refusal = refuse(option, consumed, Reply.NBD_REP_ERR_TLS_REQD, problem);
      return this.#warnOnce(refusal, 'refused: it does not use TLS, which is required');
    }
    switch (option) {
      case Option.NBD_OPT_EXPORT_NAME:
        return this.#exportName(data, consumed);
      case Option.NBD_OPT_ABORT:
        return { next: 'close', reply: encodeOptionReply(option, ACK, EMPTY), reason: '' };
      case Option.NBD_OPT_STARTTLS:
        return this.#startTls(data, consumed);
      case Option.NBD_OPT_STRUCTURED_REPLY:
      case Option.NBD_OPT_EXTENDED_HEADERS:
        return this.#headerStyle(option, data, consumed);
      case Option.NBD_OPT_LIST_META_CONTEXT:
      case Option.NBD_OPT_SET_META_CONTEXT:
        return this.#metaContexts(option, data, consumed);
      case Option.NBD_OPT_LIST:
        return this.#list(data, consumed);
      case Option.NBD_OPT_INFO:
      case Option.NBD_OPT_GO:
        return this.#infoOrGo(option, data, consumed);
      default: {
        const problem = `option ${option} is not supported`;
        return refuse(option, consumed, Reply.NBD_REP_ERR_UNSUP, problem);
      }
    }
  }

  /** The option of clients from before fixed newstyle; it can only be answered or hung up on. */
  #exportName(data: Uint8Array, consumed: number): HandshakeStep {
    if (this.#style === 'extended') return close('extended headers need NBD_OPT_GO');
    const name = decodeName(data);
    if (name === undefined) return close('the export name is not a valid string');
    let used: OpenExport | undefined;
    try {
      used = this.#exports.acquire(name);
    } catch (error) {
      return close(`export ${shown(name)} cannot be opened: ${messageOf(error)}`);
    }
    if (used === undefined) return close(`there is no export ${shown(name)}`);
    const noZeroes = ((this.#clientFlags ?? 0) & ClientFlag.NBD_FLAG_C_NO_ZEROES) !== 0;
    const agreement = this.#agreementOn(used);
    const flags = transmissionFlags(agreement);
    const reply = encodeExportNameReply(used.device.size, flags, { zeroes: !noZeroes });
    return { next: 'transmission', consumed, reply, ...agreement };
  }

  #agreementOn(used: OpenExport): Agreement {
    const isChosen = this.#chosen?.exportName === used.name;
    return { used, style: this.#style, contexts: isChosen ? this.#chosen!.contexts : [] };
  }

  #startTls(data: Uint8Array, consumed: number): HandshakeStep {
    const option = Option.NBD_OPT_STARTTLS;
    if (this.#tls === 'off') {
      const refusal = refuse(option, consumed, Reply.NBD_REP_ERR_UNSUP, 'this server has no TLS');
      return this.#warnOnce(refusal, 'asks for TLS, which this server was started without');
    }
    if (data.length !== 0 || this.#isSecure) {
      const problem = this.#isSecure ? 'TLS is in use already' : 'NBD_OPT_STARTTLS takes no data';
      return refuse(option, consumed, Reply.NBD_REP_ERR_INVALID, problem);
    }
    return { next: 'starttls', consumed, reply: encodeOptionReply(option, ACK, EMPTY) };
  }

  #warnOnce(refusal: ReturnType<typeof refuse>, warning: string): HandshakeStep {
    if (this.#hasWarned) return refusal;
    this.#hasWarned = true;
    return { ...refusal, warning };
  }

  #headerStyle(option: number, data: Uint8Array, consumed: number): HandshakeStep {
    if (data.length !== 0) {
      return refuse(option, consumed, Reply.NBD_REP_ERR_INVALID, 'this option takes no data');
    }
    if (this.#style === 'extended') {
      const isSame = option === Option.NBD_OPT_EXTENDED_HEADERS;
      const type = isSame ? Reply.NBD_REP_ERR_INVALID : Reply.NBD_REP_ERR_EXT_HEADER_REQD;
      return refuse(option, consumed, type, 'extended headers are agreed on already');
    }
    if (option === Option.NBD_OPT_EXTENDED_HEADERS) this.#style = 'extended';
    else if (this.#style === 'simple') this.#style = 'structured';
    else return refuse(option, consumed, Reply.NBD_REP_ERR_INVALID, 'they are agreed on already');
    return { next: 'continue', consumed, reply: encodeOptionReply(option, ACK, EMPTY) };
  }

  #metaContexts(option: number, data: Uint8Array, consumed: number): HandshakeStep {
    const isChoice = option === Option.NBD_OPT_SET_META_CONTEXT;
    // Whatever becomes of this choice, the one before it does not count any more.
    if (isChoice) this.#chosen = undefined;
    const request = decodeMetaContextRequest(data);
    const name = request && decodeName(request.name);
    const queries = request?.queries.map(decodeName);
    if (name === undefined || queries?.includes(undefined) !== false) {
      const problem = 'the lengths in the option do not add up, or one of its strings is not valid';
      return refuse(option, consumed, Reply.NBD_REP_ERR_INVALID, problem);
    }
    if (isChoice && this.#style === 'simple') {
      const problem = 'structured replies have to be agreed on first';
      return refuse(option, consumed, Reply.NBD_REP_ERR_INVALID, problem);
    }
    const found = this.#exports.find(name);
    if (found === undefined) {
      const problem = `there is no export ${shown(name)}`;
      return refuse(option, consumed, Reply.NBD_REP_ERR_UNKNOWN, problem);
    }
    const select = isChoice ? chooseContexts : listContexts;
    const contexts = select(found.contexts, queries as string[]);
    if (isChoice) this.#chosen = { exportName: found.name, contexts };
    const replies = contexts.map(({ id, name: contextName }) => {
      const context = encodeMetaContext(isChoice ? id : 0, Buffer.from(contextName));
      return encodeOptionReply(option, Reply.NBD_REP_META_CONTEXT, context);
    });
    replies.push(encodeOptionReply(option, ACK, EMPTY));
    return { next: 'continue', consumed, reply: Buffer.concat(replies) };
  }

  #list(data: Uint8Array, consumed: number): HandshakeStep {
    const option = Option.NBD_OPT_LIST;
    if (data.length !== 0) {
      return refuse(option, consumed, Reply.NBD_REP_ERR_INVALID, 'NBD_OPT_LIST takes no data');
    }
    const replies: Uint8Array[] = [];
    for (const { name, description = '' } of this.#exports.list()) {
      const server = encodeServerReply(Buffer.from(name), Buffer.from(description));
      replies.push(encodeOptionReply(option, Reply.NBD_REP_SERVER, server));
    }
    replies.push(encodeOptionReply(option, ACK, EMPTY));
    return { next: 'continue', consumed, reply: Buffer.concat(replies) };
  }

  #infoOrGo(option: number, data: Uint8Array, consumed: number): HandshakeStep {
    const request = decodeInfoRequest(data);
    const name = request && decodeName(request.name);
    if (request === undefined || name === undefined) {
      const problem = 'the lengths in the option do not add up, or its name is not a valid string';
      return refuse(option, consumed, Reply.NBD_REP_ERR_INVALID, problem);
    }
    let used: OpenExport | undefined;
    try {
      used = this.#exports.acquire(name);
    } catch (error) {
      // The reason names files of this host: it is for the log, not for a stranger.
      const problem = `export ${shown(name)} cannot be opened`;
      const refusal = refuse(option, consumed, Reply.NBD_REP_ERR_UNKNOWN, problem);
      return { ...refusal, warning: `${problem}: ${messageOf(error)}` };
    }
    if (used === undefined) {
      const problem = `there is no export ${shown(name)}`;
      return refuse(option, consumed, Reply.NBD_REP_ERR_UNKNOWN, problem);
    }
    const agreement = this.#agreementOn(used);
    const reply = encodeInfoReplies(option, agreement, request.kinds);
    if (option === Option.NBD_OPT_GO) {
      return { next: 'transmission', consumed, reply, ...agreement };
    }
    this.#exports.release(used);
    return { next: 'continue', consumed, reply };
  }
}

const ACK = Reply.NBD_REP_ACK;

/** The `NBD_REP_INFO` messages for an export, and the acknowledgement. */
function encodeInfoReplies(
  option: number,
  agreement: Agreement,
  kinds: readonly number[],
): Uint8Array {
  const { used } = agreement;
  const infos = [encodeInfoExport(used.device.size, transmissionFlags(agreement))];
  // Each kind once, however often the client asks.
  const wanted = new Set(kinds);
  if (wanted.has(Info.NBD_INFO_NAME)) {
    infos.push(encodeInfoText(Info.NBD_INFO_NAME, Buffer.from(used.name)));
  }
  if (wanted.has(Info.NBD_INFO_DESCRIPTION) && used.description !== '') {
    infos.push(encodeInfoText(Info.NBD_INFO_DESCRIPTION, Buffer.from(used.description)));
  }
  if (wanted.has(Info.NBD_INFO_BLOCK_SIZE)) {
    infos.push(encodeInfoBlockSize({ minimum: 1, preferred: 4096, maximum: NBD_MAX_PAYLOAD }));
  }
  const replies = infos.map((info) => encodeOptionReply(option, Reply.NBD_REP_INFO, info));
  replies.push(encodeOptionReply(option, ACK, EMPTY));
  return Buffer.concat(replies);
}

function refuse(option: number, consumed: number, type: number, problem: string) {
  const reply = encodeOptionReply(option, type, Buffer.from(problem));
  return { next: 'continue' as const, consumed, reply };
}

function close(reason: string): HandshakeStep {
  return { next: 'close', reason };
}

/** A name as a string; undefined if the protocol does not allow it. */
function decodeName(bytes: Uint8Array): string | undefined {
  if (bytes.length > NBD_MAX_STRING || bytes.includes(0)) return undefined;
  try {
    return utf8.decode(bytes);
  } catch {
    return undefined;
  }
}

/** A client's name, short and without control characters, for a message or the log. */
function shown(name: string): string {
  return JSON.stringify(name.length > 64 ? `${name.slice(0, 64)}…` : name);
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
