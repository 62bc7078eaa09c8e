/**
 * The C library, through koffi, for the few system calls that Node has no function for.
 *
 * koffi is an optional dependency: each caller either does without, or says what is missing with
 * {@link requireLibc}. It is loaded at the first use, because loading costs some milliseconds.
 */

import { Qcow2Error } from '../errors.ts';
import { loadKoffi } from './koffi.ts';

/** A C library that has been loaded. */
export interface Libc {
  /** Declares a function by its C prototype. */
  func(prototype: string): (...values: unknown[]) => unknown;
  /** The calling thread's `errno` after a failed call. */
  errno(): number;
  /** Where a buffer lies in memory, for structures that point at one. Keep the buffer referenced. */
  address(bytes: Uint8Array): bigint;
  /** Numbers of the errno names, as in `errnos.ENXIO`. */
  errnos: Record<string, number>;
}

let loaded: Libc | undefined;
let failure: unknown;

/** The C library, or undefined where koffi is not installed or the platform has no glibc or musl. */
export function loadLibc(): Libc | undefined {
  if (loaded === undefined && failure === undefined) {
    try {
      const koffi = loadKoffi();
      const library = koffi.load(process.platform === 'darwin' ? 'libSystem.dylib' : 'libc.so.6');
      loaded = {
        func: (prototype) => library.func(prototype),
        errno: () => koffi.errno(),
        address: (bytes) => koffi.address(bytes),
        errnos: koffi.os.errno,
      };
    } catch (error) {
      failure = error;
    }
  }
  return loaded;
}

/**
 * The C library, for what cannot be done without.
 *
 * @param purpose what needs it, as in `mounting as an ordinary user`
 * @throws {Qcow2Error} `MISSING_DEPENDENCY`
 */
export function requireLibc(purpose: string): Libc {
  const libc = loadLibc();
  if (libc === undefined) {
    throw new Qcow2Error('MISSING_DEPENDENCY', `${purpose} needs the optional package koffi`, {
      hint: 'install it with: npm install koffi',
      cause: failure,
    });
  }
  return libc;
}

/** Name of an error number, as in `ENXIO`. */
export function errnoName({ errnos }: Pick<Libc, 'errnos'>, errno: number): string {
  return Object.keys(errnos).find((name) => errnos[name] === errno) ?? `errno ${errno}`;
}
