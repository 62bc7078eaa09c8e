/** What a mount does when the terminal goes that it was made in. */

import { closeSync, existsSync, openSync, readFileSync, writeSync } from 'node:fs';
import { beforeEach, expect, it } from 'vitest';
import { isAlive } from '../../src/host/processes.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo } from '../support/qemu.ts';
import { until } from '../support/until.ts';
import { mountBench } from './mount-support.ts';

describePeers(['root', '/dev/fuse', 'script', 'qemu-img', 'qemu-io'], 'at logout', () => {
  const bench = mountBench();
  beforeEach(() => void qemuImg('create', '-q', '-f', 'qcow2', bench.path('disk.qcow2'), '4M'));

  /** Mounts in a terminal, writes, and takes the terminal away. Returns the mount's process. */
  async function mountAndLogOut(...options: readonly string[]): Promise<number> {
    const command = [process.execPath, bench.program, 'mount', '--rw', ...options, 'disk.qcow2 m'];
    const shell = `${command.join(' ')}; exec sleep 600`;
    const terminal = bench.start('script', ['-qec', shell, '/dev/null']);
    await until(() => existsSync(bench.path('m/disk.raw')) && bench.mounts().length === 1);
    const { pid } = bench.mount();
    const fd = openSync(bench.path('m/disk.raw'), 'r+');
    writeSync(fd, 'kept', 4096);
    closeSync(fd);
    const ended = new Promise((resolve) => terminal.once('exit', resolve));
    terminal.kill('SIGKILL');
    await ended;
    return pid;
  }

  function expectKept(): void {
    qemuImg('check', '-q', bench.path('disk.qcow2'));
    qemuIo(bench.path('disk.qcow2'), ['read -P 0x6b 4096 1']);
  }

  it('a mount in the background stays', async () => {
    const pid = await mountAndLogOut();
    expect(readFileSync(bench.path('m/disk.raw')).toString('latin1', 4096, 4100)).toBe('kept');
    expect(isAlive(pid, undefined)).toBe(true);
    expect(bench.ok('unmount', 'm')).toBe('');
    expectKept();
  });

  it('a mount in the foreground ends in good order', async () => {
    const pid = await mountAndLogOut('--foreground');
    await until(() => !isAlive(pid, undefined));
    expect(existsSync(bench.path('m'))).toBe(false);
    expect(bench.mounts()).toEqual([]);
    expectKept();
  });
});
