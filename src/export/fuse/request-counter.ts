/** Counts the kernel's requests: which counts as what, and how many bytes it moved. */

import type { RequestStats } from '../../util/request-stats.ts';
import { RequestKind } from '../../util/request-stats.ts';
import { Argument, FallocateFlag, Opcode, Size } from './protocol.ts';
import type { ReplyBuffer, RequestBuffer } from './protocol.ts';

/** Counts what is in the buffers of a session. */
export class RequestCounter {
  readonly #stats: RequestStats;
  readonly #request: RequestBuffer;
  readonly #reply: ReplyBuffer;

  constructor(stats: RequestStats, request: RequestBuffer, reply: ReplyBuffer) {
    this.#stats = stats;
    this.#request = request;
    this.#reply = reply;
  }

  /**
   * Counts the request that was just answered.
   *
   * @param replyLength bytes of the reply
   * @param milliseconds from when it was received to when the reply was sent
   */
  count(replyLength: number, milliseconds: number): void {
    const request = this.#request;
    const kind = kindOf(request);
    const hasFailed = this.#reply.errno !== 0;
    let bytes = 0;
    if (!hasFailed) {
      if (kind === RequestKind.read) bytes = replyLength - Size.outHeader;
      else if (kind === RequestKind.write) bytes = this.#reply.written;
      else if (request.opcode === Opcode.FALLOCATE) bytes = request.u64(Argument.fallocateLength);
    }
    this.#stats.add(kind, bytes, milliseconds);
    // A name that is not there is an answer too, and what is not supported is asked for once.
    if (hasFailed && kind !== RequestKind.other) this.#stats.addError(kind);
  }
}

function kindOf(request: RequestBuffer): RequestKind {
  switch (request.opcode) {
    case Opcode.READ:
      return RequestKind.read;
    case Opcode.WRITE:
      return RequestKind.write;
    case Opcode.FALLOCATE: {
      const isHole = (request.u32(Argument.fallocateMode) & FallocateFlag.PUNCH_HOLE) !== 0;
      return isHole ? RequestKind.trim : RequestKind.zero;
    }
    case Opcode.FSYNC:
      return RequestKind.flush;
    case Opcode.LSEEK:
      return RequestKind.extents;
    default:
      return RequestKind.other;
  }
}
