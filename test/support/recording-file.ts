/**
 * A host file in memory that writes down everything that is done to it, so that the file can be
 * rebuilt as it was, or might have been, at any point: see {@link crash-states.ts}.
 *
 * Several files can share one log: what was done to them is then in the order in which it was done.
 */

import type { Extent, HostFile, WriteZeroesOptions } from '../../src/device/block-device.ts';
import { GrowableMemoryDevice } from '../../src/device/memory.ts';

/** Something that was done to a host file and changes what a power cut leaves of it. */
export type HostOperation =
  | { kind: 'write'; offset: number; bytes: Uint8Array }
  | { kind: 'writeZeroes'; offset: number; length: number }
  | { kind: 'discard'; offset: number; length: number }
  | { kind: 'resize'; size: number }
  /** Everything before it is safe. */
  | { kind: 'flush' };

/** An entry of a log. */
export interface LoggedOperation {
  /** Index of the file among those that share the log. */
  file: number;
  operation: HostOperation;
}

/** A file in memory whose operations are logged once they are done. */
export class RecordingFile implements HostFile {
  readonly readOnly = false;
  readonly #inner: GrowableMemoryDevice;
  readonly #log: LoggedOperation[];
  readonly #index: number;

  /**
   * @param initial what the file holds, and is safe, before the log begins; copied
   * @param log what is done to the file is added to it
   * @param index which file of the log this is
   */
  constructor(initial: Uint8Array, log: LoggedOperation[], index = 0) {
    this.#inner = new GrowableMemoryDevice(initial);
    this.#log = log;
    this.#index = index;
  }

  get size(): number {
    return this.#inner.size;
  }

  /** The content as it is now. */
  get bytes(): Uint8Array {
    return this.#inner.bytes;
  }

  read(target: Uint8Array, offset: number): void {
    this.#inner.read(target, offset);
  }

  write(source: Uint8Array, offset: number): void {
    this.#inner.write(source, offset);
    // A Buffer's slice would go on being the caller's memory.
    this.#record({ kind: 'write', offset, bytes: Uint8Array.from(source) });
  }

  writeParts(parts: readonly Uint8Array[], offset: number): void {
    this.#inner.writeParts(parts, offset);
    this.#record({ kind: 'write', offset, bytes: Uint8Array.from(Buffer.concat(parts)) });
  }

  writeZeroes(offset: number, length: number, options?: WriteZeroesOptions): void {
    this.#inner.writeZeroes(offset, length, options);
    this.#record({ kind: 'writeZeroes', offset, length });
  }

  discard(offset: number, length: number): void {
    this.#inner.discard(offset, length);
    this.#record({ kind: 'discard', offset, length });
  }

  resize(size: number): void {
    this.#inner.resize(size);
    this.#record({ kind: 'resize', size });
  }

  flush(): void {
    this.#inner.flush();
    this.#record({ kind: 'flush' });
  }

  extents(offset: number, length: number): Iterable<Extent> {
    return this.#inner.extents(offset, length);
  }

  close(): void {
    // What was recorded is still wanted.
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #record(operation: HostOperation): void {
    this.#log.push({ file: this.#index, operation });
  }
}
