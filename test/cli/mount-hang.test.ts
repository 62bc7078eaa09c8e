/** Mounts that hang: unmount says so, and unmount --force ends them, whatever they wait for. */

import type { ChildProcess } from 'node:child_process';
import {
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { beforeEach, describe, expect, it } from 'vitest';
import { listMounts } from '../../src/host/mountinfo.ts';
import { hasThreadsLeft, isAlive } from '../../src/host/processes.ts';
import { describePeers, itPeers } from '../support/peers.ts';
import { qemuImg, qemuIo, run, tryRun } from '../support/qemu.ts';
import { until } from '../support/until.ts';
import { availableChannels, mountBench } from './mount-support.ts';

/** Longest that ending a mount may take on a busy machine: "within seconds". */
const SECONDS = 15_000;

describePeers(['root', '/dev/fuse', 'qemu-img', 'qemu-io'], 'a mount that hangs', () => {
  const bench = mountBench();
  beforeEach(() => {
    qemuImg('create', '-q', '-f', 'qcow2', bench.path('disk.qcow2'), '64M');
    qemuIo(bench.path('disk.qcow2'), ['write -P 7 0 64M']);
  });

  /** A program that reads from the mount; its exit code once it has ended. */
  function startReader(): { child: ChildProcess; ended: Promise<number | null> } {
    const child = bench.start('dd', [
      'if=m/disk.raw',
      'of=/dev/null',
      'bs=1M',
      'skip=8',
      'count=40',
    ]);
    const ended = new Promise<number | null>((resolve) => child.once('exit', resolve));
    return { child, ended };
  }

  const stateOf = (pid: number): string =>
    /\) (\w)/.exec(readFileSync(`/proc/${pid}/stat`, 'utf8'))![1]!;

  /** `unmount --force`, which frees the reader, and leaves no mount and no record. */
  async function forceEnds(reader: { ended: Promise<number | null> }): Promise<string> {
    const begin = performance.now();
    const { stderr } = bench.qcow2('unmount', '--force', 'm');
    expect(performance.now() - begin).toBeLessThan(SECONDS);
    await reader.ended;
    expect(existsSync(bench.path('m'))).toBe(false);
    expect(bench.mounts()).toEqual([]);
    expect(readdirSync(bench.path('state'))).toEqual([]);
    return stderr;
  }

  describe.each(availableChannels())('because its process is stopped, through %s', (channel) => {
    it.each(['ro', 'rw'])('%s', async (access) => {
      const way = access === 'rw' ? ['--rw'] : [];
      bench.ok('mount', '--channel', channel, ...way, 'disk.qcow2', 'm');
      if (access === 'rw') {
        const fd = openSync(bench.path('m/disk.raw'), 'r+');
        writeSync(fd, 'written', 4096);
        closeSync(fd);
      }
      const { pid } = bench.mount();
      process.kill(pid, 'SIGSTOP');
      const reader = startReader();
      await until(() => 'DS'.includes(stateOf(reader.child.pid!)));
      const begin = performance.now();
      const { exitCode, stderr } = bench.qcow2('unmount', 'm');
      expect(performance.now() - begin).toBeLessThan(SECONDS);
      expect(exitCode).toBe(1);
      expect(stderr).toBe(
        `qcow2: ${bench.path('m')}: process ${pid}, which serves it, is stopped; ` +
          `let it go on with: kill -CONT ${pid}; or end it with --force\n`,
      );
      expect(bench.mounts()).toHaveLength(1);
      expect(await forceEnds(reader)).toBe('');
      expect(isAlive(pid, undefined)).toBe(false);
      qemuImg('check', '-q', bench.path('disk.qcow2'));
      // It went on for as long as it took to end in good order.
      const first = access === 'rw' ? '0x77' : '0x07';
      qemuIo(bench.path('disk.qcow2'), [`read -P ${first} 4096 1`]);
    });
  });

  itPeers(['qemu-storage-daemon'], 'because the disk of its image does', async () => {
    // A file that answers for the first megabytes, and then for none in a thousand years.
    writeFileSync(bench.path('slow'), '');
    const slow = bench.start('qemu-storage-daemon', [
      ...['--object', 'throttle-group,id=g,x-bps-total=1024,x-bps-total-max=4194304'],
      ...['--blockdev', 'driver=file,node-name=f,filename=disk.qcow2'],
      ...['--blockdev', 'driver=throttle,node-name=t,file=f,throttle-group=g'],
      ...['--export', 'fuse,id=e,node-name=t,mountpoint=slow'],
    ]);
    const isSlow = (): boolean =>
      listMounts().some(({ directory }) => directory === bench.path('slow'));
    await until(isSlow);
    try {
      bench.ok('mount', '-f', 'qcow2', 'slow', 'm');
      const { pid } = bench.mount();
      const reader = startReader();
      await until(() => stateOf(reader.child.pid!) === 'D');
      await until(() => hasThreadIn(pid, 'D'));
      expect(bench.qcow2('unmount', 'm').stderr).toMatch(/it is in use by dd \(process/);
      const stderr = await forceEnds(reader);
      expect(await reader.ended).not.toBe(0);
      expect(stderr).toBe('');
      expect(hasThreadsLeft(pid)).toBe(false);
    } finally {
      slow.kill('SIGKILL');
      tryRun('umount', ['-l', bench.path('slow')]);
    }
    run('qemu-img', ['check', '-q', bench.path('disk.qcow2')]);
  });
});

function hasThreadIn(pid: number, state: string): boolean {
  return readdirSync(`/proc/${pid}/task`).some((thread) =>
    readFileSync(`/proc/${pid}/task/${thread}/stat`, 'utf8').includes(`) ${state} `),
  );
}
