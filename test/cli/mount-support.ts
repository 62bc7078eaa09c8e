/**
 * Mounts for tests: the built command with records of its own, and after each test the certainty
 * that nothing is left mounted, running or attached.
 */

import { spawn } from 'node:child_process';
import type { ChildProcess } from 'node:child_process';
import { createRequire } from 'node:module';
import { cpSync, existsSync, mkdirSync, truncateSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, expect } from 'vitest';
import { listMounts } from '../../src/host/mountinfo.ts';
import { isAlive } from '../../src/host/processes.ts';
import { run, tryRun } from '../support/qemu.ts';
import type { RunResult } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';

export const CLI = fileURLToPath(new URL('../../dist/cli.cjs', import.meta.url));

/** What `mounts --output=json` says of a mount. */
export interface MountLine {
  directory: string;
  image: string;
  status: string;
  user: string;
  uid: number;
  since: string;
  pid: number;
  channel: string;
  access: string;
  log: string | null;
}

/** The command, in a temporary directory of the test that is running. */
export class MountBench {
  readonly #directory: () => string;
  readonly #children: ChildProcess[] = [];

  constructor(directory: () => string) {
    this.#directory = directory;
  }

  path(...names: readonly string[]): string {
    return join(this.#directory(), ...names);
  }

  get environment(): NodeJS.ProcessEnv {
    return { ...process.env, QCOW2_STATE_DIR: this.path('state') };
  }

  /** The program that is run; a test may take another copy. */
  program = CLI;

  /** `qcow2 ARGS…` in the temporary directory. */
  qcow2(...args: readonly string[]): RunResult {
    const options = { cwd: this.path(), env: this.environment, timeoutMs: 30_000 };
    return tryRun(process.execPath, [this.program, ...args], options);
  }

  /** The same; it must succeed. Returns its output. */
  ok(...args: readonly string[]): string {
    const result = this.qcow2(...args);
    expect(result, args.join(' ')).toMatchObject({ exitCode: 0, stderr: '' });
    return result.stdout;
  }

  /** The mounts of the test; root is told those of others too. */
  mounts(): MountLine[] {
    const lines = JSON.parse(this.ok('mounts', '--output=json')) as MountLine[];
    return lines.filter(({ directory }) => directory.startsWith(this.path()));
  }

  /** The only mount there is. */
  mount(): MountLine {
    const lines = this.mounts();
    expect(lines).toHaveLength(1);
    return lines[0]!;
  }

  /** A program in the background; ended with the test. */
  start(program: string, args: readonly string[]): ChildProcess {
    const child = spawn(program, args, {
      cwd: this.path(),
      env: this.environment,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.#children.push(child);
    return child;
  }

  /** Ends everything, by force if it must be, and tells what had been left. */
  clear(): string[] {
    for (const child of this.#children.splice(0)) child.kill('SIGKILL');
    const pids = existsSync(this.path('state')) ? this.mounts().map(({ pid }) => pid) : [];
    this.qcow2('unmount', '--all', '--force');
    const mounts = listMounts().filter(({ directory }) => directory.startsWith(this.path()));
    for (const { directory } of mounts) tryRun('umount', ['-l', directory]);
    return [
      ...mounts.map(({ directory }) => `mounted: ${directory}`),
      ...pids.filter((pid) => isAlive(pid, undefined)).map((pid) => `running: ${pid}`),
    ];
  }
}

/**
 * Copies the built command to a directory of which no package can be found, as if the optional
 * ones were not installed. Returns the path of the program.
 */
export function copyWithoutPackages(directory: string): string {
  cpSync(dirname(CLI), directory, {
    recursive: true,
    filter: (path) => !path.includes('types'),
  });
  writeFileSync(join(directory, 'package.json'), '{ "type": "module" }');
  return join(directory, 'cli.cjs');
}

/** For use inside a `describe`: a bench for each test, cleared after it. */
export function mountBench(): MountBench {
  const bench = new MountBench(temporaryDirectoryPerTest());
  beforeEach(() => {
    bench.program = CLI;
    mkdirSync(bench.path('state'), { mode: 0o700 });
  });
  afterEach(() => {
    expect(bench.clear()).toEqual([]);
  });
  return bench;
}

/** The channels that can be tried here. */
export function availableChannels(): ('kernel' | 'fuse-native')[] {
  try {
    createRequire(import.meta.url).resolve('fuse-native');
    return ['kernel', 'fuse-native'];
  } catch {
    return ['kernel'];
  }
}

const MiB = 1024 * 1024;

/** Where the partitions of {@link makeDisk} lie, in bytes. */
export const PARTITIONS = {
  boot: { offset: 1 * MiB, length: 4 * MiB, file: '1-boot.raw' },
  root: { offset: 8 * MiB, length: 24 * MiB, file: '2-root files.raw' },
} as const;
export const DISK_BYTES = 40 * MiB;

/** What the file `numbers` of {@link makeDisk} holds. */
export const NUMBERS = Array.from({ length: 100_000 }, (_, index) => index).join('\n');

/**
 * A raw disk with a GPT, random bytes in its first partition, and in its second an ext4 filesystem
 * with files in it; much of it is holes.
 */
export function makeDisk(path: string): void {
  writeFileSync(path, '');
  truncateSync(path, DISK_BYTES);
  const { boot, root } = PARTITIONS;
  const layout = [
    'label: gpt',
    `start=${boot.offset / 512}, size=${boot.length / 512}, type=uefi, name=boot`,
    `start=${root.offset / 512}, size=${root.length / 512}, type=linux, name="root files"`,
  ];
  run('sfdisk', ['--quiet', path], { input: `${layout.join('\n')}\n` });
  const files = `${path}.files`;
  run('mkdir', [files]);
  writeFileSync(join(files, 'hello.txt'), 'hello from inside\n');
  writeFileSync(join(files, 'numbers'), NUMBERS);
  const size = `${root.length / 1024}k`;
  run('mkfs.ext4', ['-q', '-F', '-d', files, '-E', `offset=${root.offset}`, path, size]);
  const copy = ['of=' + path, 'bs=1M', 'conv=notrunc', 'status=none'];
  run('dd', ['if=/dev/urandom', ...copy, 'count=2', 'seek=1']);
}
