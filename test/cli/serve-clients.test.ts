/** Programs that write to `qcow2 serve --rw` as they are used: nbdfuse, nbdkit, fio. */

import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { pattern } from '../export/nbd/wire.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, run, tryRun } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';
import { until } from '../support/until.ts';
import { servers } from './serve-process.ts';

const MiB = 1024 * 1024;
const SIZE = 16 * MiB;

const directory = temporaryDirectoryPerTest();
const serve = servers(directory);

function at(name: string): string {
  return join(directory(), name);
}

/** A qcow2 image of nothing, served for writing. */
function serveEmpty() {
  qemuImg('create', '-f', 'qcow2', at('disk.qcow2'), `${SIZE}`);
  return serve('--socket=s', '--rw', at('disk.qcow2'));
}

/** The image is sound, and holds these bytes. */
function expectContent(content: Buffer): void {
  qemuImg('check', at('disk.qcow2'));
  writeFileSync(at('expected.raw'), content);
  const args = ['compare', '-f', 'raw', '-F', 'qcow2', at('expected.raw'), at('disk.qcow2')];
  expect(run('qemu-img', args)).toContain('Images are identical.');
}

describePeers(
  ['nbdfuse', '/dev/fuse', 'fusermount3', 'qemu-img', 'mke2fs', 'e2fsck', 'debugfs'],
  'nbdfuse',
  () => {
    it('has a file that dd, fallocate and mke2fs write to', async () => {
      const server = await serveEmpty();
      mkdirSync(at('mnt'));
      const file = at('mnt/nbd');
      const daemon = spawn('nbdfuse', [at('mnt'), server.uri], { stdio: 'ignore' });
      const ended = new Promise((resolve) => daemon.on('close', resolve));
      const bytes = pattern(3 * MiB + 777);
      writeFileSync(at('bytes'), bytes);
      const expected = Buffer.alloc(SIZE);
      try {
        await until(() => existsSync(file));
        const dd = (...args: string[]) =>
          run('dd', [
            `if=${at('bytes')}`,
            `of=${file}`,
            'conv=notrunc,fsync',
            'status=none',
            ...args,
          ]);
        dd('bs=64k');
        dd('bs=1000', 'seek=5000');
        bytes.copy(expected);
        bytes.copy(expected, 5_000_000);
        run('fallocate', ['--punch-hole', '--offset=1048576', '--length=131072', file]);
        expected.fill(0, MiB, MiB + 131_072);
        mkdirSync(at('tree'));
        writeFileSync(at('tree/hello'), 'through nbdfuse\n');
        const place = ['-E', `offset=${10 * MiB}`, '-d', at('tree')];
        run('mke2fs', ['-q', '-F', '-t', 'ext4', ...place, file, '6M']);
        run('sync', [file]);
      } finally {
        tryRun('fusermount3', ['-u', at('mnt')]);
        daemon.kill();
        await ended;
      }
      expect(await server.stop()).toBe(0);
      qemuImg('convert', '-O', 'raw', at('disk.qcow2'), at('disk.raw'));
      const disk = readFileSync(at('disk.raw'));
      writeFileSync(at('part.raw'), disk.subarray(10 * MiB));
      run('e2fsck', ['-fn', at('part.raw')]);
      expect(run('debugfs', ['-R', 'cat /hello', at('part.raw')])).toBe('through nbdfuse\n');
      disk.copy(expected, 10 * MiB, 10 * MiB);
      expectContent(expected);
    });
  },
);

describePeers(['nbdkit', 'qemu-img', 'qemu-io'], 'nbdkit', () => {
  it('passes on writes, zeroes, holes and flushes from QEMU', async () => {
    const server = await serveEmpty();
    writeFileSync(at('source.raw'), pattern(SIZE));
    const commands = ['write -z 1M 1M', 'write -f -P 7 3M 5000', 'discard 5M 1M', 'flush'];
    const script = [
      `qemu-img convert -n -W -f raw -O raw ${at('source.raw')} "$uri"`,
      `qemu-io -f raw ${commands.map((command) => `-c '${command}'`).join(' ')} "$uri"`,
    ].join(' && ');
    const said = run('nbdkit', [
      '-U',
      '-',
      'nbd',
      `socket=${at('s')}`,
      'shared=true',
      '--run',
      script,
    ]);
    expect(said).not.toContain('failed');
    expect(await server.stop()).toBe(0);
    const expected = pattern(SIZE)
      .fill(0, MiB, 2 * MiB)
      .fill(7, 3 * MiB, 3 * MiB + 5000);
    expectContent(expected.fill(0, 5 * MiB, 6 * MiB));
  });
});

describePeers(['fio', 'qemu-img'], 'fio', () => {
  it('verifies random writes of 4 KiB over four connections', async () => {
    const server = await serveEmpty();
    const part = SIZE / 4;
    const job = [
      '--name=job',
      '--ioengine=nbd',
      `--uri=${server.uri}`,
      '--rw=randwrite',
      '--bs=4k',
    ];
    const parts = ['--numjobs=4', `--size=${part}`, `--offset_increment=${part}`, '--iodepth=16'];
    const checking = ['--verify=crc32c', '--verify_fatal=1', '--verify_state_save=0', '--minimal'];
    run('fio', [...job, ...parts, ...checking], { cwd: directory() });
    expect(await server.stop()).toBe(0);
    qemuImg('check', at('disk.qcow2'));
    // Every block was written, each with a header that fio knows again.
    qemuImg('convert', '-O', 'raw', at('disk.qcow2'), at('disk.raw'));
    const disk = readFileSync(at('disk.raw'));
    for (let offset = 0; offset < SIZE; offset += 4096) {
      expect(disk.readUInt16LE(offset), `block at ${offset}`).toBe(0xacca);
    }
  });
});
