/**
 * The other channel: libfuse 2 through the optional package fuse-native.
 *
 * It answers the same questions out of the same tree, but by path and with a hop from libfuse's
 * thread to the main thread for each, which makes it the slower one. libfuse 2 knows no SEEK_HOLE,
 * so on this channel sparse files look as if they held zeroes.
 */

import { createRequire } from 'node:module';
import { constants } from 'node:os';
import { dirname, join } from 'node:path';
import { Qcow2Error } from '../../errors.ts';
import { Errno, errnoOf } from './errno.ts';
import type { ErrorLog } from './error-log.ts';
import { fileErrno } from './file-tree.ts';
import type { FileTree, TreeNode } from './file-tree.ts';

/** A flag of dlopen(3): never unload. */
const RTLD_NODELETE = 0x1000;
/** How long libfuse may keep names and attributes, in seconds. */
const VALID_SECONDS = 365 * 86_400;
/** The C side of fuse-native copies its options into so many bytes. */
const MAX_OPTION_BYTES = 1000;

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
  statfs(path: string, callback: Callback): void;
}

interface NativeMount {
  mount(callback: (error?: Error | null) => void): void;
}

type NativeConstructor = new (
  directory: string,
  operations: NativeOperations,
  options: Record<string, unknown>,
) => NativeMount;

/** What {@link mountNative} mounts where. */
export interface NativeMountOptions {
  directory: string;
  source: string;
  subtype: string;
  /** Names of mount flags. */
  flags: readonly string[];
  allowOther: boolean;
}

/** fuse-native's operations over a tree. None of them throws. */
export function nativeOperations(tree: FileTree, log: ErrorLog): NativeOperations {
  /** Runs `answer` for the node at a path; a number, and whatever it throws, is an error. */
  function withNode(
    path: string,
    callback: Callback,
    answer: (node: TreeNode) => unknown[] | number,
  ): void {
    let result: unknown[] | number;
    try {
      const node = tree.resolve(path);
      result = node === undefined ? Errno.ENOENT : answer(node);
    } catch (error) {
      log.report(path, error);
      result = errnoOf(error);
    }
    if (typeof result === 'number') callback(-result);
    else callback(0, ...result);
  }
  return {
    getattr: (path, callback) => withNode(path, callback, (node) => [statOf(tree, node)]),
    readdir: (path, callback) =>
      withNode(path, callback, (node) => {
        if (node.kind !== 'directory') return Errno.ENOTDIR;
        const names = node.children.map((child) => Buffer.from(child.name).toString());
        return [['.', '..', ...names], []];
      }),
    open: (path, flags, callback) => {
      // The access mode is the two lowest bits; 0 is O_RDONLY.
      if ((flags & 3) !== 0) callback(-Errno.EROFS);
      else withNode(path, callback, (node) => [node.inode]);
    },
    read: (_path, handle, target, length, offset, callback) => {
      const node = tree.node(handle);
      if (node?.kind !== 'file') {
        callback(-fileErrno(node));
        return;
      }
      try {
        const count = Math.max(0, Math.min(length, node.size - offset));
        if (count > 0) node.read(target.subarray(0, count), offset);
        // This channel has the number of bytes in the place of the error number.
        callback(count);
      } catch (error) {
        log.report(Buffer.from(node.name).toString(), error);
        callback(-errnoOf(error));
      }
    },
    release: (_path, _handle, callback) => callback(0),
    statfs: (_path, callback) => {
      const blocks = Math.min(Math.ceil(tree.bytes / 4096), 0xffff_ffff);
      const files = tree.nodeCount;
      callback(0, { bsize: 4096, frsize: 4096, blocks, files, namemax: 255 });
    },
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

/**
 * Mounts a tree through fuse-native. Only on the main thread: it uses libuv's default loop.
 *
 * @throws {Qcow2Error} `MISSING_DEPENDENCY` if it is not installed or does not load, `HOST` if it
 * cannot mount
 */
export async function mountNative(
  tree: FileTree,
  log: ErrorLog,
  options: NativeMountOptions,
): Promise<void> {
  const Fuse = loadFuseNative();
  const { directory, allowOther } = options;
  const mount = new Fuse(directory, nativeOperations(tree, log), {
    ...fuseOptions(options),
    allowOther,
    defaultPermissions: true,
    kernelCache: true,
    entryTimeout: VALID_SECONDS,
    attrTimeout: VALID_SECONDS,
    // A map may take a while; nothing here waits for anything but the disk.
    timeout: false,
  });
  await new Promise<void>((resolve, reject) => {
    mount.mount((error) => {
      if (error === null || error === undefined) resolve();
      else reject(new Qcow2Error('HOST', `cannot mount: ${error.message}`, { file: directory }));
    });
  });
}

/** fuse-native has no options for flags, but passes those of the name and type on as they are. */
function fuseOptions({ source, subtype, flags }: NativeMountOptions): Record<string, string> {
  const room = MAX_OPTION_BYTES - flags.join(',').length - subtype.length - 200;
  const name = source.length > room ? source.slice(-room) : source;
  return {
    fsname: name.replace(/[\\,]/g, '\\$&'),
    subtype: [subtype, ...flags].join(','),
  };
}

/** The class that fuse-native exports. */
function loadFuseNative(): NativeConstructor {
  const require = createRequire(import.meta.url);
  // Of the addon that was built at installation and the one that is shipped, the latter works.
  process.env.PREBUILDS_ONLY ??= '1';
  try {
    loadShippedLibfuse(dirname(require.resolve('fuse-native/package.json')));
    return require('fuse-native') as NativeConstructor;
  } catch (error) {
    const isMissing = (error as NodeJS.ErrnoException).code === 'MODULE_NOT_FOUND';
    const problem = isMissing
      ? 'the channel fuse-native needs the optional package fuse-native'
      : `the package fuse-native does not load: ${firstLine(error)}`;
    const hint = isMissing ? 'install it with: npm install fuse-native' : undefined;
    throw new Qcow2Error('MISSING_DEPENDENCY', problem, { hint, cause: error });
  }
}

/**
 * The addon wants `libfuse.so.2`, which few systems have any more. The package ships one, but not
 * where the linker looks; it is found all the same if it has been loaded before.
 */
function loadShippedLibfuse(packageFolder: string): void {
  if (process.platform !== 'linux') return;
  const library = join(packageFolder, 'prebuilds', `linux-${process.arch}`, 'libfuse.so');
  try {
    process.dlopen({ exports: {} }, library, constants.dlopen.RTLD_NOW | RTLD_NODELETE);
  } catch {
    // Always thrown, because it is not an addon; thanks to the flag it stays loaded none the less.
  }
}

function firstLine(error: unknown): string {
  return String(error instanceof Error ? error.message : error).split('\n')[0]!;
}
