/**
 * The NBD server: listens, and keeps the connections.
 *
 * Reads are synchronous; clients of a thread take turns (see `transmission.ts`), and what each of
 * them may hold in memory is bounded (`connection.ts`). All clients come to the thread that the
 * server was started on. It serves them itself unless it was given other threads to share them with
 * (`client-threads.ts`).
 */

import type { Socket } from 'node:net';
import { prepareDirectSockets } from '../../host/sendfile.ts';
import type { RequestStats } from '../../util/request-stats.ts';
import type { ClientThreads } from './client-threads.ts';
import { ClientSet } from './clients.ts';
import { ExportTable } from './exports.ts';
import type { NbdExport } from './exports.ts';
import { listen } from './listen.ts';
import type { Listener, NbdAddress } from './listen.ts';
import { PoolUsage } from './pool-usage.ts';
import { RateLimitedLog } from './rate-limited-log.ts';
import { BufferPool } from './reply-writer.ts';
import { loadTls } from './tls.ts';
import type { NbdTlsOptions } from './tls.ts';

export type { NbdExport } from './exports.ts';
export type { NbdAddress, UnixSocketAddress } from './listen.ts';
export type { NbdTlsOptions } from './tls.ts';

/** Options of {@link serveNbd}. */
export interface NbdServerOptions {
  /** Clients at one time (default 64); more are turned away at once. */
  maxClients?: number;
  /** Milliseconds in which a client must have chosen its export (default 60,000). */
  handshakeTimeoutMs?: number;
  /** Milliseconds after which a client that asks for nothing is dropped (default: never). */
  idleTimeoutMs?: number | undefined;
  /** Called whenever the last client has gone. */
  onLastClient?: (() => void) | undefined;
  /** Encrypt connections (default: there is no TLS). */
  tls?: NbdTlsOptions | undefined;
  /**
   * Told, a line at a time, what happens: `warning` for reads that failed and clients that were
   * dropped (at most ten in ten seconds), `info` for clients that come and go.
   */
  log?: (message: string, level: 'info' | 'warning') => void;
  /** Threads to share the clients with, which serve the same exports (default: there are none). */
  threads?: ClientThreads | undefined;
  /** Where the requests that this thread serves are counted (default: they are not). */
  stats?: RequestStats | undefined;
}

/** Options of {@link NbdServer.close}. */
export interface CloseOptions {
  /** Milliseconds that clients have to read the replies they are owed (default 3000). */
  graceMs?: number;
}

/**
 * Serves devices over NBD, for reading, and for writing where an export says so.
 *
 * Speaks fixed newstyle negotiation with all its options, and simple, structured and extended
 * replies: see `README.md` beside this file. What fails is answered with an error of the protocol,
 * and the connection goes on.
 *
 * @param exports at least one; the first is also served under the empty name, as the default
 * @param address where to listen, in one place or several
 * @returns once clients can connect
 * @throws {Qcow2Error} `INVALID_OPTION` for names that NBD does not allow or that are used twice,
 * `LOCKED` if another server listens on the address, `HOST` if it cannot be listened on
 *
 * @example
 * const server = await serveNbd([{ name: 'disk', device: openImage('disk.qcow2') }], {
 *   socketPath: '/tmp/disk.sock',
 * });
 * console.log(server.uris()[0]); // nbd+unix:///?socket=/tmp/disk.sock
 * await server.close();
 */
export async function serveNbd(
  exports: readonly NbdExport[],
  address: NbdAddress | readonly NbdAddress[],
  options: NbdServerOptions = {},
): Promise<NbdServer> {
  const clients = new ServerClients(new ExportTable(exports), options);
  const addresses: readonly NbdAddress[] = 'length' in address ? address : [address];
  const listeners: Listener[] = [];
  try {
    for (const one of addresses) {
      listeners.push(
        ...(await listen(one, (socket, isOneClient) => clients.add(socket, isOneClient))),
      );
    }
  } catch (error) {
    for (const listener of listeners) listener.close();
    await clients.close(0);
    throw error;
  }
  // Now, rather than while the first client waits for its first reply.
  setImmediate(prepareDirectSockets);
  return new NbdServer(listeners, clients);
}

/** A server that is listening; made by {@link serveNbd}. */
export class NbdServer implements AsyncDisposable {
  readonly #listeners: readonly Listener[];
  readonly #clients: ServerClients;
  #closed: Promise<void> | undefined;

  constructor(listeners: readonly Listener[], clients: ServerClients) {
    this.#listeners = listeners;
    this.#clients = clients;
  }

  /**
   * NBD URIs of an export, by default of the default one; none for an inherited descriptor.
   * Every client that knows NBD URIs can open them.
   */
  uris(exportName = ''): string[] {
    const uris = this.#listeners.flatMap((listener) => listener.uriOf(exportName) ?? []);
    const scheme = this.#clients.isTlsRequired ? 'nbds' : 'nbd';
    return [...new Set(uris.map((uri) => uri.replace(/^nbd/, scheme)))];
  }

  /** Whether clients can come: not where only the connection to one was passed in. */
  get acceptsClients(): boolean {
    return this.#listeners.some(({ isOneClient }) => isOneClient !== true);
  }

  /** Clients that are connected now. */
  get clientCount(): number {
    return this.#clients.size;
  }

  /**
   * Accepts no more clients, removes the socket file, answers the requests that have arrived, and
   * hangs up. Devices that were given to {@link serveNbd} stay open. Safe to call again.
   * @returns once every client is gone
   */
  close({ graceMs = 3000 }: CloseOptions = {}): Promise<void> {
    if (this.#closed === undefined) {
      for (const listener of this.#listeners) listener.close();
      this.#closed = this.#clients.close(graceMs);
    }
    return this.#closed;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

/** The clients of a server, in whichever thread. */
class ServerClients {
  readonly #local: ClientSet;
  readonly #threads: ClientThreads | undefined;
  readonly #options: NbdServerOptions;
  readonly #maxClients: number;
  readonly #log: NonNullable<NbdServerOptions['log']>;
  readonly #warnings: RateLimitedLog;
  #clientNumber = 0;
  #isClosing = false;

  constructor(exports: ExportTable, options: NbdServerOptions) {
    const { maxClients = 64, handshakeTimeoutMs = 60_000, idleTimeoutMs, tls, threads } = options;
    this.#options = options;
    this.#threads = threads;
    this.#maxClients = maxClients;
    this.#log = options.log ?? (() => undefined);
    this.#warnings = new RateLimitedLog((message) => this.#log(message, 'warning'));
    const usage = new PoolUsage(PoolUsage.memoryFor(threads?.most ?? 1));
    const common = {
      handshakeTimeoutMs,
      idleTimeoutMs,
      log: this.#logClient,
      onGone: this.#onGone,
    };
    this.#local = new ClientSet({
      ...common,
      exports,
      pool: new BufferPool(usage),
      tls: tls && loadTls(tls),
      stats: options.stats,
    });
    threads?.start({
      ...common,
      clients: this.#local,
      usage: usage.memory,
      tls,
      warn: (message) => this.#warnings.write(message),
    });
  }

  get isTlsRequired(): boolean {
    return this.#options.tls?.mode === 'require';
  }

  get size(): number {
    return this.#local.size + (this.#threads?.clientCount ?? 0);
  }

  /** @param staysHere whether no other thread may have it */
  add(socket: Socket, staysHere: boolean): void {
    if (this.#isClosing || this.size >= this.#maxClients) {
      socket.on('error', () => undefined);
      socket.destroy();
      this.#warnings.write(`client turned away: ${this.#maxClients} are connected already`);
      return;
    }
    this.#clientNumber++;
    const name = `client ${this.#clientNumber}`;
    const { remoteAddress } = socket;
    this.#logClient(name, `connected${remoteAddress ? ` from ${remoteAddress}` : ''}`, 'info');
    if (!staysHere && this.#threads?.take(socket, name) === true) return;
    this.#local.add(socket, name);
    this.#threads?.watch();
  }

  /** Hangs up on all clients: politely at first, for certain after `graceMs`. */
  async close(graceMs: number): Promise<void> {
    this.#isClosing = true;
    await Promise.all([this.#local.close(graceMs), this.#threads?.close(graceMs)]);
    this.#warnings.flush();
  }

  readonly #logClient = (client: string, message: string, level: 'info' | 'warning'): void => {
    if (level === 'info') this.#log(`${client}: ${message}`, level);
    else this.#warnings.write(`${client}: ${message}`);
  };

  readonly #onGone = (client: string): void => {
    this.#logClient(client, 'disconnected', 'info');
    if (this.size === 0) this.#options.onLastClient?.();
  };
}
