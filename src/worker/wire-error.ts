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
}

/** Takes down an error for another thread or process. */
export function toWireError(error: unknown): WireError {
  if (error instanceof Qcow2Error) {
    const { code, problem, file, structure, offset, hint } = error;
    return { code, message: problem, file, structure, offset, hint };
  }
  return { code: undefined, message: error instanceof Error ? error.message : String(error) };
}

/** The error that was taken down. */
export function fromWireError({ code, message, ...location }: WireError): Error {
  return code === undefined ? new Error(message) : new Qcow2Error(code, message, location);
}
