/** A host file in which one operation fails, as full disks and broken ones make them fail. */

import type { Extent, HostFile, WriteZeroesOptions } from '../../src/device/block-device.ts';
import { hostError } from '../../src/errors.ts';

/** How an operation fails. */
export type FaultKind =
  /** No space: nothing is done. */
  | 'ENOSPC'
  /** A broken disk: nothing is done. */
  | 'EIO'
  /** A part of it, a multiple of 512 bytes, is done before the space runs out. */
  | 'short'
  /** From here on files cannot grow, until there is room again. */
  | 'full';

/** The operations that change a file or make it safe; reads are counted for themselves. */
export type FaultTarget = 'change' | 'read';

/** Which operation fails, counted from 0, and how. */
export interface Fault {
  target: FaultTarget;
  index: number;
  kind: FaultKind;
}

/** When operations fail, for all the files that share it. */
export class FaultPlan {
  /** Operations of each kind so far. */
  readonly counts: Record<FaultTarget, number> = { change: 0, read: 0 };
  /** How many operations have failed, and the last of them. */
  failures = 0;
  failed: string | undefined;
  readonly #fault: Fault | undefined;
  #isFull = false;

  /** @param fault without it nothing fails, and operations are counted only */
  constructor(fault?: Fault) {
    this.#fault = fault;
  }

  /** Whether files cannot grow. */
  get isFull(): boolean {
    return this.#isFull;
  }

  /** Lets files grow again. */
  makeRoom(): void {
    this.#isFull = false;
  }

  /**
   * Counts an operation.
   * @param needsRoom whether it makes a file longer
   * @returns how it is to fail, if it is to
   */
  next(target: FaultTarget, what: string, needsRoom = false): FaultKind | undefined {
    const index = this.counts[target]++;
    let kind: FaultKind | undefined;
    if (target === this.#fault?.target && index === this.#fault.index) {
      if (this.#fault.kind === 'full') this.#isFull = true;
      else kind = this.#fault.kind;
    }
    if (this.#isFull && needsRoom) kind = 'ENOSPC';
    if (kind !== undefined) {
      this.failures++;
      this.failed = what;
    }
    return kind;
  }
}

/** A file whose operations fail by a plan. */
export class FaultFile implements HostFile {
  readonly readOnly = false;
  readonly #inner: HostFile;
  readonly #plan: FaultPlan;
  readonly #path: string;

  constructor(inner: HostFile, plan: FaultPlan, path = 'faulty file') {
    this.#inner = inner;
    this.#plan = plan;
    this.#path = path;
  }

  get size(): number {
    return this.#inner.size;
  }

  read(target: Uint8Array, offset: number): void {
    const fault = this.#plan.next('read', `read of ${target.length} at ${offset}`);
    if (fault !== undefined) this.#fail('EIO', 'read');
    this.#inner.read(target, offset);
  }

  write(source: Uint8Array, offset: number): void {
    const fault = this.#plan.next(
      'change',
      `write of ${source.length} at ${offset}`,
      this.#grows(offset, source.length),
    );
    if (fault === 'short') {
      // At least one sector short, so that it is a failure.
      const sectors = Math.floor((source.length - 1) / 512);
      const done = Math.ceil(sectors / 2) * 512;
      if (done > 0) this.#inner.write(source.subarray(0, done), offset);
    }
    if (fault !== undefined) this.#fail(fault, `write ${source.length} bytes at offset ${offset}`);
    this.#inner.write(source, offset);
  }

  writeParts(parts: readonly Uint8Array[], offset: number): void {
    this.write(Buffer.concat(parts), offset);
  }

  writeZeroes(offset: number, length: number, options?: WriteZeroesOptions): void {
    const fault = this.#plan.next(
      'change',
      `zeroes of ${length} at ${offset}`,
      this.#grows(offset, length),
    );
    if (fault === 'short') {
      const done = Math.floor(length / 1024) * 512;
      if (done > 0) this.#inner.writeZeroes(offset, done, options);
    }
    if (fault !== undefined) this.#fail(fault, `write ${length} zeroes at offset ${offset}`);
    this.#inner.writeZeroes(offset, length, options);
  }

  discard(offset: number, length: number): void {
    const fault = this.#plan.next('change', `discard of ${length} at ${offset}`);
    if (fault !== undefined) this.#fail(fault, `discard ${length} bytes at offset ${offset}`);
    this.#inner.discard(offset, length);
  }

  resize(size: number): void {
    const fault = this.#plan.next('change', `resize to ${size}`, size > this.size);
    if (fault !== undefined) this.#fail(fault, `resize to ${size} bytes`);
    this.#inner.resize(size);
  }

  flush(): void {
    const fault = this.#plan.next('change', 'flush');
    if (fault !== undefined) this.#fail(fault, 'flush');
    this.#inner.flush();
  }

  extents(offset: number, length: number): Iterable<Extent> {
    return this.#inner.extents(offset, length);
  }

  close(): void {
    this.#inner.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #grows(offset: number, length: number): boolean {
    return offset + length > this.size;
  }

  #fail(kind: FaultKind, action: string): never {
    const code = kind === 'EIO' ? 'EIO' : 'ENOSPC';
    const cause = Object.assign(new Error(`${code}: injected`), { code });
    throw hostError(`cannot ${action}`, this.#path, cause);
  }
}
