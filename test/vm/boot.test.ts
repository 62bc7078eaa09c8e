/**
 * Linux on a virtual machine whose disk is an image that `qcow2 serve` serves: firmware, boot
 * loader and kernel read it, the guest works on its files and shuts down.
 */

import { createHash } from 'node:crypto';
import { existsSync, mkdirSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { mountBench } from '../cli/mount-support.ts';
import { servers } from '../cli/serve-process.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuImgJson, run } from '../support/qemu.ts';
import { makeBootableDisk } from './guest-disk.ts';
import { machines } from './machine.ts';

const MiB = 1024 * 1024;

/** What the guest does when it is started for the first time, and then again. */
const JOB = `
if ! [ -e sums ]; then
  echo 'first start'
  seq 1 300000 >numbers
  dd if=/dev/urandom of=random bs=64k count=64 2>/dev/null
  mkdir many; for n in $(seq 300); do echo "file $n" >many/$n; done
  rm many/7; mv many/8 many/eight
  truncate -s 20M sparse; dd if=numbers of=sparse bs=1k seek=10000 conv=notrunc 2>/dev/null
  cat random random random random >deleted; sync
  md5sum numbers random sparse >sums; cat sums
  rm deleted; sync; fstrim /mnt
else
  echo 'started again'
  md5sum -c sums
  seq 1 500000 >numbers; rm random; sync
fi
`;

const NUMBERS = Array.from({ length: 300_000 }, (_, index) => `${index + 1}\n`).join('');

const NEEDED = [
  ...['qemu-system-x86_64', 'linux-guest', 'qemu-img', '/dev/fuse'],
  ...['sfdisk', 'mkfs.vfat', 'mcopy', 'mke2fs', 'e2fsck', 'debugfs'],
];

/** Bytes of an image that hold data. */
function dataBytes(path: string): number {
  const extents = qemuImgJson('map', path) as { length: number; data: boolean }[];
  return extents.reduce((sum, { length, data }) => sum + (data ? length : 0), 0);
}

describePeers(NEEDED, 'a virtual machine', () => {
  const bench = mountBench();
  const serve = servers(() => bench.path());
  const boot = machines();

  it(
    'boots from a served image, works on its files, and boots again',
    { timeout: 450_000 },
    async () => {
      makeBootableDisk(bench.path('disk.raw'), JOB);
      bench.ok('convert', '-O', 'qcow2', 'disk.raw', 'disk.qcow2');
      const dataBefore = dataBytes(bench.path('disk.qcow2'));
      const drive = `nbd:unix:${bench.path('s')}`;

      const server = await serve('--socket=s', '--rw', 'disk.qcow2');
      const first = await boot(drive, 'virtio');
      expect(await server.stop()).toBe(0);
      expect(server.stderr()).toBe('');
      const sums = first.console.filter((line) => /^[0-9a-f]{32} {2}/.test(line));
      expect({ ...first, console: first.console.filter((line) => !sums.includes(line)) }).toEqual({
        exitCode: 0,
        console: ['first start', 'job: exit code 0', 'umount: exit code 0'],
        stderr: '',
      });

      // The image is sound, and so is the filesystem in it.
      bench.ok('check', 'disk.qcow2');
      qemuImg('check', bench.path('disk.qcow2'));
      bench.ok('mount', 'disk.qcow2', 'm');
      const partition = readdirSync(bench.path('m/partitions')).find((name) =>
        name.startsWith('2-'),
      )!;
      const filesystem = bench.path('m/partitions', partition);
      run('e2fsck', ['-fn', filesystem]);
      mkdirSync(bench.path('files'));
      run('debugfs', ['-R', `rdump / ${bench.path('files')}`, filesystem]);
      bench.ok('unmount', 'm');

      // What the guest wrote is what is found in it.
      const file = (name: string): Buffer => readFileSync(join(bench.path('files'), name));
      expect(file('numbers').toString() === NUMBERS).toBe(true);
      const expectedSparse = Buffer.alloc(20 * MiB);
      expectedSparse.write(NUMBERS, 10_000 * 1024);
      expect(file('sparse').equals(expectedSparse)).toBe(true);
      const found = ['numbers', 'random', 'sparse'].map(
        (name) => `${createHash('md5').update(file(name)).digest('hex')}  ${name}`,
      );
      expect(found).toEqual(sums);
      expect(readdirSync(bench.path('files/many'))).toHaveLength(299);
      expect(file('many/eight').toString()).toBe('file 8\n');
      expect(existsSync(bench.path('files/deleted'))).toBe(false);
      // 8 MiB of files and some for the filesystem; the 16 MiB that were deleted have been trimmed.
      expect(dataBytes(bench.path('disk.qcow2')) - dataBefore).toBeLessThan(14 * MiB);

      // As another kind of disk, and with nothing kept.
      const image = readFileSync(bench.path('disk.qcow2'));
      const again = await serve('--socket=s', '--temp', 'disk.qcow2');
      const second = await boot(drive, 'nvme');
      expect(await again.stop()).toBe(0);
      expect(second).toEqual({
        exitCode: 0,
        console: [
          'started again',
          ...['numbers', 'random', 'sparse'].map((name) => `${name}: OK`),
          'job: exit code 0',
          'umount: exit code 0',
        ],
        stderr: '',
      });
      expect(readFileSync(bench.path('disk.qcow2')).equals(image)).toBe(true);
    },
  );
});
