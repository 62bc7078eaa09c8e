/** An overlay that a mount makes and never comes to use goes again; any other stays as it is. */

import { existsSync, lstatSync, readFileSync, symlinkSync } from 'node:fs';
import { beforeEach, describe, expect, it } from 'vitest';
import { describePeers } from '../support/peers.ts';
import { qemuImg, tryRun } from '../support/qemu.ts';
import type { RunResult } from '../support/qemu.ts';
import { availableChannels, mountBench } from './mount-support.ts';

describePeers(['root', '/dev/fuse', 'unshare', 'qemu-img'], 'mount --overlay', () => {
  const bench = mountBench();
  beforeEach(() => void qemuImg('create', '-q', '-f', 'qcow2', bench.path('disk.qcow2'), '4M'));

  /** A mount with arguments before and after, where there is something else in place of /dev/fuse. */
  function mountWithoutDevice(...args: readonly string[]): RunResult {
    const script = 'mount --bind /dev/null /dev/fuse && exec "$@"';
    const command = [process.execPath, bench.program, 'mount', ...args];
    return tryRun('unshare', ['-m', 'sh', '-c', script, 'sh', ...command], {
      cwd: bench.path(),
      env: bench.environment,
    });
  }

  describe.each(availableChannels())('through %s that fails', (channel) => {
    const failing: [string, () => RunResult, RegExp][] = [
      [
        'for want of the partition',
        () => mount('--partition', '7', 'disk.qcow2', 'm'),
        /no partition|partition 7/,
      ],
      ['for want of files', () => mount('--fs', 'disk.qcow2', 'm'), /no filesystem was recognised/],
      [
        'in the kernel',
        () => mountWithoutDevice(...options(), 'disk.qcow2', 'm'),
        /cannot mount|does not let|does not load|not mount/,
      ],
    ];
    const options = (): string[] => ['--channel', channel, '--overlay', 'new.qcow2'];
    const mount = (...args: readonly string[]): RunResult =>
      bench.qcow2('mount', ...options(), ...args);

    // The channels differ in how they open and close the image, not in what comes after that.
    const cases = channel === 'kernel' ? failing : failing.slice(-1);
    it.each(cases)('%s leaves none that is new, and one of before as it was', (_, act, says) => {
      const fails = (): void => {
        const { exitCode, stderr } = act();
        expect({ exitCode, lines: stderr.trim().split('\n').length }, stderr).toEqual({
          exitCode: 1,
          lines: 1,
        });
        expect(stderr).toMatch(says);
        expect(existsSync(bench.path('m'))).toBe(false);
      };
      fails();
      expect(existsSync(bench.path('new.qcow2'))).toBe(false);
      bench.ok('create', '-q', '-f', 'qcow2', '-b', 'disk.qcow2', '-F', 'qcow2', 'new.qcow2');
      const before = readFileSync(bench.path('new.qcow2'));
      fails();
      expect(readFileSync(bench.path('new.qcow2')).equals(before)).toBe(true);
    });

    it('not, keeps one that is new and empty', () => {
      expect(mount('disk.qcow2', 'm').exitCode).toBe(0);
      bench.ok('unmount', 'm');
      qemuImg('check', '-q', bench.path('new.qcow2'));
    });
  });

  it('that fails leaves a symbolic link to nowhere one', () => {
    symlinkSync('elsewhere.qcow2', bench.path('link.qcow2'));
    const { exitCode } = bench.qcow2('mount', '--overlay=link.qcow2', '--fs', 'disk.qcow2', 'm');
    expect(exitCode).toBe(1);
    expect(lstatSync(bench.path('link.qcow2')).isSymbolicLink()).toBe(true);
    expect(existsSync(bench.path('elsewhere.qcow2'))).toBe(false);
  });
});
