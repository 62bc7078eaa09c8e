/**
 * How an error is told to the person at the terminal: one line, and no stack trace unless it is
 * asked for with `QCOW2_DEBUG=1`.
 */

import { Qcow2Error } from '../errors.ts';
import { AssertionError } from '../util/assert.ts';
import type { CommandIo } from './command.ts';

/** Writes `error` to standard error. */
export function reportError(error: unknown, io: CommandIo): void {
  if (io.reportError === undefined) io.stderr(`qcow2: ${oneLine(describeError(error))}\n`);
  else io.reportError(error);
  if (process.env.QCOW2_DEBUG === '1' && error instanceof Error) {
    for (let cause: unknown = error; cause instanceof Error; cause = cause.cause) {
      io.stderr(`${cause.stack ?? cause.message}\n`);
    }
  }
}

/** An error in words, without the name of the program. */
export function describeError(error: unknown): string {
  if (error instanceof Qcow2Error) return error.message;
  if (error instanceof Error && !isBug(error)) return error.message;
  const message =
    error instanceof AssertionError ? error.message : `internal error: ${String(error)}`;
  return `${message}; this is a bug of this program, please report it with what QCOW2_DEBUG=1 shows`;
}

/** Failed system calls carry a code; whatever else is thrown was not foreseen. */
function isBug(error: Error): boolean {
  return error instanceof AssertionError || (error as NodeJS.ErrnoException).syscall === undefined;
}

/** Names come from images and clients: control characters must not reach the terminal. */
export function oneLine(text: string): string {
  return text.replace(/\p{Cc}/gu, (character) => {
    const code = character.charCodeAt(0).toString(16).padStart(2, '0');
    return character === '\n' ? '\\n' : `\\x${code}`;
  });
}

/** As {@link oneLine}, for tables: each character that would not be seen is a `?`. */
export function printable(text: string): string {
  return text.replace(/\p{Cc}|\p{Cf}/gu, '?');
}
