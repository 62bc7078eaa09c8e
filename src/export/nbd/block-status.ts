/**
 * `NBD_CMD_BLOCK_STATUS`: the extents of a range, for each metadata context that was agreed on.
 *
 * An answer covers as much of the range as is found out in a moment, and has a bounded number of
 * extents; the client asks on from where it ends.
 */

import type { BlockDevice } from '../../device/block-device.ts';
import { writeU32, writeU64 } from '../../util/bytes.ts';
import { failureOf, Failures } from './failure.ts';
import type { HeaderStyle, Request } from './headers.ts';
import type { MetaContext } from './meta-contexts.ts';
import { CommandFlag, ReplyType } from './protocol.ts';
import type { Replies } from './replies.ts';

/** Extents of one context in an answer. */
const MAX_EXTENTS = 8192;
/** Longest extent that a compact reply has room for: whole 64 KiB below 4 GiB. */
const MAX_COMPACT_LENGTH = 0xffff_0000;
/** Bytes of the export whose extents are looked at before the clock is. */
const WINDOW_BYTES = 1024 * 1024 * 1024;
/** How long one answer may look for extents. */
const MAX_MS = 20;

/** Flags of `base:allocation`. */
const NBD_STATE_HOLE = 1;
const NBD_STATE_ZERO = 2;
/** The flag of `qemu:dirty-bitmap:NAME`. */
const NBD_STATE_DIRTY = 1;

/** A run of an export with the same flags. */
interface Status {
  length: number;
  flags: number;
}

/** What answering needs. */
export interface StatusContext {
  readonly device: BlockDevice;
  readonly replies: Replies;
  readonly contexts: readonly MetaContext[];
  readonly onError: (error: unknown) => void;
}

/** Answers a request that lies within the export and has a length. */
export function answerBlockStatus(
  request: Request,
  { device, replies, contexts, onError }: StatusContext,
): void {
  if (contexts.length === 0) {
    replies.error(request, Failures.noContexts);
    return;
  }
  const isOne = (request.flags & CommandFlag.NBD_CMD_FLAG_REQ_ONE) !== 0;
  const limits = {
    offset: request.offset,
    length: request.length,
    maxExtents: isOne ? 1 : MAX_EXTENTS,
    maxExtentLength: replies.style === 'extended' ? Infinity : MAX_COMPACT_LENGTH,
  };
  const answers: Status[][] = [];
  try {
    for (const context of contexts) {
      answers.push(collect(changesOf(context, device, limits), limits));
    }
  } catch (error) {
    onError(error);
    replies.error(request, failureOf(error), request.offset);
    return;
  }
  const type =
    replies.style === 'extended'
      ? ReplyType.NBD_REPLY_TYPE_BLOCK_STATUS_EXT
      : ReplyType.NBD_REPLY_TYPE_BLOCK_STATUS;
  for (const [index, answer] of answers.entries()) {
    const payload = encodeStatus(replies.style, contexts[index]!.id, answer);
    const isLast = index === answers.length - 1;
    replies.chunk({ request, type, length: payload.length, isLast }, payload);
  }
}

interface Limits {
  offset: number;
  length: number;
  maxExtents: number;
  maxExtentLength: number;
}

/** The runs of a range for one context; neighbours may have the same flags. */
function changesOf(context: MetaContext, device: BlockDevice, limits: Limits): Iterable<Status> {
  return context.bitmap === undefined
    ? allocation(context, device, limits)
    : dirtiness(context.bitmap, limits);
}

function* allocation(
  { kind }: MetaContext,
  device: BlockDevice,
  { offset, length }: Limits,
): Generator<Status> {
  const deadline = performance.now() + MAX_MS;
  const end = offset + length;
  for (let at = offset; at < end;) {
    const windowEnd = Math.min(end, at - (at % WINDOW_BYTES) + WINDOW_BYTES);
    for (const extent of device.extents(at, windowEnd - at)) {
      const isHole = extent.kind === 'zero' || extent.kind === 'hole';
      const flags =
        kind === 'base:allocation'
          ? (isHole ? NBD_STATE_HOLE : 0) | (extent.zero ? NBD_STATE_ZERO : 0)
          : extent.present
            ? extent.depth + 1
            : 0;
      yield { length: extent.length, flags };
    }
    at = windowEnd;
    if (performance.now() > deadline) return;
  }
}

function* dirtiness(
  bitmap: NonNullable<MetaContext['bitmap']>,
  { offset, length }: Limits,
): Generator<Status> {
  const end = offset + length;
  let at = offset;
  for (const dirty of bitmap.dirtyRanges(offset)) {
    const start = Math.min(Math.max(dirty.offset, at), end);
    if (start > at) yield { length: start - at, flags: 0 };
    at = start;
    const stop = Math.min(Math.max(dirty.offset + dirty.length, at), end);
    if (stop > at) yield { length: stop - at, flags: NBD_STATE_DIRTY };
    at = stop;
    if (at >= end) return;
  }
  if (at < end) yield { length: end - at, flags: 0 };
}

/** Merges neighbours, within what a reply has room for. */
function collect(changes: Iterable<Status>, { maxExtents, maxExtentLength }: Limits): Status[] {
  const found: Status[] = [];
  let last: Status | undefined;
  for (const { length, flags } of changes) {
    let left = length;
    if (last?.flags === flags) {
      const more = Math.min(left, maxExtentLength - last.length);
      last.length += more;
      left -= more;
    }
    while (left > 0) {
      if (found.length === maxExtents) return found;
      last = { length: Math.min(left, maxExtentLength), flags };
      left -= last.length;
      found.push(last);
    }
  }
  return found;
}

function encodeStatus(style: HeaderStyle, id: number, extents: readonly Status[]): Uint8Array {
  if (style === 'extended') {
    const bytes = new Uint8Array(8 + 16 * extents.length);
    writeU32(bytes, 0, id);
    writeU32(bytes, 4, extents.length);
    for (const [index, { length, flags }] of extents.entries()) {
      writeU64(bytes, 8 + 16 * index, length);
      writeU64(bytes, 16 + 16 * index, flags);
    }
    return bytes;
  }
  const bytes = new Uint8Array(4 + 8 * extents.length);
  writeU32(bytes, 0, id);
  for (const [index, { length, flags }] of extents.entries()) {
    writeU32(bytes, 4 + 8 * index, length);
    writeU32(bytes, 8 + 8 * index, flags);
  }
  return bytes;
}
