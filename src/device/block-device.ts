/**
 * The one interface for everything that holds bytes.
 *
 * A host file, a qcow2 image, a snapshot of one, a partition: each is an array of bytes that can
 * be read, perhaps written, and asked for its extents. Devices stack; whoever uses one never asks
 * what is below. All calls are synchronous and complete before they return.
 */

import { Qcow2Error } from '../errors.ts';

/** What stands behind the bytes of an {@link Extent}. */
export type ExtentKind =
  /** Stored bytes. */
  | 'data'
  /** Stored bytes, compressed. */
  | 'compressed'
  /** Known to read as zeroes by an entry that says so; may have host space reserved. */
  | 'zero'
  /**
   * Allocated nowhere in the chain; reads as zeroes. It is `present` all the same where it lies past
   * the end of a shorter backing file, whose depth it then has.
   */
  | 'hole';

/** A run of bytes of a device that are stored in the same way. */
export interface Extent {
  /** First byte, in the device's own offsets. */
  offset: number;
  /** Bytes; at least 1. */
  length: number;
  /** What stands behind the bytes. */
  kind: ExtentKind;
  /** Whether the bytes are known to be zero without reading them. Always so for zero and hole. */
  zero: boolean;
  /**
   * Whether a layer of the chain holds these bytes (qemu-img's `present`); false only where every
   * layer leaves them unallocated.
   */
  present: boolean;
  /** Which layer of a backing chain answers: 0 is the device itself, 1 its backing file, … */
  depth: number;
  /** Where the bytes start in `hostFile`; undefined for compressed ones and those without space. */
  hostOffset?: number | undefined;
  /** Path of the host file that holds the bytes. */
  hostFile?: string | undefined;
}

/** Options of {@link BlockDevice.writeZeroes}. */
export interface WriteZeroesOptions {
  /** Let the device free the space (default false: keep it allocated). */
  mayUnmap?: boolean;
}

/** Where bytes of a device are in a file of the host. */
export interface HostRange {
  /** The open file. Do not keep it: its number is another file's once the device is closed. */
  descriptor: number;
  /** Where the first byte is in the file. */
  hostOffset: number;
}

/** An array of bytes: see the head of this file. */
export interface BlockDevice extends Disposable {
  /** Bytes; not always a multiple of 512. */
  readonly size: number;
  /** Whether every write is refused. */
  readonly readOnly: boolean;
  /**
   * Whether {@link writeZeroes} never takes as long as writing zeroes would; unknown if it is not
   * there.
   */
  readonly zeroesFast?: boolean;
  /**
   * Fills all of `target` from `offset`.
   * @throws {Qcow2Error} `OUT_OF_RANGE` if the range does not lie within the device
   */
  read(target: Uint8Array, offset: number): void;
  /** Stores all of `source` at `offset`. */
  write(source: Uint8Array, offset: number): void;
  /** Makes the range read as zeroes. */
  writeZeroes(offset: number, length: number, options?: WriteZeroesOptions): void;
  /** Tells the device that the range's content is no longer needed. */
  discard(offset: number, length: number): void;
  /** Returns once everything written would survive a power cut. */
  flush(): void;
  /**
   * The extents of a range, in order, without gaps, neighbours that can be one merged.
   * @throws {Qcow2Error} `OUT_OF_RANGE` if the range does not lie within the device
   */
  extents(offset: number, length: number): Iterable<Extent>;
  /**
   * Where all bytes of a range are in one piece in a file of the host, for system calls that move
   * them without reading them; at least 1 byte.
   * @returns undefined if they are not, or the device may be written, or it does not know
   * @throws {Qcow2Error} what reading them would throw
   */
  hostRange?(offset: number, length: number): HostRange | undefined;
  /** Releases what the device holds open; safe to call again. */
  close(): void;
}

/**
 * A device that holds an image's file: it can change its size, and writes past its end may grow it.
 * What lies between the old end and such a write reads as zeroes.
 */
export interface HostFile extends BlockDevice {
  /**
   * Makes it `size` bytes long; new bytes read as zeroes.
   * @throws {Qcow2Error} `READ_ONLY`, or `HOST` if that is not possible
   */
  resize(size: number): void;
  /** Stores all of `parts`, one after the other, at `offset`, with as few host writes as it can. */
  writeParts(parts: readonly Uint8Array[], offset: number): void;
}

/**
 * Checks that `[offset, offset + length)` lies within `size` bytes.
 * @throws {Qcow2Error} `OUT_OF_RANGE`
 */
export function checkRange(offset: number, length: number, size: number): void {
  // Written so that NaN fails too.
  if (!(offset >= 0 && length >= 0 && offset + length <= size && Number.isSafeInteger(offset))) {
    throw new Qcow2Error(
      'OUT_OF_RANGE',
      `bytes ${offset} to ${offset + length} are outside the device of ${size} bytes`,
    );
  }
}

/** Whether `next` continues `extent` so that the two can be told as one. */
export function continuesExtent(extent: Extent, next: Extent): boolean {
  return (
    extent.kind === next.kind &&
    extent.zero === next.zero &&
    extent.present === next.present &&
    extent.depth === next.depth &&
    extent.hostFile === next.hostFile &&
    (extent.hostOffset === undefined
      ? next.hostOffset === undefined
      : next.hostOffset === extent.hostOffset + extent.length)
  );
}

/** Merges neighbours of a stream of extents. The objects given are not changed. */
export function* mergeExtents(extents: Iterable<Extent>): Generator<Extent> {
  let current: Extent | undefined;
  for (const next of extents) {
    if (current !== undefined && continuesExtent(current, next)) {
      current.length += next.length;
    } else {
      if (current !== undefined) yield current;
      current = { ...next };
    }
  }
  if (current !== undefined) yield current;
}

/** The part of every device that is the same where writing is not possible. */
export abstract class ReadOnlyDevice implements BlockDevice {
  abstract readonly size: number;
  readonly readOnly: boolean = true;

  abstract read(target: Uint8Array, offset: number): void;
  abstract extents(offset: number, length: number): Iterable<Extent>;
  abstract close(): void;

  write(_source: Uint8Array, _offset: number): void {
    throw this.refuseWrite();
  }

  writeZeroes(_offset: number, _length: number, _options?: WriteZeroesOptions): void {
    throw this.refuseWrite();
  }

  discard(_offset: number, _length: number): void {
    throw this.refuseWrite();
  }

  flush(): void {
    // Nothing can have been written.
  }

  [Symbol.dispose](): void {
    this.close();
  }

  private refuseWrite(): Qcow2Error {
    return new Qcow2Error('READ_ONLY', 'the device can only be read');
  }
}
