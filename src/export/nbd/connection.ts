/**
 * One client: a socket, its handshake, then its requests.
 *
 * What is kept for a client is bounded, whatever it does: input that was not handled yet (reading
 * stops above a few requests), and replies that it has not read (no request is looked at while
 * there are too many). A client that reads slowly, or not at all, waits by itself. Long replies that
 * the host sends from its file hold nothing here: the kernel refers to pages that it has anyway.
 */

import type { Socket } from 'node:net';
import { DirectSocket } from '../../host/sendfile.ts';
import { copyDescriptor } from '../../host/socket-copy.ts';
import type { RequestStats } from '../../util/request-stats.ts';
import type { ExportTable } from './exports.ts';
import { Handshake } from './handshake.ts';
import type { Agreement } from './handshake.ts';
import { HeaderSize } from './headers.ts';
import type { HeaderStyle } from './headers.ts';
import { chooseContexts } from './meta-contexts.ts';
import { ReplyWriter } from './reply-writer.ts';
import type { BufferPool } from './reply-writer.ts';
import { stayAwake } from './stay-awake.ts';
import type { TlsService } from './tls.ts';
import { Transmission } from './transmission.ts';

/** Bytes of reply buffers that may be on their way to one client before its requests wait. */
const MAX_OUTSTANDING_BYTES = 1024 * 1024;
/**
 * Requests that come one at a time before the connection polls for the next. A client that has
 * several under way is served better by letting them gather: they are answered in one write.
 */
const SINGLES_BEFORE_POLLING = 64;
/** Bytes of requests that may wait before no more are read from the socket. */
const MAX_WAITING_INPUT_BYTES = 4 * 1024;

/** How long a client may take to read its last replies. */
const LINGER_MS = 30_000;

/** With TLS 1.3, the client looks at the certificate when the server is through with the handshake. */
const DISTRUST = 'client left as soon as TLS was agreed on: it may not trust the certificate';

/** What the connections of a server have in common. */
export interface ConnectionContext {
  readonly exports: ExportTable;
  readonly pool: BufferPool;
  /** For clients that want, or have to use, TLS. */
  readonly tls: TlsService | undefined;
  /** How long a client may take to choose its export. */
  readonly handshakeTimeoutMs: number;
  /** How long it may then be silent; undefined for ever. */
  readonly idleTimeoutMs?: number | undefined;
  /** Where requests are counted (default: they are not). */
  readonly stats?: RequestStats | undefined;
  /** A line for the log about this client. */
  readonly log: (message: string, level: 'info' | 'warning') => void;
  /** Called once, when the socket is closed and everything is given back. */
  readonly onClosed: (connection: Connection) => void;
}

/** A client that has chosen its export, on its way to another thread. Can be posted. */
export interface MovedClient {
  /** The connection; the taker's to close. */
  descriptor: number;
  exportName: string;
  style: HeaderStyle;
  /** Names of the metadata contexts that were agreed on. */
  contexts: string[];
  /** What has arrived and was not looked at. */
  input: Uint8Array;
}

const NO_INPUT = Buffer.alloc(0);

/** A client of the server. */
export class Connection {
  /** Encrypted after `NBD_OPT_STARTTLS`. */
  #socket: Socket;
  readonly #context: ConnectionContext;
  readonly #handshake: Handshake;
  readonly #handshakeTimer: NodeJS.Timeout | undefined;
  readonly #writer: ReplyWriter;
  #lingerTimer: NodeJS.Timeout | undefined;
  #transmission: Transmission | undefined;
  #agreement: Agreement | undefined;
  /** Who takes the client over, once nothing is under way here. */
  #taker: ((client: MovedClient) => void) | undefined;
  /** Made when the first large read comes; null if there is no such way. */
  #direct: DirectSocket | null | undefined;
  /** What has arrived; all before `#inputStart` was handled. */
  #input: Uint8Array = NO_INPUT;
  #inputStart = 0;
  /** How many requests in a row came alone. */
  #singleRequests = 0;
  #inputEnded = false;
  /** What keeps requests from being looked at, besides that there are none. */
  #waitingFor: 'client' | 'turn' | 'tls' | undefined;
  /** Buffers being sent, oldest first, and their bytes. */
  readonly #outstanding: Uint8Array[] = [];
  #outstandingBytes = 0;
  /** Whether the last bytes have been handed to the socket, or it is gone. */
  #ended = false;
  /** How long requests have been worked on here, in milliseconds. */
  busyMs = 0;

  /** @param moved what is known of a client that was another thread's until now */
  constructor(socket: Socket, context: ConnectionContext, moved?: MovedClient) {
    this.#socket = socket;
    this.#context = context;
    this.#handshake = new Handshake(context.exports, context.tls?.mode);
    this.#writer = new ReplyWriter(context.pool, (buffer, length) =>
      this.#sendReplies(buffer, length),
    );
    this.#attach(socket);
    if (moved === undefined) {
      this.#handshakeTimer = setTimeout(
        () => this.#abort('no export was chosen in time'),
        context.handshakeTimeoutMs,
      );
      this.#sendMessage(this.#handshake.greeting());
    } else {
      this.#input = moved.input;
      this.#resume(moved);
    }
  }

  #attach(socket: Socket): void {
    socket.on('data', this.#onData);
    socket.on('end', this.#onEnd);
    socket.on('error', this.#onError);
    socket.on('close', this.#onClose);
  }

  /** Lets the requests that have arrived be answered, then hangs up. */
  shutDown(): void {
    if (this.#transmission === undefined) {
      this.#end();
      return;
    }
    this.#socket.pause();
    this.#onEnd();
  }

  /** Whether another thread could go on with this client. */
  get isMovable(): boolean {
    const used = this.#agreement?.used;
    // Opening a snapshot there could fail, and the client would not hear why.
    return used?.ownsDevice === false && !this.#isGoing && !('encrypted' in this.#socket);
  }

  get #isGoing(): boolean {
    return this.#ended || this.#inputEnded || this.#taker !== undefined;
  }

  /**
   * Lets another thread go on with a client that {@link isMovable}, once what it has asked for is
   * answered. If that cannot be done, or it hangs up first, nothing happens.
   * @param take gets the client; this connection is at its end then, without `onClosed`
   */
  moveTo(take: (client: MovedClient) => void): void {
    this.#taker = take;
    if (this.#waitingFor === undefined) this.#handOver();
    this.#holdInput();
  }

  /** Hangs up at once. */
  destroy(): void {
    this.#ended = true;
    this.#socket.destroy();
  }

  readonly #onData = (chunk: Buffer): void => {
    if (this.#ended) return;
    if (this.#inputStart === this.#input.length) {
      this.#input = chunk;
    } else {
      this.#input = Buffer.concat([this.#input.subarray(this.#inputStart), chunk]);
    }
    this.#inputStart = 0;
    if (this.#waitingFor === undefined) this.#work();
    this.#holdInput();
    this.#singleRequests =
      chunk.length <= HeaderSize.extendedRequest ? this.#singleRequests + 1 : 0;
    if (this.#singleRequests > SINGLES_BEFORE_POLLING) stayAwake();
  };

  readonly #onEnd = (): void => {
    this.#inputEnded = true;
    if (this.#handshake.isSilentSinceTls) this.#context.log(DISTRUST, 'warning');
    if (this.#waitingFor === undefined) this.#work();
  };

  readonly #onError = (error: Error): void => {
    if (this.#handshake.isSilentSinceTls && !this.#inputEnded) {
      this.#context.log(DISTRUST, 'warning');
    }
    this.#context.log(`connection lost: ${error.message}`, 'info');
  };

  #work(): void {
    const start = performance.now();
    this.#handleInput();
    this.busyMs += performance.now() - start;
    if (this.#taker !== undefined) this.#handOver();
  }

  /** Handles as much of the input as may be handled now. */
  #handleInput(): void {
    this.#waitingFor = undefined;
    while (!this.#ended && this.#transmission === undefined) {
      if (this.#isFull()) {
        this.#waitingFor = 'client';
        return;
      }
      if (!this.#stepHandshake()) break;
    }
    const transmission = this.#transmission;
    if (!this.#ended && transmission !== undefined) {
      const result = transmission.run(this.#input, this.#inputStart);
      this.#inputStart = transmission.position;
      if (result === 'disconnect') this.#end();
      else if (result === 'violation') this.#abort(transmission.problem);
      else if (result === 'blocked') this.#waitingFor = 'client';
      else if (result === 'yield') this.#takeTurn();
    }
    if (this.#waitingFor !== undefined || this.#ended) return;
    if (this.#inputEnded) this.#end();
    else this.#keepRest();
  }

  /** One message of the handshake; false if there is none, or it was the last. */
  #stepHandshake(): boolean {
    const step = this.#handshake.step(this.#input.subarray(this.#inputStart));
    if (step.next === 'wait') return false;
    if (step.next === 'starttls') {
      this.#inputStart += step.consumed;
      this.#startTls(step.reply);
      return false;
    }
    if (step.reply !== undefined) this.#sendMessage(step.reply);
    if (step.next === 'close') {
      if (step.reason === '') this.#end();
      else this.#abort(step.reason);
      return false;
    }
    this.#inputStart += step.consumed;
    if (step.next === 'continue') {
      if (step.warning !== undefined) this.#context.log(step.warning, 'warning');
      return true;
    }
    clearTimeout(this.#handshakeTimer);
    this.#context.log(`uses export '${step.used.name}'`, 'info');
    this.#transmit(step);
    return false;
  }

  /** Goes on where another thread has stopped. */
  #resume({ exportName, style, contexts }: MovedClient): void {
    const used = this.#context.exports.acquire(exportName);
    if (used === undefined) {
      this.#abort(`there is no export '${exportName}' any more`);
      return;
    }
    this.#transmit({ used, style, contexts: chooseContexts(used.contexts, contexts) });
    this.#takeTurn();
  }

  #transmit(agreement: Agreement): void {
    const { used, style, contexts } = agreement;
    this.#watchForIdleness();
    this.#agreement = agreement;
    this.#transmission = new Transmission(used.device, {
      writer: this.#writer,
      pool: this.#context.pool,
      isWritable: used.isWritable,
      resize: used.resize,
      style,
      contexts,
      stats: this.#context.stats,
      isFull: () => this.#isFull(),
      direct: () => this.#directSocket(),
      receive: (target) => this.#receive(target),
      onError: (error) => this.#logError(used.name, error),
    });
  }

  /** Hands the client over if nothing is under way. */
  #handOver(): void {
    const [take, agreement, socket] = [this.#taker, this.#agreement, this.#socket];
    if (take === undefined || agreement === undefined || this.#ended || this.#inputEnded) return;
    const isWorking = this.#waitingFor !== undefined || this.#transmission?.isIdle !== true;
    if (isWorking || this.#outstanding.length > 0 || socket.writableLength > 0) return;
    const descriptor = copyDescriptor(socket);
    if (descriptor === undefined) {
      this.#taker = undefined;
      socket.resume();
      return;
    }
    socket.pause();
    for (const event of ['data', 'end', 'error', 'close']) socket.removeAllListeners(event);
    socket.on('error', () => undefined);
    const parts = [this.#input.subarray(this.#inputStart)];
    for (let part; (part = socket.read() as Uint8Array | null) !== null;) parts.push(part);
    this.#ended = true;
    this.#release();
    // The connection itself stays open: by the other descriptor.
    socket.destroy();
    const { used, style } = agreement;
    const contexts = agreement.contexts.map(({ name }) => name);
    const input = new Uint8Array(Buffer.concat(parts));
    take({ descriptor, exportName: used.name, style, contexts, input });
  }

  #watchForIdleness(): void {
    const { idleTimeoutMs } = this.#context;
    if (idleTimeoutMs === undefined) return;
    const socket = this.#socket;
    socket.setTimeout(idleTimeoutMs);
    socket.on('timeout', () => {
      // It may be waiting for something that takes long.
      if (this.#waitingFor === 'turn') socket.setTimeout(idleTimeoutMs);
      else this.#drop(`it was idle for ${idleTimeoutMs / 1000} seconds`);
    });
  }

  /** Answers in the clear for the last time, and goes on encrypted. */
  #startTls(reply: Uint8Array): void {
    const socket = this.#socket;
    // Whatever arrived with the option could have been put there by anyone.
    if (this.#inputStart < this.#input.length) {
      this.#abort('more than NBD_OPT_STARTTLS arrived at once');
      return;
    }
    this.#waitingFor = 'tls';
    socket.off('data', this.#onData);
    socket.off('end', this.#onEnd);
    socket.pause();
    socket.write(reply, () => void this.#secure(socket));
  }

  async #secure(socket: Socket): Promise<void> {
    const { tls, log } = this.#context;
    if (tls === undefined || this.#ended) return;
    try {
      const secured = await tls.upgrade(socket);
      socket.off('close', this.#onClose);
      this.#socket = secured;
      this.#attach(secured);
      if (this.#ended) secured.destroy();
      log(`uses ${secured.getProtocol() ?? 'TLS'}`, 'info');
    } catch (error) {
      this.#context.log(`client dropped: no TLS: ${messageOf(error)}`, 'warning');
      this.destroy();
      return;
    }
    this.#handshake.secured();
    this.#waitingFor = undefined;
  }

  /** Continues after the other clients had their turn. */
  #takeTurn(): void {
    this.#waitingFor = 'turn';
    setImmediate(() => {
      if (this.#ended) return;
      this.#work();
      this.#holdInput();
    });
  }

  /** Reads on from the socket only as far as the input is being handled. */
  #holdInput(): void {
    if (this.#ended || this.#inputEnded) return;
    if (this.#taker !== undefined && this.#transmission?.isReceiving === false) {
      // What arrives from here on is for the other thread.
      this.#socket.pause();
      return;
    }
    const waiting = this.#waitingFor !== undefined;
    const waitingBytes = this.#input.length - this.#inputStart;
    if (waiting && waitingBytes > MAX_WAITING_INPUT_BYTES) this.#socket.pause();
    else if (!waiting && this.#socket.isPaused()) this.#socket.resume();
  }

  /** Keeps the start of an unfinished message, but not the buffer it came in. */
  #keepRest(): void {
    const { length } = this.#input;
    if (this.#inputStart === length) {
      this.#input = NO_INPUT;
      this.#inputStart = 0;
    } else if (this.#inputStart > 0) {
      // A copy: `slice` of a Buffer would keep all of it.
      this.#input = new Uint8Array(this.#input.subarray(this.#inputStart));
      this.#inputStart = 0;
    }
  }

  #directSocket(): DirectSocket | undefined {
    if (this.#direct === undefined) this.#direct = DirectSocket.of(this.#socket) ?? null;
    return this.#direct ?? undefined;
  }

  /** Takes what has arrived behind the input, as long as the stream holds none of it. */
  #receive(target: Uint8Array): number {
    const socket = this.#socket;
    if (this.#inputEnded || socket.readableLength > 0 || socket.isPaused()) return 0;
    return this.#directSocket()?.receive(target) ?? 0;
  }

  get #maxOutstandingBytes(): number {
    return this.#context.pool.isTight ? 1 : MAX_OUTSTANDING_BYTES;
  }

  #isFull(): boolean {
    return this.#outstandingBytes >= this.#maxOutstandingBytes;
  }

  /** Sends a message of the handshake. */
  #sendMessage(message: Uint8Array): void {
    this.#outstandingBytes += message.length;
    this.#socket.write(message, () => this.#countSent(message.length));
  }

  /** Sends replies in a buffer of the pool. */
  #sendReplies(buffer: Uint8Array, length: number): void {
    // The whole buffer counts, however little of it is used.
    this.#outstanding.push(buffer);
    this.#outstandingBytes += buffer.length;
    this.#socket.write(buffer.subarray(0, length), this.#onRepliesSent);
  }

  readonly #onRepliesSent = (): void => {
    const buffer = this.#outstanding.shift();
    // None is left if the socket was closed first.
    if (buffer === undefined) return;
    this.#context.pool.give(buffer);
    this.#countSent(buffer.length);
    if (this.#taker !== undefined) this.#handOver();
  };

  #countSent(bytes: number): void {
    this.#outstandingBytes -= bytes;
    if (this.#ended || this.#waitingFor !== 'client') return;
    if (this.#outstandingBytes < this.#maxOutstandingBytes / 2) this.#takeTurn();
  }

  #logError(exportName: string, error: unknown): void {
    this.#context.log(`export '${exportName}': ${messageOf(error)}`, 'warning');
  }

  /** Hangs up because of what the client did. */
  #abort(reason: string): void {
    this.#context.log(`client dropped: ${reason}`, 'warning');
    this.#end();
  }

  /** Hangs up on a client that does not listen. */
  #drop(reason: string): void {
    this.#context.log(`client dropped: ${reason}`, 'warning');
    this.destroy();
  }

  /** Hangs up once everything has been sent. */
  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#lingerTimer = setTimeout(() => this.#socket.destroy(), LINGER_MS);
    this.#socket.destroySoon();
  }

  readonly #onClose = (): void => {
    this.#ended = true;
    this.#release();
    this.#context.onClosed(this);
  };

  /** Gives everything back. */
  #release(): void {
    clearTimeout(this.#handshakeTimer);
    clearTimeout(this.#lingerTimer);
    // Nobody reads these any more.
    for (const buffer of this.#outstanding) this.#context.pool.give(buffer);
    this.#outstanding.length = 0;
    this.#transmission?.close();
    if (this.#agreement !== undefined) this.#context.exports.release(this.#agreement.used);
    this.#agreement = undefined;
  }
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
