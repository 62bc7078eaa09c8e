/**
 * Builds this very package on an ext4 filesystem, on a loop device over a writable mount: sources and
 * tools are unpacked there, bundled, and where there is time for it also type-checked and cloned with
 * git. Then the tools are removed, and the filesystem trimmed. Everything is held against what is read
 * after the mount is gone and another has taken its place.
 */

import { execFile } from 'node:child_process';
import { existsSync, mkdirSync, realpathSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { run } from '../support/qemu.ts';
import { Random } from '../support/random.ts';
import { detachLoop, StressMount } from './rounds.ts';
import type { RoundRequest } from './rounds.ts';

const ROOT = join(import.meta.dirname, '../..');
const MiB = 1024 * 1024;
/** Longest that one step may take. */
const STEP_MS = 300_000;

/** What is unpacked, and what of node_modules is needed to build it. */
const SOURCES = [
  'src',
  'tools',
  'build.mjs',
  'package.json',
  'tsconfig.json',
  'tsconfig.build.json',
];
const TOOLS = ['esbuild', '@esbuild', 'fzstd', '@bokuweb', 'koffi', '@koromix'];
const TYPE_TOOLS = ['typescript', '@types', 'undici-types'];

/** A build that is asked for. */
export interface BuildRequest extends RoundRequest {
  /** Also check types, pack, and clone the repository, where there is one. */
  isThorough: boolean;
}

/** Builds, and looks at it again; what was done. @throws {Error} what was found wrong */
export async function runBuild(request: BuildRequest): Promise<string> {
  const diskBytes = (request.isThorough ? 512 : 128) * MiB;
  const bench = new StressMount(request, new Random(request.seed), { diskBytes });
  try {
    return await buildAndVerify(bench, request);
  } finally {
    bench.clear();
  }
}

async function buildAndVerify(bench: StressMount, { isThorough }: BuildRequest): Promise<string> {
  const files = bench.path('files');
  mkdirSync(files);
  bench.mount();
  const loop = attach(bench);
  let sums: string;
  try {
    run('mkfs.ext4', ['-q', '-F', loop]);
    run('mount', [loop, files]);
    await unpack(files, isThorough ? [...TOOLS, ...TYPE_TOOLS] : TOOLS);
    await step(files, `'${process.execPath}' build.mjs ${isThorough ? '' : '--fast'}`);
    await step(files, `'${process.execPath}' dist/cli.cjs --version > version`);
    if (isThorough) await clone(files);
    await step(files, 'rm -rf node_modules && sync -f .');
    // fuse-native cannot free what has been removed.
    if (bench.channel === 'kernel') await step(files, 'fstrim .');
    sums = checksums(files);
    run('umount', [files]);
    run('e2fsck', ['-fn', loop]);
  } finally {
    await detachLoop(loop);
  }
  run('cp', ['--sparse=always', bench.path('m/disk.raw'), bench.path('written.raw')]);
  bench.unmount();
  run('qemu-img', ['check', '-q', bench.image]);
  const formats = ['-f', 'qcow2', '-F', 'raw'];
  run('qemu-img', ['compare', '-q', ...formats, bench.image, bench.path('written.raw')]);
  await verify(bench, sums);
  const count = sums.split('\n').length - 1;
  return `a package built on a filesystem, ${count} files verified (${bench.story})`;
}

function attach(bench: StressMount): string {
  return run('losetup', ['--find', '--show', bench.path('m/disk.raw')]).trim();
}

/** The same files, through another mount. */
async function verify(bench: StressMount, sums: string): Promise<void> {
  const files = bench.path('files');
  bench.mount();
  const loop = attach(bench);
  try {
    run('mount', [loop, files]);
    const found = checksums(files);
    run('umount', [files]);
    if (found !== sums) throw new Error(`other files than were written:\n${found}\n${sums}`);
  } finally {
    await detachLoop(loop);
  }
  bench.unmount();
  run('qemu-img', ['check', '-q', bench.image]);
}

async function unpack(files: string, tools: readonly string[]): Promise<void> {
  const packages = tools
    .map((name) => `node_modules/${name}`)
    .filter((path) => existsSync(join(ROOT, path)));
  const root = realpathSync(ROOT);
  const names = [...SOURCES, ...packages].join(' ');
  await step(files, `tar -C '${root}' -chf - ${names} | tar -xf -`);
}

/** A clone of the repository, looked through by git; packed and checked out there. */
async function clone(files: string): Promise<void> {
  if (!existsSync(join(ROOT, '.git'))) return;
  const git = `git -c safe.directory='*'`;
  await step(files, `${git} clone -q --no-local '${realpathSync(ROOT)}' clone`);
  await step(files, `cd clone && ${git} fsck --no-progress && ${git} gc -q && ${git} status -s`);
}

/** A shell's commands, in the directory; this thread goes on meanwhile. */
async function step(directory: string, script: string): Promise<void> {
  await promisify(execFile)('sh', ['-ec', script], { cwd: directory, timeout: STEP_MS });
}

/** Checksums of all files, in their order. */
function checksums(directory: string): string {
  const script = 'find . -type f -print0 | sort -z | xargs -0 sha256sum';
  return run('sh', ['-ec', script], { cwd: directory, timeoutMs: STEP_MS });
}
