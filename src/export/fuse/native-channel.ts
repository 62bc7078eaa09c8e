/**
 * The other channel: libfuse 2 through the optional package fuse-native.
 *
 * It answers the same questions out of the same tree, but by path and with a hop from libfuse's
 * thread to the main thread for each, which makes it the slower one. libfuse 2 knows no SEEK_HOLE,
 * so on this channel sparse files look as if they held zeroes, and fuse-native no fallocate, so that
 * nothing can be discarded. Nor can it tell the kernel to drop pages: where something can be written,
 * nothing is cached, so that the files that show the same bytes agree.
 */

import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { constants } from 'node:os';
import { dirname, join } from 'node:path';
import { Qcow2Error } from '../../errors.ts';
import type { ErrorLog } from './error-log.ts';
import type { FileTree } from './file-tree.ts';
import { nativeOperations } from './native-operations.ts';
import type { NativeOperations } from './native-operations.ts';
import { missingFuse, nativeOptions } from './native-options.ts';
import type { NativeMountOptions } from './native-options.ts';

/** A flag of dlopen(3): never unload. */
const RTLD_NODELETE = 0x1000;
/** How long libfuse may keep names and attributes, in seconds. */
const VALID_SECONDS = 365 * 86_400;
/** How long it may keep attributes where something is written. */
const CHANGING_SECONDS = 1;
/** Options of libfuse for mounts that accept writes. */
const UNCACHED = ['direct_io', 'big_writes'];

interface NativeMount {
  mount(callback: (error?: Error | null) => void): void;
}

type NativeConstructor = new (
  directory: string,
  operations: NativeOperations,
  options: Record<string, unknown>,
) => NativeMount;

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
  const isWritable = tree.disk !== undefined;
  const mount = new Fuse(directory, nativeOperations(tree, log), {
    ...nativeOptions({ ...options, flags: [...options.flags, ...(isWritable ? UNCACHED : [])] }),
    allowOther,
    defaultPermissions: true,
    kernelCache: !isWritable,
    entryTimeout: VALID_SECONDS,
    attrTimeout: isWritable ? CHANGING_SECONDS : VALID_SECONDS,
    // A map may take a while; nothing here waits for anything but the disk.
    timeout: false,
  });
  await new Promise<void>((resolve, reject) => {
    mount.mount((error) => {
      if (error === null || error === undefined) resolve();
      else reject(refusal(directory, error));
    });
  });
}

function refusal(directory: string, error: Error): Qcow2Error {
  const missing = missingFuse(existsSync);
  if (missing === undefined) {
    return new Qcow2Error('HOST', `cannot mount: ${error.message}`, { file: directory });
  }
  const { problem, hint } = missing;
  return new Qcow2Error('MISSING_DEPENDENCY', problem, { hint, cause: error });
}

/** The class that fuse-native exports. */
function loadFuseNative(): NativeConstructor {
  const require = createRequire(import.meta.url);
  // Of the addon that was built at installation and the one that is shipped, the latter works.
  if (process.platform === 'linux') process.env.PREBUILDS_ONLY ??= '1';
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
