/**
 * The payload of an extended `NBD_CMD_BLOCK_STATUS`: the length that is asked about, and which of
 * the metadata contexts that were agreed on are to be answered for.
 *
 * Specification: `doc/proto.md`, "NBD_CMD_BLOCK_STATUS", the form with `NBD_CMD_FLAG_PAYLOAD_LEN`.
 */

import { readU32, TWO_32 } from '../../util/bytes.ts';
import { Failures } from './failure.ts';
import type { Failure } from './failure.ts';
import type { Request } from './headers.ts';
import type { MetaContext } from './meta-contexts.ts';

/** Bytes of the length that is asked about, and of the number of a context. */
const LENGTH_BYTES = 8;
const ID_BYTES = 4;

/** A payload that is still arriving. What cannot be right is skipped, however long it is. */
export class IncomingFilter {
  /** Its length is that of the payload until {@link select} has put in the one asked about. */
  readonly request: Request;
  /** Bytes that have not arrived. */
  remaining: number;
  /** Why it cannot succeed. */
  failure: Failure | undefined;
  readonly #available: readonly MetaContext[];
  readonly #payload: Uint8Array;

  /** @param available the contexts that were agreed on */
  constructor(request: Request, available: readonly MetaContext[]) {
    this.request = request.copy();
    this.remaining = request.length;
    this.#available = available;
    const idBytes = request.length - LENGTH_BYTES;
    if (available.length === 0) this.failure = Failures.noContexts;
    // None is named twice, so that there cannot be more than there are contexts.
    else if (
      idBytes < ID_BYTES ||
      idBytes % ID_BYTES !== 0 ||
      idBytes > available.length * ID_BYTES
    ) {
      this.failure = Failures.badFilter;
    }
    this.#payload = new Uint8Array(this.failure === undefined ? request.length : 0);
  }

  /**
   * Takes bytes from the front of what has arrived.
   * @returns how many; never more than {@link remaining}
   */
  take(input: Uint8Array): number {
    const length = Math.min(this.remaining, input.length);
    if (this.failure === undefined) {
      this.#payload.set(input.subarray(0, length), this.request.length - this.remaining);
    }
    this.remaining -= length;
    return length;
  }

  /** It is short, so that it is never fetched past the stream. */
  takeFrom(): number {
    return 0;
  }

  /** It holds nothing of the pool. */
  release(): void {
    // There is nothing to give back.
  }

  /**
   * What is asked for, once all has arrived: {@link request} has the length of the range then.
   * @returns undefined where it cannot be answered: {@link failure} tells why
   */
  select(): MetaContext[] | undefined {
    const chosen: MetaContext[] = [];
    for (let at = LENGTH_BYTES; at < this.#payload.length; at += ID_BYTES) {
      const id = readU32(this.#payload, at);
      const context = this.#available.find((candidate) => candidate.id === id);
      if (context === undefined || chosen.includes(context)) {
        this.failure = Failures.badFilter;
        return undefined;
      }
      chosen.push(context);
    }
    this.request.length = readU32(this.#payload, 0) * TWO_32 + readU32(this.#payload, 4);
    return chosen;
  }
}
