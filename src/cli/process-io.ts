/**
 * Standard output and error of this process, written synchronously.
 *
 * `process.stdout` is left alone: creating it loads Node's stream and network modules, which is a
 * good part of the start-up time of a short command.
 */

import { writeSync } from 'node:fs';
import type { CommandIo } from './command.ts';

const STDOUT = 1;
const STDERR = 2;

/** How long to wait for the reader of a full non-blocking pipe, between two attempts. */
const RETRY_MS = 5;

/** The process's own output. Exits quietly when the reader of standard output has gone. */
export const processIo: CommandIo = {
  stdout: (text) => writeAll(STDOUT, text),
  stderr: (text) => writeAll(STDERR, text),
  get isTerminal() {
    return process.stdout.isTTY;
  },
};

function writeAll(fd: number, text: string): void {
  const bytes = Buffer.from(text);
  for (let written = 0; written < bytes.length;) {
    try {
      written += writeSync(fd, bytes, written);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'EAGAIN') {
        Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, RETRY_MS);
      } else if (code === 'EPIPE') {
        // As a program killed by SIGPIPE would exit: nobody is left to tell.
        process.exit(fd === STDOUT ? 141 : 1);
      } else if (fd === STDOUT) {
        throw error;
      } else {
        return;
      }
    }
  }
}
