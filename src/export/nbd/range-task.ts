/**
 * Requests for a range that take long and send nothing until they are done: trimming, zeroing,
 * reading ahead. Each is done a piece at a time, so that other requests of the same client go on.
 */

import type { BlockDevice } from '../../device/block-device.ts';
import type { Request } from './headers.ts';
import { Command, CommandFlag } from './protocol.ts';

/** Bytes that are zeroed or trimmed at a time: the L2 entries of a table's slice, for the most part. */
const CHANGE_BYTES = 64 * 1024 * 1024;
/** Cost of a byte that is zeroed or trimmed, which seldom means that it is written. */
const CHANGE_COST = 1 / 64;
/** Bytes that are read ahead at a time. */
const CACHE_BYTES = 256 * 1024;

/** Where what is read ahead goes to; nobody looks at it. */
let scratch: Uint8Array | undefined;

/** One such request under way. */
export class RangeTask {
  readonly request: Request;
  readonly #device: BlockDevice;
  #offset: number;
  readonly #end: number;

  /** @param request of type TRIM, WRITE_ZEROES or CACHE, found valid */
  constructor(request: Request, device: BlockDevice) {
    this.request = request.copy();
    this.#device = device;
    this.#offset = request.offset;
    this.#end = request.offset + request.length;
  }

  /** Whether it takes more than one piece. */
  get isLong(): boolean {
    return this.#offset + this.#nextLength() < this.#end;
  }

  /** What the next piece costs, in bytes read or written. */
  get stepCost(): number {
    const isRead = this.request.type === Command.NBD_CMD_CACHE;
    return isRead ? this.#nextLength() : this.#nextLength() * CHANGE_COST;
  }

  /**
   * Does one piece.
   * @returns whether it was the last
   * @throws {Qcow2Error} what the device throws
   */
  step(): boolean {
    const offset = this.#offset;
    const length = this.#nextLength();
    if (length > 0) this.#do(offset, length);
    this.#offset += length;
    return this.#offset >= this.#end;
  }

  #nextLength(): number {
    const left = this.#end - this.#offset;
    if (this.request.type === Command.NBD_CMD_CACHE) return Math.min(left, CACHE_BYTES);
    // Pieces end where clusters do.
    return Math.min(left, CHANGE_BYTES - (this.#offset % CHANGE_BYTES));
  }

  #do(offset: number, length: number): void {
    if (this.request.type === Command.NBD_CMD_CACHE) {
      scratch ??= new Uint8Array(CACHE_BYTES);
      this.#device.read(scratch.subarray(0, length), offset);
    } else if (this.request.type === Command.NBD_CMD_TRIM) {
      this.#device.discard(offset, length);
    } else {
      const mayUnmap = (this.request.flags & CommandFlag.NBD_CMD_FLAG_NO_HOLE) === 0;
      this.#device.writeZeroes(offset, length, { mayUnmap });
    }
  }
}
