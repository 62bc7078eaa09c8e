/**
 * Counts the requests of one client. A clock is asked twice for all that is handled together: what
 * arrived together counts as having come when it began to be handled, and as answered when the
 * replies left.
 */

import { readU16, readU32, TWO_32 } from '../../util/bytes.ts';
import { RequestKind } from '../../util/request-stats.ts';
import type { RequestStats } from '../../util/request-stats.ts';
import { HeaderSize } from './headers.ts';
import type { HeaderStyle, Request } from './headers.ts';
import { Command, CommandFlag } from './protocol.ts';

/** Requests that are kept until the clock is asked; with more of them it is asked at once. */
const MOST_ANSWERED = 256;

const KINDS: Partial<Record<number, RequestKind>> = {
  [Command.NBD_CMD_READ]: RequestKind.read,
  [Command.NBD_CMD_WRITE]: RequestKind.write,
  [Command.NBD_CMD_WRITE_ZEROES]: RequestKind.zero,
  [Command.NBD_CMD_TRIM]: RequestKind.trim,
  [Command.NBD_CMD_FLUSH]: RequestKind.flush,
  [Command.NBD_CMD_BLOCK_STATUS]: RequestKind.extents,
};

/** See the head of this file. */
export class RequestCounter {
  readonly #stats: RequestStats;
  readonly #style: HeaderStyle;
  #now = 0;
  /** Requests that were looked at and are not answered. */
  #underWay = 0;
  /** Those that have arrived and were not looked at. */
  #waiting = 0;
  /** Answered ones, whose replies have not left. */
  #answered = 0;
  readonly #kinds = new Uint8Array(MOST_ANSWERED);
  readonly #bytes = new Float64Array(MOST_ANSWERED);
  readonly #arrivedMs = new Float64Array(MOST_ANSWERED);

  constructor(stats: RequestStats, style: HeaderStyle) {
    this.#stats = stats;
    this.#style = style;
  }

  /**
   * Told before input is handled.
   *
   * @param at where in it the next request begins
   */
  begin(input: Uint8Array, at: number): void {
    this.#now = performance.now();
    this.#waiting = countRequests(input, at, this.#style);
  }

  /** Told of a request before it is handled. */
  arrived(request: Request): void {
    // Its only answer is the end of the connection.
    if (request.type === Command.NBD_CMD_DISC) return;
    request.arrivedMs = this.#now;
    request.isCounted = false;
    this.#underWay++;
    this.#stats.addDepth(1, this.#underWay + Math.max(0, --this.#waiting));
  }

  /** Told of a request once its reply is complete; what comes again is not counted again. */
  finished(request: Request, hasFailed: boolean): void {
    if (request.isCounted) return;
    request.isCounted = true;
    this.#underWay--;
    const kind = KINDS[request.type] ?? RequestKind.other;
    const moves = kind <= RequestKind.trim && !hasFailed;
    if (this.#answered === MOST_ANSWERED) this.settle();
    const index = this.#answered++;
    this.#kinds[index] = kind;
    this.#bytes[index] = moves ? request.length : 0;
    this.#arrivedMs[index] = request.arrivedMs;
    if (hasFailed) this.#stats.addError(kind);
  }

  /** Told of bytes that the host sent from a file. */
  sent(descriptor: number, bytes: number): void {
    this.#stats.addRead(descriptor, bytes);
  }

  /** Told when the replies have left. */
  settle(): void {
    if (this.#answered === 0) return;
    const now = performance.now();
    for (let index = 0; index < this.#answered; index++) {
      const kind = this.#kinds[index] as RequestKind;
      this.#stats.add(kind, this.#bytes[index]!, now - this.#arrivedMs[index]!);
    }
    this.#answered = 0;
  }
}

/** How many whole headers there are from a request on. Payload is passed over as far as it is there. */
function countRequests(input: Uint8Array, at: number, style: HeaderStyle): number {
  const isExtended = style === 'extended';
  const headerBytes = isExtended ? HeaderSize.extendedRequest : HeaderSize.request;
  let count = 0;
  for (let next = at; next + headerBytes <= input.length; count++) {
    const isAnnounced = isExtended
      ? (readU16(input, next + 4) & CommandFlag.NBD_CMD_FLAG_PAYLOAD_LEN) !== 0
      : readU16(input, next + 6) === Command.NBD_CMD_WRITE;
    const high = readU32(input, next + 24);
    const length = isExtended ? high * TWO_32 + readU32(input, next + 28) : high;
    next += headerBytes + (isAnnounced ? length : 0);
  }
  return count;
}
