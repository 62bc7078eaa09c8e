/** Errors on their way to another thread or process. */

import { Qcow2Error } from '../errors.ts';
import type { ErrorCode } from '../errors.ts';

/** An error that goes to another thread or process. Survives JSON. */
export interface WireError {
  code: ErrorCode | undefined;
  /** The message, or for a {@link Qcow2Error} the problem alone. */
  message: string;
  file?: string | undefined;
  structure?: string | undefined;
  offset?: number | undefined;
  hint?: string | undefined;
  /** The host's error below it. */
  cause?: { message: string; code: string } | undefined;
}

/** Takes down an error for another thread or process. */
export function toWireError(error: unknown): WireError {
  if (error instanceof Qcow2Error) {
    const { code, problem, file, structure, offset, hint } = error;
    const cause = hostCause(error.cause);
    return { code, message: problem, file, structure, offset, hint, cause };
  }
  return { code: undefined, message: error instanceof Error ? error.message : String(error) };
}

/** The error that was taken down. */
export function fromWireError({ code, message, cause, ...location }: WireError): Error {
  if (code === undefined) return new Error(message);
  const error = cause && Object.assign(new Error(cause.message), { code: cause.code });
  return new Qcow2Error(code, message, { ...location, cause: error });
}

/** What programs look at of the error of a system call. */
function hostCause(cause: unknown): WireError['cause'] {
  if (!(cause instanceof Error)) return undefined;
  const { message, code } = cause as NodeJS.ErrnoException;
  return code === undefined ? undefined : { message, code };
}
