/** The clients that one thread serves, and what they share. */

import type { Socket } from 'node:net';
import type { RequestStats } from '../../util/request-stats.ts';
import { Connection } from './connection.ts';
import type { MovedClient } from './connection.ts';
import type { ExportTable } from './exports.ts';
import type { BufferPool } from './reply-writer.ts';
import type { TlsService } from './tls.ts';

/** What the clients of a thread have in common. */
export interface ClientSetContext {
  readonly exports: ExportTable;
  readonly pool: BufferPool;
  readonly tls: TlsService | undefined;
  readonly handshakeTimeoutMs: number;
  readonly idleTimeoutMs: number | undefined;
  /** Where requests are counted (default: they are not). */
  readonly stats?: RequestStats | undefined;
  /** A line for the log about a client. */
  readonly log: (client: string, message: string, level: 'info' | 'warning') => void;
  /** Called once a client has gone; not for one that was moved. */
  readonly onGone: (client: string) => void;
}

/** See the head of this file. */
export class ClientSet {
  readonly #context: ClientSetContext;
  /** Each with its name. */
  readonly #connections = new Map<Connection, string>();
  #onEmpty: (() => void) | undefined;

  constructor(context: ClientSetContext) {
    this.#context = context;
  }

  /** How many there are. */
  get size(): number {
    return this.#connections.size;
  }

  /** All of them. */
  get connections(): Iterable<Connection> {
    return this.#connections.keys();
  }

  /**
   * Serves a client from here on.
   * @param name what the log calls it
   * @param moved what is known of one that was another thread's until now
   */
  add(socket: Socket, name: string, moved?: MovedClient): void {
    const { exports, pool, tls, handshakeTimeoutMs, idleTimeoutMs, stats } = this.#context;
    const connection = new Connection(
      socket,
      {
        exports,
        pool,
        tls,
        handshakeTimeoutMs,
        idleTimeoutMs,
        stats,
        log: (message, level) => this.#context.log(name, message, level),
        onClosed: (closed) => {
          this.#remove(closed);
          this.#context.onGone(name);
        },
      },
      moved,
    );
    this.#connections.set(connection, name);
    if (this.#onEmpty !== undefined) connection.shutDown();
  }

  /**
   * Lets another thread go on with a client, if it is still here when nothing is under way.
   * @param take gets it, and its name
   */
  move(connection: Connection, take: (client: MovedClient, name: string) => void): void {
    const name = this.#connections.get(connection);
    if (name === undefined || !connection.isMovable) return;
    connection.moveTo((client) => {
      this.#remove(connection);
      take(client, name);
    });
  }

  /**
   * Hangs up on all clients: politely at first, for certain after `graceMs`. One that comes after
   * that is not served any more.
   * @returns once they are gone
   */
  async close(graceMs: number): Promise<void> {
    const empty = new Promise<void>((resolve) => (this.#onEmpty = resolve));
    if (this.size === 0) this.#onEmpty?.();
    for (const connection of this.connections) connection.shutDown();
    const timer = setTimeout(() => {
      for (const connection of this.connections) connection.destroy();
    }, graceMs);
    await empty;
    clearTimeout(timer);
  }

  #remove(connection: Connection): void {
    this.#connections.delete(connection);
    if (this.size === 0) this.#onEmpty?.();
  }
}
