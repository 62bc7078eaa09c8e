/**
 * The requests that change files: WRITE, FALLOCATE, SETATTR and FSYNC.
 *
 * Files have the size that they have, as block devices do. A write past the end is answered with
 * ENOSPC, or cut there; a truncation, and with it opening with O_TRUNC, is refused, since it would
 * lose the disk. That the size is never the kernel's to change is also why its writeback cache is
 * not used: with it, a program that writes until the disk is full would never be told that it is.
 *
 * A buffered write is answered before it is done, so that the program goes on while its bytes are
 * stored; every later request waits until they are. Should that fail, the next write, fsync(2) or
 * close(2) is told. Writes with O_DIRECT are answered when they are done.
 */

import { Errno, errnoOf } from './errno.ts';
import type { ErrorLog } from './error-log.ts';
import { fileErrno } from './file-tree.ts';
import type { FileNode, FileTree } from './file-tree.ts';
import type { Invalidations } from './invalidations.ts';
import { Argument, FallocateFlag, O_DIRECT, SetAttribute, WriteFlag } from './protocol.ts';
import type { ReplyBuffer, RequestBuffer } from './protocol.ts';

/** Most bytes of one WRITE: 256 pages, the most that an unprivileged connection may have. */
export const MAX_WRITE_BYTES = 1024 * 1024;

/** A reply that somebody else sends, or nobody. */
const NO_REPLY = 0;

/** What a {@link WriteRequests} works with. */
export interface WriteRequestParts {
  request: RequestBuffer;
  reply: ReplyBuffer;
  tree: FileTree;
  log: ErrorLog;
  /** Keeps the files that show the same bytes coherent; undefined if the kernel caches none. */
  invalidations: Invalidations | undefined;
  /** How long the kernel may keep attributes, in seconds. */
  validSeconds: number;
}

/** A part of a file. */
interface FileSpan {
  node: FileNode;
  offset: number;
  length: number;
}

/** See the head of this file. Each method answers a request, and returns the bytes of the reply. */
export class WriteRequests {
  readonly #parts: WriteRequestParts;
  /** Whether {@link complete} will be called after each reply. */
  answersEarly = false;
  /** A write that has been answered and is not done yet. */
  readonly #late: { node: FileNode | undefined; source: Uint8Array; offset: number } = {
    node: undefined,
    source: new Uint8Array(0),
    offset: 0,
  };
  /** The error of such a write, for whoever is to be told. */
  #lateErrno = 0;

  constructor(parts: WriteRequestParts) {
    this.#parts = parts;
  }

  /** The hot path: nothing is allocated for whole pages if no other file shows them. */
  write(): number {
    const { request, reply } = this.#parts;
    const node = this.#writableNode();
    if (typeof node === 'number') return this.#finish(node);
    const wanted = request.u32(Argument.writeSize);
    const offset = request.u64(Argument.writeOffset);
    if (wanted > MAX_WRITE_BYTES) return this.#finish(Errno.EINVAL);
    const length = Math.max(0, Math.min(wanted, node.size - offset));
    if (length === 0 && wanted > 0) return this.#finish(Errno.ENOSPC);
    const source = request.written(length);
    if (source === undefined) return this.#finish(Errno.EINVAL);
    if (this.#lateErrno !== 0) return this.#finish(this.#takeLateErrno());
    const isFromCache = (request.u32(Argument.writeFlags) & WriteFlag.CACHE) !== 0;
    const isDirect = (request.u32(Argument.writeOpenFlags) & O_DIRECT) !== 0;
    if (!isDirect) {
      node.disk.noteCached(node);
      if (this.answersEarly && this.#isSeenAlone(node, offset, length)) {
        const late = this.#late;
        late.node = node;
        late.source = source;
        late.offset = offset;
        return this.#finish(0, reply.putWritten(length));
      }
    }
    const errno = this.#store(node, source, offset);
    const replyLength = this.#finish(errno, errno === 0 ? reply.putWritten(length) : 0);
    return this.#afterChange({ node, offset, length }, !isFromCache, replyLength);
  }

  /** Does what has been answered already; to be called before the next request is received. */
  complete(): void {
    const { node, source, offset } = this.#late;
    if (node === undefined) return;
    this.#late.node = undefined;
    this.#lateErrno = this.#store(node, source, offset);
  }

  /**
   * Closing a file: tells of a write that failed after it was answered. It may be a reader who
   * closes, so that fsync(2) is told again.
   */
  flush(): number {
    const node = this.#writableNode();
    return this.#finish(typeof node === 'number' ? 0 : this.#lateErrno);
  }

  /** Holes and zeroes; reserving space is accepted, though an image gives no guarantee for it. */
  fallocate(): number {
    const { request } = this.#parts;
    const node = this.#writableNode();
    if (typeof node === 'number') return this.#finish(node);
    const { KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE } = FallocateFlag;
    const mode = request.u32(Argument.fallocateMode);
    const offset = request.u64(Argument.fallocateOffset);
    const wanted = request.u64(Argument.fallocateLength);
    const kind = mode & ~KEEP_SIZE;
    if (kind !== 0 && kind !== PUNCH_HOLE && kind !== ZERO_RANGE) {
      return this.#finish(Errno.EOPNOTSUPP);
    }
    const keepsSize = (mode & KEEP_SIZE) !== 0;
    if (!keepsSize && offset + wanted > node.size) return this.#finish(Errno.ENOSPC);
    const length = Math.max(0, Math.min(wanted, node.size - offset));
    if (kind === 0 || length === 0) return this.#finish(0);
    let errno = 0;
    try {
      const range = { offset: node.offset + offset, length };
      node.disk.writeZeroes(range, { mayUnmap: kind === PUNCH_HOLE });
    } catch (error) {
      errno = this.#failed(node, error);
    }
    return this.#afterChange({ node, offset, length }, true, this.#finish(errno));
  }

  /** Times can be set; size, mode and owner are what they are. */
  setAttributes(): number {
    const { request, reply, tree } = this.#parts;
    const node = tree.node(request.nodeId);
    if (node === undefined) return this.#finish(Errno.ENOENT);
    const valid = request.u32(Argument.setattrValid);
    const has = (flag: number): boolean => (valid & flag) !== 0;
    const { uid, gid } = tree.options;
    const changesSize =
      has(SetAttribute.SIZE) &&
      (node.kind !== 'file' || request.u64(Argument.setattrSize) !== node.size);
    const changesMode =
      has(SetAttribute.MODE) && ((request.u32(Argument.setattrMode) ^ node.mode) & 0o7777) !== 0;
    const changesOwner =
      (has(SetAttribute.UID) && request.u32(Argument.setattrUid) !== uid) ||
      (has(SetAttribute.GID) && request.u32(Argument.setattrGid) !== gid);
    if (changesSize || changesMode || changesOwner) return this.#finish(Errno.EPERM);
    if (has(SetAttribute.MTIME) && node.kind === 'file' && node.disk !== undefined) {
      const seconds = request.u64(Argument.setattrMtime);
      const nanoseconds = request.u32(Argument.setattrMtimeNanoseconds);
      const given = seconds * 1000 + nanoseconds / 1e6;
      node.disk.modifiedMs = has(SetAttribute.MTIME_NOW) ? Date.now() : given;
    }
    const { validSeconds } = this.#parts;
    return this.#finish(0, reply.putAttributes(tree.attributes(node), validSeconds));
  }

  /** All of the disk, whichever of its files is meant; what cannot be written has nothing to sync. */
  sync(): number {
    const { request, tree } = this.#parts;
    const node = tree.node(request.nodeId);
    if (node === undefined) return this.#finish(Errno.ENOENT);
    if (node.kind !== 'file' || !node.isWritable) return this.#finish(0);
    try {
      tree.disk!.flush();
      return this.#finish(this.#takeLateErrno());
    } catch (error) {
      return this.#finish(this.#failed(node, error));
    }
  }

  /** The file of the request, or an error number. */
  #writableNode(): (FileNode & { disk: NonNullable<FileNode['disk']> }) | number {
    const { request, tree } = this.#parts;
    const node = tree.node(request.nodeId);
    if (node?.kind !== 'file') return fileErrno(node);
    return node.isWritable
      ? (node as FileNode & { disk: NonNullable<FileNode['disk']> })
      : Errno.EROFS;
  }

  #store(node: FileNode, source: Uint8Array, offset: number): number {
    try {
      node.disk!.write(source, node.offset + offset);
      return 0;
    } catch (error) {
      return this.#failed(node, error);
    }
  }

  #takeLateErrno(): number {
    const errno = this.#lateErrno;
    this.#lateErrno = 0;
    return errno;
  }

  /** Whether the kernel has pages of no other file that shows these bytes. */
  #isSeenAlone(node: FileNode, offset: number, length: number): boolean {
    const range = { offset: node.offset + offset, length };
    return node.disk!.othersAt(node, range).length === 0;
  }

  /** Has the kernel drop what it holds of the same bytes in other files; some of them may be new. */
  #afterChange({ node, offset, length }: FileSpan, mayWait: boolean, replyLength: number): number {
    const { reply, invalidations } = this.#parts;
    if (invalidations === undefined) return replyLength;
    const range = { offset: node.offset + offset, length };
    const others = node.disk!.othersAt(node, range);
    if (others.length === 0) return replyLength;
    const change = { writer: node, others, mayWait };
    const isTaken = invalidations.drop(change, reply.bytes.subarray(0, replyLength));
    return isTaken ? NO_REPLY : replyLength;
  }

  #failed(node: FileNode, error: unknown): number {
    this.#parts.log.report(Buffer.from(node.name).toString(), error);
    return errnoOf(error);
  }

  #finish(errno: number, payloadBytes = 0): number {
    return this.#parts.reply.finish(this.#parts.request, errno, payloadBytes);
  }
}
