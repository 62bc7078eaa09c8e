/**
 * The way that mounts take on macOS, as far as it can be gone on Linux: the command takes the platform
 * for macOS, and finds programs that answer as macOS's do.
 */

import {
  chmodSync,
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readFileSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { fileURLToPath } from 'node:url';
import { beforeEach, expect, it } from 'vitest';
import { isAlive } from '../../src/host/processes.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, run, tryRun } from '../support/qemu.ts';
import type { RunResult } from '../support/qemu.ts';
import { until } from '../support/until.ts';
import { mountBench } from './mount-support.ts';
import type { MountLine } from './mount-support.ts';

const PRELOAD = fileURLToPath(new URL('pretend-macos.cjs', import.meta.url));

/** macOS's programs, by what this system has. */
const PROGRAMS = {
  mount: `while read -r _ _ _ _ directory rest; do
  set -- \${rest#* - }
  case $1 in fuse*) type=osxfuse;; *) type=$1;; esac
  echo "$2 on $directory ($type, local, nodev, nosuid)"
done < /proc/self/mountinfo`,
  umount: `force=; [ "$1" = -f ] && { force=-l; shift; }
exec $SYSTEM_UMOUNT $force "$1"`,
  diskutil: 'echo "Unmount failed for $2" >&2; exit 1',
  lsof: 'printf "p4711\\ncFinder\\nf3\\n"',
};

describePeers(['root', '/dev/fuse', 'fuse-native', 'qemu-img'], 'a mount on macOS', () => {
  const bench = mountBench();
  beforeEach(() => {
    qemuImg('create', '-q', '-f', 'qcow2', bench.path('disk.qcow2'), '8M');
    mkdirSync(bench.path('bin'));
    for (const [name, script] of Object.entries(PROGRAMS)) {
      writeFileSync(bench.path('bin', name), `#!/bin/sh\n${script}\n`);
      chmodSync(bench.path('bin', name), 0o755);
    }
  });

  const environment = (): NodeJS.ProcessEnv => ({
    ...bench.environment,
    PATH: `${bench.path('bin')}:${process.env.PATH}`,
    SYSTEM_UMOUNT: run('which', ['umount']).trim(),
    NODE_OPTIONS: `--require=${PRELOAD}`,
  });

  function qcow2(...args: readonly string[]): RunResult {
    return tryRun(process.execPath, [bench.program, ...args], {
      cwd: bench.path(),
      env: environment(),
      timeoutMs: 30_000,
    });
  }

  function ok(...args: readonly string[]): string {
    const result = qcow2(...args);
    expect(result, args.join(' ')).toMatchObject({ exitCode: 0, stderr: '' });
    return result.stdout;
  }

  const mounts = (): MountLine[] => JSON.parse(ok('mounts', '--output=json')) as MountLine[];

  it('goes through fuse-native, is written, and unmounted by umount', () => {
    expect(ok('mount', '--rw', '-v', 'disk.qcow2', 'm')).toContain('channel: fuse-native\n');
    const fd = openSync(bench.path('m/disk.raw'), 'r+');
    writeSync(fd, 'written', 4096);
    fsyncSync(fd);
    const [mount, ...others] = mounts();
    expect(others).toEqual([]);
    expect(mount).toMatchObject({ status: 'alive', directory: bench.path('m') });
    const busy = qcow2('unmount', 'm');
    expect(busy.exitCode).toBe(1);
    expect(busy.stderr).toMatch(
      /m: it is in use by Finder \(process 4711\); --force cuts them off/,
    );
    closeSync(fd);
    expect(ok('unmount', 'm')).toBe('');
    expect(isAlive(mount!.pid, undefined)).toBe(false);
    expect(existsSync(bench.path('m'))).toBe(false);
    const raw = bench.path('raw');
    qemuImg('convert', '-O', 'raw', bench.path('disk.qcow2'), raw);
    expect(readFileSync(raw).toString('latin1', 4096, 4103)).toBe('written');
    qemuImg('check', '-q', bench.path('disk.qcow2'));
  });

  it('whose process was killed is found dead and cleared away', async () => {
    ok('mount', 'disk.qcow2', 'm');
    const { pid } = mounts()[0]!;
    process.kill(pid, 'SIGKILL');
    await until(() => !isAlive(pid, undefined));
    expect(mounts()).toMatchObject([{ status: 'dead' }]);
    ok('mount', 'disk.qcow2', 'm');
    expect(mounts()).toMatchObject([{ status: 'alive' }]);
    ok('unmount', '--force', 'm');
    expect(mounts()).toEqual([]);
    expect(existsSync(bench.path('m'))).toBe(false);
  });

  it('ends on SIGTERM, also in use', async () => {
    ok('mount', 'disk.qcow2', 'm');
    const { pid } = mounts()[0]!;
    const fd = openSync(bench.path('m/disk.raw'), 'r');
    try {
      process.kill(pid, 'SIGTERM');
      await until(() => !isAlive(pid, undefined));
    } finally {
      expect(() => closeSync(fd)).toThrow(/ECONNABORTED|ENOTCONN/);
    }
    expect(existsSync(bench.path('m'))).toBe(false);
  });

  it.each([
    [['mount', '--fs', 'disk.qcow2', 'm'], /^qcow2: mount --fs needs Linux; .*hdiutil attach/],
    [['mount', '--channel=kernel', 'disk.qcow2', 'm'], /^qcow2: the channel kernel needs Linux; /],
    [['unmount', '--lazy', 'm'], /^qcow2: --lazy needs Linux; wait until nobody/],
  ])('%j says in one line what cannot be', (args, says) => {
    const { exitCode, stderr } = qcow2(...args);
    expect(exitCode).toBe(1);
    expect(stderr).toMatch(says);
    expect(stderr.trim()).not.toContain('\n');
    expect(existsSync(bench.path('m'))).toBe(false);
  });
});
