/** What is handed between a server and the threads that serve clients beside it. */

import type { MovedClient } from '../export/nbd/connection.ts';
import type { ImageSpec } from '../export/nbd/image-set.ts';
import type { NbdTlsOptions } from '../export/nbd/tls.ts';
import type { WireError } from './wire-error.ts';

/** What a thread is started with. */
export interface NbdThreadData {
  images: readonly ImageSpec[];
  /** What the server's own thread has open; the thread serves nothing else. */
  fingerprint: string;
  /** Memory of the cluster cache of all threads. */
  clusterCache: SharedArrayBuffer | undefined;
  /** The number of the thread there. */
  cacheOwner: number | undefined;
  /** Counters of the buffer pools, and the row that is the thread's. */
  usage: SharedArrayBuffer;
  row: number;
  handshakeTimeoutMs: number;
  idleTimeoutMs: number | undefined;
  /** Memory for what is counted of requests; the same row is the thread's. */
  stats: SharedArrayBuffer | undefined;
  tls: NbdTlsOptions | undefined;
}

/** What the server tells a thread. */
export type NbdThreadRequest =
  /** Serve a client, which is the thread's from here on. */
  | { kind: 'client'; name: string; descriptor: number; moved?: MovedClient }
  /** Hang up on all clients, as `ClientSet.close`; then end. */
  | { kind: 'close'; graceMs: number };

/** What a thread tells the server. */
export type NbdThreadMessage =
  /** It has the images open, and serves. */
  | { kind: 'ready' }
  /** It cannot; it ends. */
  | { kind: 'failed'; error: WireError }
  /** The descriptor of a client is the thread's to close. */
  | { kind: 'taken'; name: string }
  | { kind: 'gone'; name: string }
  | { kind: 'log'; name: string; message: string; level: 'info' | 'warning' };
