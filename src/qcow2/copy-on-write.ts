/**
 * Copy on write: guest data goes to new clusters together with what the guest had around it there.
 *
 * Where that is little it is one read and one write. The surroundings in large clusters are copied
 * in pieces that stay in the processor's cache.
 */

import type { HostFile } from '../device/block-device.ts';
import { isAllZero } from '../util/bytes.ts';
import type { DiskReader } from './write-context.ts';

/** Largest piece that is copied at once. */
const BUFFER_BYTES = 256 * 1024;
/** What lies between two reads is read too, up to this many bytes. */
const READ_OVER_BYTES = 16 * 1024;

/** Where guest data goes, and how much of the guest's bytes next to it has to come along. */
export interface DataPlace {
  /** Guest offset of the data. */
  guest: number;
  /** Host offset of the data. */
  host: number;
  /** Bytes before the data. */
  head: number;
  /** Bytes after the data. */
  tail: number;
  /** Whether the host file ends before all this, so that what is not written reads as zeroes. */
  isFresh: boolean;
}

/** A part of the guest's surroundings. */
interface Surroundings {
  guest: number;
  host: number;
  length: number;
  /** Whether they are known to read as zeroes. */
  isZero: boolean;
}

/** Writes data with its surroundings. */
export class CopyOnWrite {
  readonly #reader: DiskReader;
  readonly #dataFile: HostFile;
  #buffer: Uint8Array | undefined;

  constructor(reader: DiskReader, dataFile: HostFile) {
    this.#reader = reader;
    this.#dataFile = dataFile;
  }

  /**
   * Stores guest data and its surroundings. Zeroes are left out where the file has none yet.
   * @throws {Qcow2Error} as reading the guest's bytes and writing to the file do; any part may have
   * been written
   */
  write(data: Uint8Array, place: DataPlace): void {
    const { guest, host, head, tail, isFresh } = place;
    const tailGuest = guest + data.length;
    const isHeadZero = head === 0 || this.#reader.readsZero(guest - head, head);
    const isTailZero = tail === 0 || this.#reader.readsZero(tailGuest, tail);
    if (head + tail === 0 || (isHeadZero && isTailZero && isFresh)) {
      this.#dataFile.write(data, host);
      return;
    }
    const before = { guest: guest - head, host: host - head, length: head, isZero: isHeadZero };
    const after = { guest: tailGuest, host: host + data.length, length: tail, isZero: isTailZero };
    if (head + tail > BUFFER_BYTES) {
      this.#copy(before, isFresh);
      this.#dataFile.write(data, host);
      this.#copy(after, isFresh);
    } else if (data.length <= READ_OVER_BYTES && head + data.length + tail <= BUFFER_BYTES) {
      this.#writeTogether(data, before, after, isFresh);
    } else {
      this.#writeParts(data, before, after, isFresh);
    }
  }

  /** Writes from one buffer. What the data replaces is read too, so that there is one read. */
  #writeTogether(
    data: Uint8Array,
    before: Surroundings,
    after: Surroundings,
    isFresh: boolean,
  ): void {
    const head = before.length;
    const tailStart = head + data.length;
    const buffer = this.#takeBuffer(0, tailStart + after.length);
    const from = before.isZero ? tailStart : 0;
    const to = after.isZero ? head : buffer.length;
    this.#reader.readPadded(buffer.subarray(from, to), before.guest + from);
    if (before.isZero) buffer.fill(0, 0, head);
    if (after.isZero) buffer.fill(0, tailStart);
    buffer.set(data, head);
    const start = isFresh && isAllZero(buffer.subarray(0, head)) ? head : 0;
    const end = isFresh && isAllZero(buffer.subarray(tailStart)) ? tailStart : buffer.length;
    this.#dataFile.write(buffer.subarray(start, end), before.host + start);
  }

  /** Writes data that is not worth copying, between surroundings that are. */
  #writeParts(data: Uint8Array, before: Surroundings, after: Surroundings, isFresh: boolean): void {
    const head = this.#read(before, 0);
    const tail = this.#read(after, before.length);
    const hasHead = !(isFresh && isAllZero(head));
    const hasTail = !(isFresh && isAllZero(tail));
    const parts = [...(hasHead ? [head] : []), data, ...(hasTail ? [tail] : [])];
    this.#dataFile.writeParts(parts, before.host + (hasHead ? 0 : head.length));
  }

  #read({ guest, length, isZero }: Surroundings, bufferOffset: number): Uint8Array {
    const buffer = this.#takeBuffer(bufferOffset, length);
    if (isZero) buffer.fill(0);
    else this.#reader.readPadded(buffer, guest);
    return buffer;
  }

  #copy({ guest, host, length, isZero }: Surroundings, isFresh: boolean): void {
    if (isZero) {
      if (!isFresh && length > 0) this.#dataFile.writeZeroes(host, length);
      return;
    }
    for (let done = 0; done < length; done += BUFFER_BYTES) {
      const buffer = this.#takeBuffer(0, Math.min(BUFFER_BYTES, length - done));
      this.#reader.readPadded(buffer, guest + done);
      if (!isFresh || !isAllZero(buffer)) this.#dataFile.write(buffer, host + done);
    }
  }

  #takeBuffer(offset: number, length: number): Uint8Array {
    this.#buffer ??= new Uint8Array(BUFFER_BYTES);
    return this.#buffer.subarray(offset, offset + length);
  }
}
