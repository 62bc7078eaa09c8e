/** The kernel's side of a FUSE connection: a descriptor of `/dev/fuse`, fuse(4). */

import { readSync, writeSync } from 'node:fs';
import { Errno } from './errno.ts';
import type { RequestChannel } from './session.ts';

/** Reads requests from a descriptor and writes replies to it, one system call each. */
export class DeviceChannel implements RequestChannel {
  readonly #fd: number;

  /** @param fd stays the caller's to close */
  constructor(fd: number) {
    this.#fd = fd;
  }

  /** Blocks until there is a request. Returns 0 once the filesystem is unmounted or aborted. */
  receive(buffer: Uint8Array): number {
    for (;;) {
      try {
        return readSync(this.#fd, buffer, 0, buffer.length, null);
      } catch (error) {
        switch ((error as NodeJS.ErrnoException).code) {
          case 'ENODEV':
          case 'ECONNABORTED':
            return 0;
          // The request was interrupted before we got it; or we were, before there was one.
          case 'ENOENT':
          case 'EINTR':
          case 'EAGAIN':
            continue;
          default:
            throw error;
        }
      }
    }
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
