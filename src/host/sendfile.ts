/**
 * Sending bytes of a file to a socket without a copy through this process (sendfile(2)).
 *
 * Node writes to a socket only what is in memory, so that each byte is copied twice: out of the
 * page cache, and into the socket. sendfile(2) hands the cached pages to the socket as they are. In
 * the other direction recv(2) puts bytes where they are wanted, and not into a buffer of their own.
 */

import type { Socket } from 'node:net';
import { loadLibc } from './libc.ts';
import type { Libc } from './libc.ts';

const SEEK_END = 2;
const SOL_SOCKET = 1;
const SO_SNDBUF = 7;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_MORE = 0x8000;
/**
 * Bytes that the kernel is asked to hold for a socket. It says that a Unix socket can be written to
 * when three quarters of that are free, so that more means fewer and longer turns.
 */
const SEND_BUFFER_BYTES = 1024 * 1024;
/** Where the numbers above, and 64-bit offsets, are what they are here. */
const ARCHITECTURES = new Set(['x64', 'arm64', 'riscv64', 'loong64']);

type Call = (...values: unknown[]) => unknown;

/** The system calls, declared once. */
interface Calls {
  libc: Libc;
  lseek: Call;
  recv: Call;
  send: Call;
  sendfile: Call;
  setsockopt: Call;
}

let calls: Calls | undefined;

function loadCalls(): Calls | undefined {
  if (calls !== undefined) return calls;
  if (process.platform !== 'linux' || !ARCHITECTURES.has(process.arch)) return undefined;
  const libc = loadLibc();
  if (libc === undefined) return undefined;
  calls = {
    libc,
    lseek: libc.func('int64_t lseek(int fd, int64_t offset, int whence)'),
    recv: libc.func('int64_t recv(int fd, void *bytes, size_t length, int flags)'),
    send: libc.func('int64_t send(int fd, const void *bytes, size_t length, int flags)'),
    sendfile: libc.func('int64_t sendfile64(int out, int in, void *offset, size_t length)'),
    setsockopt: libc.func(
      'int setsockopt(int fd, int level, int name, const void *value, uint32_t length)',
    ),
  };
  return calls;
}

/** Gets ready for {@link DirectSocket}, which takes some milliseconds the first time. */
export function prepareDirectSockets(): void {
  loadCalls();
}

/**
 * A way into a socket beside its stream. It never waits, and what it cannot send is for the stream
 * to send, which can wait and tells what is wrong with the socket or the file.
 */
export class DirectSocket {
  readonly #socket: Socket;
  readonly #calls: Calls;
  readonly #offset = new BigInt64Array(1);
  #isUsable = true;

  /** @returns undefined where it is not possible: no koffi, not Linux, an encrypted connection */
  static of(socket: Socket): DirectSocket | undefined {
    // What goes into an encrypted connection has to go through the stream.
    if ('encrypted' in socket || descriptorOf(socket) < 0) return undefined;
    const loaded = loadCalls();
    return loaded === undefined ? undefined : new DirectSocket(socket, loaded);
  }

  private constructor(socket: Socket, loaded: Calls) {
    this.#socket = socket;
    this.#calls = loaded;
    const size = new Int32Array([SEND_BUFFER_BYTES]);
    // A wish: the system has a limit of its own.
    loaded.setsockopt(descriptorOf(socket), SOL_SOCKET, SO_SNDBUF, size, size.byteLength);
  }

  /** Whether another attempt makes sense: false once the system has refused one for good. */
  get isUsable(): boolean {
    return this.#isUsable;
  }

  /** Whether all that was written to the stream has left, so that what is sent now is next. */
  get isReady(): boolean {
    return this.#socket.writableLength === 0 && descriptorOf(this.#socket) >= 0;
  }

  /**
   * Takes bytes that have arrived, past the stream, which must have none that it has not passed on.
   * @returns how many of them; 0 if there are none now: the stream tells when there are, or no more
   */
  receive(target: Uint8Array): number {
    return this.#attempt((fd) => this.#calls.recv(fd, target, target.length, MSG_DONTWAIT));
  }

  /** Whether a file has at least `size` bytes now, and can be sent from. */
  reaches(descriptor: number, size: number): boolean {
    return Number(this.#calls.lseek(descriptor, 0, SEEK_END)) >= size;
  }

  /**
   * Sends bytes that more is to follow.
   * @returns how many of them; 0 if the socket takes none now
   */
  send(bytes: Uint8Array): number {
    const flags = MSG_DONTWAIT | MSG_NOSIGNAL | MSG_MORE;
    return this.#attempt((fd) => this.#calls.send(fd, bytes, bytes.length, flags));
  }

  /**
   * Sends bytes of a file.
   * @param descriptor the file, open for reading
   * @param offset first byte
   * @param length bytes; at least 1
   * @returns how many of them; 0 if the socket takes none now, or the file ends before them
   */
  sendFile(descriptor: number, offset: number, length: number): number {
    this.#offset[0] = BigInt(offset);
    return this.#attempt((fd) => this.#calls.sendfile(fd, descriptor, this.#offset, length));
  }

  #attempt(call: (fd: number) => unknown): number {
    if (!this.#isUsable) return 0;
    // Asked for each time: the number of a closed socket may be another file's by now.
    const fd = descriptorOf(this.#socket);
    if (fd < 0) return 0;
    const sent = Number(call(fd));
    if (sent >= 0) return sent;
    const { libc } = this.#calls;
    const errno = libc.errno();
    this.#isUsable = errno === libc.errnos['EAGAIN'] || errno === libc.errnos['EINTR'];
    return 0;
  }
}

/** A socket's file descriptor; -1 if it has none, or none any more. */
export function descriptorOf(socket: Socket): number {
  const { _handle: handle } = socket as unknown as { _handle?: { fd?: unknown } | null };
  return typeof handle?.fd === 'number' ? handle.fd : -1;
}
