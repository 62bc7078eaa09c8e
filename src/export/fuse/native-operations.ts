/** The operations that fuse-native is given: the same answers as on the kernel's channel, by path. */

import { Errno, errnoOf, platformErrno } from './errno.ts';
import type { ErrorLog } from './error-log.ts';
import { fileErrno } from './file-tree.ts';
import type { FileTree, TreeNode } from './file-tree.ts';
import { ACCESS_MODE } from './protocol.ts';
import { KeptTexts } from './sources.ts';

/** Handles of texts; those of other files are their inode numbers. */
const FIRST_TEXT_HANDLE = 2 ** 30;

/** Error numbers are negative here; what follows depends on the operation. */
type Callback = (errno: number, ...result: unknown[]) => void;

interface Stat {
  mode: number;
  uid: number;
  gid: number;
  size: number;
  dev: number;
  nlink: number;
  ino: number;
  rdev: number;
  blksize: number;
  blocks: number;
  atime: Date;
  mtime: Date;
  ctime: Date;
}

/** The operations that fuse-native is given. */
export interface NativeOperations {
  getattr(path: string, callback: Callback): void;
  readdir(path: string, callback: Callback): void;
  open(path: string, flags: number, callback: Callback): void;
  read(
    path: string,
    handle: number,
    target: Uint8Array,
    length: number,
    offset: number,
    callback: Callback,
  ): void;
  release(path: string, handle: number, callback: Callback): void;
  write(
    path: string,
    handle: number,
    source: Uint8Array,
    length: number,
    offset: number,
    callback: Callback,
  ): void;
  fsync(path: string, handle: number, dataOnly: boolean, callback: Callback): void;
  truncate(path: string, size: number, callback: Callback): void;
  ftruncate(path: string, handle: number, size: number, callback: Callback): void;
  utimens(path: string, accessedAt: unknown, modifiedAt: unknown, callback: Callback): void;
  statfs(path: string, callback: Callback): void;
}

/** Answers out of a tree. None of its methods throws. */
class Answers {
  readonly tree: FileTree;
  readonly #log: ErrorLog;

  constructor(tree: FileTree, log: ErrorLog) {
    this.tree = tree;
    this.#log = log;
  }

  /** Runs `answer` for the node at a path; a number, and whatever it throws, is an error. */
  withNode(path: string, callback: Callback, answer: (node: TreeNode) => unknown[] | number): void {
    let result: unknown[] | number;
    try {
      const node = this.tree.resolve(path);
      result = node === undefined ? Errno.ENOENT : answer(node);
    } catch (error) {
      this.#log.report(path, error);
      result = errnoOf(error);
    }
    if (typeof result === 'number') callback(-platformErrno(result));
    else callback(0, ...result);
  }

  /** Moves bytes; this channel has their number in the place of the error number. */
  transfer(path: string, callback: Callback, move: () => number): void {
    let result: number;
    try {
      result = move();
    } catch (error) {
      this.#log.report(path.replace(/^.*\//, ''), error);
      result = -platformErrno(errnoOf(error));
    }
    callback(result);
  }
}

/** fuse-native's operations over a tree. None of them throws. */
export function nativeOperations(tree: FileTree, log: ErrorLog): NativeOperations {
  const answers = new Answers(tree, log);
  return { ...readOperations(answers), ...writeOperations(answers) };
}

type WriteOperations = Pick<
  NativeOperations,
  'write' | 'fsync' | 'truncate' | 'ftruncate' | 'utimens'
>;

function readOperations(answers: Answers): Omit<NativeOperations, keyof WriteOperations> {
  const { tree } = answers;
  /** What volatile files hold for those who opened them, by handle. */
  const kept = new KeptTexts(FIRST_TEXT_HANDLE);
  return {
    getattr: (path, callback) => answers.withNode(path, callback, (node) => [statOf(tree, node)]),
    readdir: (path, callback) =>
      answers.withNode(path, callback, (node) => {
        if (node.kind !== 'directory') return Errno.ENOTDIR;
        const names = node.children.map((child) => Buffer.from(child.name).toString());
        return [['.', '..', ...names], []];
      }),
    open: (path, flags, callback) =>
      answers.withNode(path, callback, (node) => {
        const isForWriting = (flags & ACCESS_MODE) !== 0;
        if (isForWriting && !(node.kind === 'file' && node.isWritable)) return Errno.EROFS;
        const text = node.kind === 'file' ? node.snapshot() : undefined;
        return [text === undefined ? node.inode : kept.keep(text)];
      }),
    read: (path, handle, target, length, offset, callback) => {
      const node = kept.at(handle) ?? tree.node(handle);
      if (node === undefined || ('kind' in node && node.kind !== 'file')) {
        callback(-fileErrno(node));
        return;
      }
      answers.transfer(path, callback, () => {
        const count = Math.max(0, Math.min(length, node.size - offset));
        if (count > 0) node.read(target.subarray(0, count), offset);
        return count;
      });
    },
    release: (_path, handle, callback) => {
      kept.forget(handle);
      callback(0);
    },
    statfs: (_path, callback) => {
      const blocks = Math.min(Math.ceil(tree.bytes / 4096), 0xffff_ffff);
      const files = tree.nodeCount;
      callback(0, { bsize: 4096, frsize: 4096, blocks, files, namemax: 255 });
    },
  };
}

function writeOperations(answers: Answers): WriteOperations {
  const { tree } = answers;
  const truncate = (path: string, size: number, callback: Callback): void =>
    answers.withNode(path, callback, (node) =>
      node.kind === 'file' && node.isWritable && node.size === size ? [] : Errno.EPERM,
    );
  return {
    write: (path, handle, source, length, offset, callback) => {
      const node = tree.node(handle);
      if (node?.kind !== 'file' || !node.isWritable) {
        callback(-(fileErrno(node) || Errno.EROFS));
        return;
      }
      answers.transfer(path, callback, () => {
        const count = Math.max(0, Math.min(length, node.size - offset));
        if (count === 0 && length > 0) return -Errno.ENOSPC;
        node.disk!.write(source.subarray(0, count), node.offset + offset);
        return count;
      });
    },
    fsync: (path, _handle, _dataOnly, callback) =>
      answers.withNode(path, callback, (node) => {
        if (node.kind === 'file' && node.isWritable) tree.disk!.flush();
        return [];
      }),
    truncate,
    ftruncate: (path, _handle, size, callback) => truncate(path, size, callback),
    utimens: (path, _accessedAt, modifiedAt, callback) =>
      answers.withNode(path, callback, (node) => {
        if (tree.disk === undefined) return Errno.EROFS;
        const isTold = typeof modifiedAt === 'number' && node.kind === 'file';
        if (isTold && node.disk !== undefined) node.disk.modifiedMs = modifiedAt;
        return [];
      }),
  };
}

function statOf(tree: FileTree, node: TreeNode): Stat {
  const attributes = tree.attributes(node);
  const time = new Date(attributes.modifiedMs);
  return {
    mode: attributes.mode,
    uid: attributes.uid,
    gid: attributes.gid,
    size: attributes.size,
    dev: 0,
    nlink: attributes.linkCount,
    ino: attributes.inode,
    rdev: 0,
    blksize: 4096,
    blocks: attributes.blocks,
    atime: time,
    mtime: time,
    ctime: time,
  };
}
