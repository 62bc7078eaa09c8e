/** What a server asks of other threads that serve clients beside it; `worker/nbd-threads.ts` does it. */

import type { Socket } from 'node:net';
import type { ClientSet } from './clients.ts';
import type { NbdTlsOptions } from './tls.ts';

/** What the threads need from their server. */
export interface ThreadHost {
  /** The clients of the server's own thread, some of whom may be taken over. */
  readonly clients: ClientSet;
  /** Memory for the counters of the pools; the server's own has the first row. */
  readonly usage: SharedArrayBuffer;
  readonly handshakeTimeoutMs: number;
  readonly idleTimeoutMs: number | undefined;
  readonly tls: NbdTlsOptions | undefined;
  /** A line for the log about a client. */
  readonly log: (client: string, message: string, level: 'info' | 'warning') => void;
  /** A line for the log about the threads themselves. */
  readonly warn: (message: string) => void;
  /** Called when a client of another thread has gone. */
  readonly onGone: (client: string) => void;
}

/** Threads that serve clients beside the server's own. */
export interface ClientThreads {
  /** How many there may be, with the server's own. */
  readonly most: number;
  /** Clients that they have, or are about to have. */
  readonly clientCount: number;
  /** Called once, before clients come. */
  start(host: ThreadHost): void;
  /**
   * Offers a client that has just connected, and not been spoken to.
   * @returns whether it was taken; if so the socket is destroyed, and the connection is not
   */
  take(socket: Socket, name: string): boolean;
  /** Told that the server's own thread serves one more client. */
  watch(): void;
  /**
   * Hangs up on their clients as {@link ClientSet.close}, and ends the threads.
   * @returns once they have ended
   */
  close(graceMs: number): Promise<void>;
}
