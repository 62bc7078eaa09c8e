/**
 * The kernel's side of a FUSE connection: a descriptor of `/dev/fuse`, fuse(4).
 *
 * A thread that sleeps until the next request has to be woken for it, which on an otherwise idle
 * machine takes longer than to answer it. So for a moment after each request the descriptor is
 * asked again and again, giving way to whoever else wants the processor, before the thread goes to
 * sleep: that more than doubles the number of small reads one after the other (bench fuse-rand).
 * It takes system calls that Node has no function for; without koffi every read just blocks.
 */

import { readSync, writeSync } from 'node:fs';
import { errnoName, loadLibc } from '../../host/libc.ts';
import type { Libc } from '../../host/libc.ts';
import { Errno } from './errno.ts';
import { TIMED_OUT } from './session.ts';
import type { RequestChannel } from './session.ts';

/** How long the descriptor is asked again and again; longer gained little. */
const SPIN_MS = 0.05;

const F_SETFL = 4;
const O_RDWR = 2;
const O_NONBLOCK = 0o4000;
const POLLIN = 1;
/** A timeout of poll(2). */
const FOREVER = -1;

/** How a channel goes about waiting, where it can wait as it likes. */
export interface ChannelOptions {
  /**
   * Called when requests have come one after the other, with no time to wait in between, for at least
   * a millisecond: another thread could have answered some of them.
   * @param ms since the first of them
   */
  onBacklog?: (ms: number) => void;
  /**
   * Waits for more to do when there are no requests (default: until there is one).
   * @param count requests since the last time
   */
  sleep?: (count: number) => void;
}

/** What counts as a backlog, in milliseconds. */
const BACKLOG_MS = 1;

/** Returns bytes, 0 at the end, {@link TIMED_OUT}. */
type Receive = (buffer: Uint8Array, timeoutMs: number) => number;

/** Reads requests from a descriptor and writes replies to it. */
export class DeviceChannel implements RequestChannel {
  readonly #fd: number;
  readonly #receive: Receive;

  /** @param fd stays the caller's to close */
  constructor(fd: number, options: ChannelOptions = {}) {
    this.#fd = fd;
    const libc = process.platform === 'linux' ? loadLibc() : undefined;
    const spinning = libc && spinningReceive(fd, libc, options);
    this.#receive = spinning ?? ((buffer) => blockingReceive(fd, buffer));
  }

  /**
   * Waits for a request. Returns 0 once the filesystem is unmounted or aborted. Without koffi it
   * waits for as long as it takes.
   */
  receive(buffer: Uint8Array, timeoutMs = FOREVER): number {
    return this.#receive(buffer, timeoutMs);
  }

  send(buffer: Uint8Array, length: number): void {
    try {
      writeSync(this.#fd, buffer, 0, length);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      // Whoever asked has given up, or the connection is gone: the next receive will tell.
      if (code === 'ENOENT' || code === 'ENODEV' || code === 'ECONNABORTED') return;
      // The kernel took this reply for malformed. Without any, the one who asked would wait for ever.
      const header = new Int32Array(buffer.buffer, buffer.byteOffset, 4);
      if (header[1] !== 0) throw error;
      header[0] = 16;
      header[1] = -Errno.EIO;
      this.send(buffer, 16);
    }
  }
}

function blockingReceive(fd: number, buffer: Uint8Array): number {
  for (;;) {
    try {
      return readSync(fd, buffer, 0, buffer.length, null);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (isEnd(code)) return 0;
      if (!isTransient(code)) throw error;
    }
  }
}

/** Undefined if the descriptor cannot be made non-blocking. */
function spinningReceive(
  fd: number,
  libc: Libc,
  { onBacklog, sleep }: ChannelOptions,
): Receive | undefined {
  const fcntl = libc.func('int fcntl(int fd, int command, int argument)');
  if (Number(fcntl(fd, F_SETFL, O_RDWR | O_NONBLOCK)) !== 0) return undefined;
  const read = libc.func('int64_t read(int fd, void *buffer, size_t length)');
  const poll = libc.func('int poll(void *descriptors, unsigned long count, int timeout)');
  const schedYield = libc.func('int sched_yield()');
  const { EAGAIN } = libc.errnos;
  // struct pollfd: int fd, short events, short revents. Not in V8's heap, where it could move.
  const descriptor = Buffer.from(new ArrayBuffer(128));
  descriptor.set(new Uint8Array(Int32Array.of(fd).buffer));
  descriptor.set(new Uint8Array(Int16Array.of(POLLIN).buffer), 4);
  let busySince = 0;
  let count = 0;
  const noteRequest = (hadToWait: boolean): void => {
    const now = performance.now();
    if (hadToWait) busySince = now;
    else if (now - busySince > BACKLOG_MS) onBacklog?.(now - busySince);
  };
  return (buffer, timeoutMs) => {
    let sleepAt = 0;
    for (;;) {
      const length = Number(read(fd, buffer, buffer.length));
      if (length >= 0) {
        count++;
        if (onBacklog !== undefined) noteRequest(sleepAt !== 0);
        return length;
      }
      const errno = libc.errno();
      if (errno !== EAGAIN) {
        const code = errnoName(libc, errno);
        if (isEnd(code)) return 0;
        if (!isTransient(code)) throw new Error(`cannot read /dev/fuse: ${code}`);
        continue;
      }
      const now = performance.now();
      if (sleepAt === 0) sleepAt = now + SPIN_MS;
      if (now < sleepAt) schedYield();
      else if (sleep !== undefined) {
        sleep(count);
        count = 0;
        return TIMED_OUT;
      } else if (Number(poll(descriptor, 1, timeoutMs)) === 0) return TIMED_OUT;
    }
  };
}

/** The filesystem was unmounted, or its connection aborted. */
function isEnd(code: string | undefined): boolean {
  return code === 'ENODEV' || code === 'ECONNABORTED';
}

/** The request was interrupted before we got it; or we were, before there was one. */
function isTransient(code: string | undefined): boolean {
  return code === 'ENOENT' || code === 'EINTR' || code === 'EAGAIN';
}
