/**
 * Answers the kernel's requests out of a file tree.
 *
 * `handle` is the whole of it: a request's bytes in, a reply's bytes out, and nothing that a
 * request may hold makes it throw. `serve` is the loop around it: one blocking read, one reply in
 * one write, in buffers that are used again for every request. A read that fails is answered with
 * its error number and the next request is taken; only the end of the connection ends the loop.
 * Requests that change something are answered by `write-requests.ts`.
 */

import type { RequestStats } from '../../util/request-stats.ts';
import { errnoOf, Errno } from './errno.ts';
import type { ErrorLog } from './error-log.ts';
import { fileErrno } from './file-tree.ts';
import type { FileNode, FileTree, TreeNode } from './file-tree.ts';
import type { Invalidations } from './invalidations.ts';
import {
  ACCESS_MODE,
  Argument,
  direntBytes,
  FUSE_KERNEL_MINOR_VERSION,
  FUSE_KERNEL_VERSION,
  InitFlag,
  O_DIRECT,
  OLDEST_MINOR_VERSION,
  Opcode,
  OpenFlag,
  ReplyBuffer,
  RequestBuffer,
  Size,
  Whence,
} from './protocol.ts';
import { RequestCounter } from './request-counter.ts';
import type { SharedTexts } from './shared-texts.ts';
import { KeptTexts } from './sources.ts';
import type { WritableDisk } from './writable-disk.ts';
import { MAX_WRITE_BYTES, WriteRequests } from './write-requests.ts';

/** Most bytes of one READ: 256 pages, the most that an unprivileged connection may have. */
export const MAX_READ_BYTES = 1024 * 1024;
const MAX_PAGES = 256;

/** Bytes for a request without data: none is longer than a batch of FORGETs. */
const REQUEST_BYTES = 64 * 1024;
/** Bytes for a request where files accept writes. */
const WRITE_REQUEST_BYTES = MAX_WRITE_BYTES + 4096;

/** What is asked for of the kernel, where it offers it. */
const WANTED_FLAGS =
  InitFlag.ASYNC_READ |
  InitFlag.EXPORT_SUPPORT |
  InitFlag.DO_READDIRPLUS |
  InitFlag.READDIRPLUS_AUTO |
  InitFlag.ASYNC_DIO |
  InitFlag.NO_OPEN_SUPPORT |
  InitFlag.PARALLEL_DIROPS |
  InitFlag.MAX_PAGES |
  InitFlag.CACHE_SYMLINKS |
  InitFlag.NO_OPENDIR_SUPPORT;

/** How long the kernel may keep what never changes, in seconds. */
const VALID_SECONDS = 365 * 86_400;
/** How long it may keep attributes where something is written: times and space do change. */
const CHANGING_SECONDS = 1;

/** After so long without a request, what was written is flushed. */
const IDLE_FLUSH_MS = 3000;
/** A channel's answer to having waited so long. */
export const TIMED_OUT = -1;

/** Requests that the kernel may have under way on its own account (read-ahead, aio). */
const MAX_BACKGROUND = 64;

/** `handle` returned: this request has no reply. */
const NO_REPLY = 0;

/** Where requests come from and replies go. */
export interface RequestChannel {
  /**
   * Waits for a request and puts it into `buffer`.
   *
   * @param timeoutMs how long to wait at the most, where the channel can; default: for ever
   * @returns its bytes; 0 at the end; {@link TIMED_OUT}
   */
  receive(buffer: Uint8Array, timeoutMs?: number): number;
  /** Sends the first `length` bytes of `buffer`. */
  send(buffer: Uint8Array, length: number): void;
}

/** How a session goes about what it serves. */
export interface SessionOptions {
  /** Called once the kernel has been answered for the first time. */
  onReady?: () => void;
  /** Reads and writes of files go past the kernel's cache (default false). */
  directIo?: boolean;
  /** Keeps files coherent that show the same bytes, where the disk accepts writes. */
  invalidations?: Invalidations;
  /** Where requests are counted (default: they are not). */
  stats?: RequestStats | undefined;
  /** Texts of open files, for all sessions of the mount. */
  sharedTexts?: SharedTexts | undefined;
  /**
   * What was agreed on with the kernel, for all sessions of the mount: one number, which the session
   * that is greeted fills in (default: there are no others).
   */
  agreedFlags?: Int32Array | undefined;
}

/** One connection to the kernel. */
export class FuseSession {
  readonly request: RequestBuffer;
  readonly reply = new ReplyBuffer(MAX_READ_BYTES);
  readonly #tree: FileTree;
  readonly #log: ErrorLog;
  readonly #options: SessionOptions;
  /** Undefined where nothing can be written. */
  readonly #writes: WriteRequests | undefined;
  readonly #attributesSeconds: number;
  /** What volatile files hold for those who opened them, by handle. */
  readonly #keptTexts: KeptTexts;
  readonly #counter: RequestCounter | undefined;
  #flags: number;

  constructor(tree: FileTree, log: ErrorLog, options: SessionOptions = {}) {
    this.#tree = tree;
    this.#log = log;
    this.#options = options;
    this.#flags = options.agreedFlags === undefined ? 0 : Atomics.load(options.agreedFlags, 0);
    const isWritable = tree.disk !== undefined;
    this.request = new RequestBuffer(isWritable ? WRITE_REQUEST_BYTES : REQUEST_BYTES);
    this.#attributesSeconds = isWritable ? CHANGING_SECONDS : VALID_SECONDS;
    this.#keptTexts = new KeptTexts(0, options.sharedTexts);
    const { request, reply } = this;
    this.#counter = options.stats && new RequestCounter(options.stats, request, reply);
    if (!isWritable) return;
    this.#writes = new WriteRequests({
      request,
      reply,
      tree,
      log,
      invalidations: options.directIo === true ? undefined : options.invalidations,
      validSeconds: CHANGING_SECONDS,
    });
  }

  /** Serves until the channel ends or `shouldStop` says so, which is asked after each request. */
  serve(channel: RequestChannel, shouldStop: () => boolean = () => false): void {
    const { request, reply } = this;
    const { disk } = this.#tree;
    const writes = this.#writes;
    const counter = this.#counter;
    if (writes !== undefined) writes.answersEarly = true;
    while (!shouldStop()) {
      const length = channel.receive(
        request.bytes,
        disk?.isUnflushed === true ? IDLE_FLUSH_MS : undefined,
      );
      if (length === 0) return;
      if (length === TIMED_OUT) {
        this.#flushUnasked();
        continue;
      }
      request.length = length;
      const receivedAt = counter === undefined ? 0 : performance.now();
      const replyLength = this.handle();
      if (replyLength !== NO_REPLY) {
        channel.send(reply.bytes, replyLength);
        counter?.count(replyLength, performance.now() - receivedAt);
      }
      writes?.complete();
      if (request.opcode === Opcode.INIT) this.#options.onReady?.();
      else if (disk?.isFlushOverdue === true) this.#flushUnasked();
    }
  }

  /** If it fails, it is tried again; whoever syncs is told. */
  #flushUnasked(): void {
    try {
      this.#tree.disk?.flush();
    } catch (error) {
      this.#log.report('flush', error);
    }
  }

  /**
   * Answers the request in {@link request} into {@link reply}.
   *
   * @returns bytes of the reply; 0 if there is to be none
   */
  handle(): number {
    const { request, reply } = this;
    if (request.length < Size.inHeader) return NO_REPLY;
    if (!request.isWellFormed) return reply.finish(request, Errno.EIO, 0);
    try {
      // The ones that are sent most, before all others.
      if (request.opcode === Opcode.READ) return this.#read();
      if (request.opcode === Opcode.WRITE && this.#writes !== undefined) {
        return this.#writes.write();
      }
      return this.#dispatch();
    } catch (error) {
      this.#log.report(`request ${request.opcode} of inode ${request.nodeId}`, error);
      return reply.finish(request, errnoOf(error), 0);
    }
  }

  #dispatch(): number {
    const { request } = this;
    switch (request.opcode) {
      case Opcode.LOOKUP:
        return this.#lookup();
      case Opcode.GETATTR:
        return this.#withNode((node) =>
          this.reply.putAttributes(this.#tree.attributes(node), this.#attributesSeconds),
        );
      case Opcode.READDIR:
      case Opcode.READDIRPLUS:
        return this.#readDirectory(request.opcode === Opcode.READDIRPLUS);
      case Opcode.OPEN:
        return this.#open();
      case Opcode.OPENDIR:
        return this.#openDirectory();
      case Opcode.LSEEK:
        return this.#seek();
      case Opcode.STATFS:
        return this.#statfs();
      case Opcode.INIT:
        return this.#init();
      case Opcode.RELEASE:
        this.#keptTexts.forget(request.u64(Argument.handle));
        return this.#finish(0);
      case Opcode.RELEASEDIR:
      case Opcode.DESTROY:
        return this.#finish(0);
      case Opcode.FORGET:
      case Opcode.BATCH_FORGET:
        return NO_REPLY;
      case Opcode.READLINK:
        return this.#finish(Errno.EINVAL);
      default:
        return this.#dispatchChange();
    }
  }

  /** Requests that change something, and those that are not known. */
  #dispatchChange(): number {
    const writes = this.#writes;
    const { opcode } = this.request;
    switch (opcode) {
      case Opcode.SETATTR:
        return writes?.setAttributes() ?? this.#finish(Errno.EROFS);
      case Opcode.FALLOCATE:
        return writes?.fallocate() ?? this.#finish(Errno.EROFS);
      case Opcode.FSYNC:
        return writes?.sync() ?? this.#finish(Errno.ENOSYS);
      case Opcode.FLUSH:
        return writes?.flush() ?? this.#finish(Errno.ENOSYS);
      case Opcode.WRITE:
        return this.#finish(Errno.EROFS);
      case Opcode.COPY_FILE_RANGE:
      case Opcode.SETXATTR:
      case Opcode.REMOVEXATTR:
        return this.#finish(writes === undefined ? Errno.EROFS : Errno.ENOSYS);
      case Opcode.SYMLINK:
      case Opcode.MKNOD:
      case Opcode.MKDIR:
      case Opcode.UNLINK:
      case Opcode.RMDIR:
      case Opcode.RENAME:
      case Opcode.RENAME2:
      case Opcode.LINK:
      case Opcode.CREATE:
      case Opcode.TMPFILE:
        return this.#finish(writes === undefined ? Errno.EROFS : Errno.EPERM);
      default:
        // The kernel remembers it and does not ask again. For GETXATTR, LISTXATTR, ACCESS
        // and INTERRUPT that saves every later request; all its defaults are what we want.
        return this.#finish(Errno.ENOSYS);
    }
  }

  #finish(errno: number, payloadBytes = 0): number {
    return this.reply.finish(this.request, errno, payloadBytes);
  }

  #withNode(put: (node: TreeNode) => number): number {
    const node = this.#tree.node(this.request.nodeId);
    return node === undefined ? this.#finish(Errno.ENOENT) : this.#finish(0, put(node));
  }

  #init(): number {
    const { request } = this;
    const major = request.u32(Argument.initMajor);
    const kernelMinor = request.u32(Argument.initMinor);
    if (major < FUSE_KERNEL_VERSION || kernelMinor < OLDEST_MINOR_VERSION) {
      this.#log.report('INIT', new Error(`the kernel's FUSE ${major}.${kernelMinor} is too old`));
      return this.#finish(Errno.EPROTO);
    }
    // A newer major version is answered with ours, and the kernel asks again.
    this.#flags = request.u32(Argument.initFlags) & WANTED_FLAGS;
    // A file that is opened without being asked about goes through the cache.
    const isCacheAll = this.#options.directIo !== true && !this.#tree.hasLiveTexts;
    if (!isCacheAll) this.#flags &= ~InitFlag.NO_OPEN_SUPPORT;
    if (this.#writes !== undefined) {
      // Whoever opens a file for writing that is only to be read has to hear of it.
      this.#flags &= ~InitFlag.NO_OPEN_SUPPORT;
      this.#flags |= request.u32(Argument.initFlags) & InitFlag.BIG_WRITES;
    }
    if (this.#options.agreedFlags !== undefined) {
      Atomics.store(this.#options.agreedFlags, 0, this.#flags);
    }
    const length = this.reply.putInit({
      minor: Math.min(kernelMinor, FUSE_KERNEL_MINOR_VERSION),
      maxReadahead: Math.max(request.u32(Argument.initMaxReadahead), MAX_READ_BYTES),
      flags: this.#flags,
      maxBackground: MAX_BACKGROUND,
      maxWrite: this.#writes === undefined ? 4096 : MAX_WRITE_BYTES,
      maxPages: MAX_PAGES,
    });
    return this.#finish(0, length);
  }

  #lookup(): number {
    const { request, reply } = this;
    const directory = this.#tree.node(request.nodeId);
    if (directory === undefined) return this.#finish(Errno.ENOENT);
    if (directory.kind !== 'directory') return this.#finish(Errno.ENOTDIR);
    const name = request.name();
    if (name === undefined) return this.#finish(Errno.EINVAL);
    let node: TreeNode | undefined;
    if (name === '.') node = directory;
    else if (name === '..') node = directory.parent;
    else node = directory.child(name);
    if (node === undefined) return this.#finish(0, reply.putNoEntry(VALID_SECONDS));
    return this.#finish(0, reply.putEntry(this.#tree.attributes(node), this.#valid));
  }

  /** How long the kernel may keep the name and the attributes of an entry. */
  get #valid(): { name: number; attributes: number } {
    return { name: VALID_SECONDS, attributes: this.#attributesSeconds };
  }

  /** ENOSYS spares every later OPENDIR and RELEASEDIR, and stands for the same flags. */
  #openDirectory(): number {
    if ((this.#flags & InitFlag.NO_OPENDIR_SUPPORT) !== 0) return this.#finish(Errno.ENOSYS);
    return this.#finish(0, this.reply.putOpen(OpenFlag.KEEP_CACHE | OpenFlag.CACHE_DIR));
  }

  /** ENOSYS spares every later OPEN and RELEASE, and stands for KEEP_CACHE. */
  #open(): number {
    const { request, reply } = this;
    if ((this.#flags & InitFlag.NO_OPEN_SUPPORT) !== 0) return this.#finish(Errno.ENOSYS);
    const node = this.#tree.node(request.nodeId);
    if (node?.kind !== 'file') return this.#finish(fileErrno(node));
    const isForWriting = (request.u32(Argument.openFlags) & ACCESS_MODE) !== 0;
    // The kernel looks at the mode, but not for root.
    if (isForWriting && !node.isWritable) return this.#finish(Errno.EROFS);
    const text = node.snapshot();
    if (text !== undefined) {
      return this.#finish(0, reply.putOpen(OpenFlag.DIRECT_IO, this.#keptTexts.keep(text)));
    }
    const isDirect = this.#options.directIo === true;
    return this.#finish(0, reply.putOpen(isDirect ? OpenFlag.DIRECT_IO : OpenFlag.KEEP_CACHE));
  }

  /** The hot path: nothing is allocated for reads of whole pages. */
  #read(): number {
    const { request, reply } = this;
    const node = this.#tree.node(request.nodeId);
    if (node?.kind !== 'file') return this.#finish(fileErrno(node));
    const offset = request.u64(Argument.readOffset);
    const wanted = request.u32(Argument.readSize);
    if (wanted > MAX_READ_BYTES) return this.#finish(Errno.EINVAL);
    try {
      if (node.isVolatile) return this.#readText(node, offset, wanted);
      const length = Math.max(0, Math.min(wanted, node.size - offset));
      if (length > 0) node.read(reply.payload(length), offset);
      if (node.disk !== undefined) this.#noteCached(node, node.disk);
      return this.#finish(0, length);
    } catch (error) {
      this.#log.report(`${Buffer.from(node.name).toString()}`, error);
      return this.#finish(errnoOf(error));
    }
  }

  #noteCached(node: FileNode, disk: WritableDisk): void {
    const isDirect = (this.request.u32(Argument.readOpenFlags) & O_DIRECT) !== 0;
    if (!isDirect && this.#options.directIo !== true) disk.noteCached(node);
  }

  #readText(node: FileNode, offset: number, wanted: number): number {
    const text = this.#keptTexts.at(this.request.u64(Argument.handle)) ?? node.snapshot()!;
    const length = Math.max(0, Math.min(wanted, text.size - offset));
    if (length > 0) text.read(this.reply.payload(length), offset);
    return this.#finish(0, length);
  }

  #readDirectory(withAttributes: boolean): number {
    const { request, reply } = this;
    const directory = this.#tree.node(request.nodeId);
    if (directory === undefined) return this.#finish(Errno.ENOENT);
    if (directory.kind !== 'directory') return this.#finish(Errno.ENOTDIR);
    const limit = Math.min(request.u32(Argument.readSize), MAX_READ_BYTES);
    let length = 0;
    for (let position = request.u64(Argument.readOffset); ; position++) {
      const listed = this.#tree.listed(directory, position);
      if (listed === undefined) break;
      const { node, name } = listed;
      let at = length;
      if (withAttributes) {
        if (at + Size.entryOut + direntBytes(name.length) > limit) break;
        // An entry of inode 0 gives no attributes: the kernel asks when somebody wants them.
        const known = listed.isChild && (node.kind === 'directory' || node.isCheap);
        at += known
          ? reply.putEntry(this.#tree.attributes(node), this.#valid, at)
          : reply.putNoEntry(0, at);
      }
      const { inode, mode } = node;
      const bytes = reply.putDirent({ inode, mode, name, next: position + 1 }, at, limit);
      if (bytes === 0) break;
      length = at + bytes;
    }
    return this.#finish(0, length);
  }

  #seek(): number {
    const { request } = this;
    const node = this.#tree.node(request.nodeId);
    if (node?.kind !== 'file') return this.#finish(fileErrno(node));
    const whence = request.u32(Argument.lseekWhence);
    if (whence !== Whence.SEEK_DATA && whence !== Whence.SEEK_HOLE) {
      return this.#finish(Errno.EINVAL);
    }
    const found = node.seek(request.u64(Argument.lseekOffset), whence);
    return found < 0 ? this.#finish(Errno.ENXIO) : this.#finish(0, this.reply.putOffset(found));
  }

  #statfs(): number {
    const blockBytes = 4096;
    const blocks = Math.ceil(this.#tree.bytes / blockBytes);
    const files = this.#tree.nodeCount;
    return this.#finish(0, this.reply.putStatfs({ blocks, files, blockBytes }));
  }
}
