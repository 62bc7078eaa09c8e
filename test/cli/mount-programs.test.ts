/** Mounted trees read by ordinary programs, on both channels. */

import { spawn } from 'node:child_process';
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  statSync,
} from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { describePeers, itPeers } from '../support/peers.ts';
import { run, tryRun } from '../support/qemu.ts';
import {
  availableChannels,
  DISK_BYTES,
  makeDisk,
  mountBench,
  NUMBERS,
  PARTITIONS,
} from './mount-support.ts';

const PROGRAMS = ['root', '/dev/fuse', 'qemu-img', 'sfdisk', 'mkfs.ext4'] as const;

/** Runs a program in the background; its exit code. */
function exitCodeOf(program: string, args: readonly string[]): Promise<number | null> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: 'ignore' });
    child.on('error', reject);
    child.on('close', resolve);
  });
}

describePeers(PROGRAMS, 'a mounted image', () => {
  describe.each(availableChannels())('through %s', (channel) => {
    const bench = mountBench();

    /** Mounts a new disk in a format on `m`. */
    function mountDisk(format: 'raw' | 'qcow2', ...options: readonly string[]): void {
      makeDisk(bench.path('disk.raw'));
      if (format === 'qcow2') {
        const convert = ['convert', '-f', 'raw', '-O', 'qcow2'];
        run('qemu-img', [...convert, bench.path('disk.raw'), bench.path('disk.qcow2')]);
      }
      bench.ok('mount', '--channel', channel, ...options, `disk.${format}`, 'm');
      expect(bench.mount().channel).toBe(channel);
    }

    it.each(['raw', 'qcow2'] as const)('holds the bytes of a %s image', (format) => {
      mountDisk(format);
      run('cmp', [bench.path('m/disk.raw'), bench.path('disk.raw')]);
      for (const { offset, length, file } of Object.values(PARTITIONS)) {
        const path = bench.path('m/partitions', file);
        expect(statSync(path).size).toBe(length);
        run('cmp', ['-i', `0:${offset}`, '-n', String(length), path, bench.path('disk.raw')]);
      }
      const names = ['disk.raw', 'info.json', 'layers', 'map.json', 'partitions', 'snapshots'];
      if (channel === 'kernel') names.push('stats', 'stats.json');
      expect(readdirSync(bench.path('m')).sort()).toEqual(names);
      JSON.parse(readFileSync(bench.path('m/info.json'), 'utf8'));
      const map = readFileSync(bench.path('m/map.json'));
      expect(map).toHaveLength(statSync(bench.path('m/map.json')).size);
      JSON.parse(map.toString());
      bench.ok('unmount', 'm');
    });

    it('is read by dd in blocks of all sizes, and past the end', () => {
      mountDisk('qcow2');
      const expected = readFileSync(bench.path('disk.raw'));
      for (const [bs, skip, count] of [
        [512, 2050, 3],
        [4096, 2049, 1],
        [1_000_003, 8, 100],
        [DISK_BYTES, 0, 2],
      ] as const) {
        const args = [`bs=${bs}`, `skip=${skip}`, `count=${count}`, 'status=none'];
        run('dd', [`if=${bench.path('m/disk.raw')}`, `of=${bench.path('out')}`, ...args]);
        const part = expected.subarray(bs * skip, bs * (skip + count));
        expect(readFileSync(bench.path('out')).equals(part)).toBe(true);
      }
    });

    it('is copied by cp --sparse without its holes', () => {
      mountDisk('qcow2');
      for (const mode of ['always', 'auto']) {
        run('cp', [`--sparse=${mode}`, bench.path('m/disk.raw'), bench.path('copy')]);
        run('cmp', [bench.path('copy'), bench.path('disk.raw')]);
        // libfuse 2 does not know SEEK_HOLE, so that there cp has to find the zeroes itself.
        if (mode === 'always' || channel === 'kernel') {
          expect(statSync(bench.path('copy')).blocks * 512).toBeLessThan(DISK_BYTES / 2);
        }
      }
    });

    it('refuses every write', () => {
      mountDisk('raw');
      for (const command of [
        'touch m/new',
        'mkdir m/new',
        'rm -f m/info.json',
        'chmod 600 m/disk.raw',
        'truncate -s 1 m/disk.raw',
        'echo x >> m/disk.raw',
        'mv m/disk.raw m/other',
        'ln m/disk.raw m/other',
      ]) {
        const { exitCode, stderr } = tryRun('sh', ['-c', command], { cwd: bench.path() });
        expect(exitCode, command).not.toBe(0);
        expect(stderr).toMatch(/Read-only file system/);
      }
    });

    itPeers(['loop'], 'gives the files of a partition through a loop device', () => {
      mountDisk('qcow2');
      mkdirSync(bench.path('files'));
      const loop = run('losetup', [
        ...['--find', '--show', '--read-only'],
        bench.path('m/partitions', PARTITIONS.root.file),
      ]).trim();
      try {
        run('mount', ['-o', 'ro,noload', loop, bench.path('files')]);
        try {
          const hello = readFileSync(bench.path('files/hello.txt'), 'utf8');
          expect(hello).toBe('hello from inside\n');
          const numbers = readFileSync(bench.path('files/numbers'), 'utf8');
          expect(numbers === NUMBERS).toBe(true);
        } finally {
          run('umount', [bench.path('files')]);
        }
        const busy = bench.qcow2('unmount', 'm');
        expect(busy.exitCode).toBe(1);
        expect(busy.stderr).toContain(loop);
      } finally {
        run('losetup', ['--detach', loop]);
      }
      bench.ok('unmount', 'm');
    });

    itPeers(['fio'], 'passes the verification of fio', () => {
      // Beside the file, fio leaves notes on what it wrote in the current directory.
      const inBench = { cwd: bench.path() };
      const job = ['--name=v', '--size=16M', '--bs=16k', '--verify=crc32c', '--randseed=42'];
      const write = ['--rw=randwrite', '--do_verify=0', `--filename=${bench.path('fio.raw')}`];
      run('fio', [...job, ...write], inBench);
      run('qemu-img', [
        ...['convert', '-f', 'raw', '-O', 'qcow2'],
        ...[bench.path('fio.raw'), bench.path('fio.qcow2')],
      ]);
      bench.ok('mount', '--channel', channel, 'fio.qcow2', 'm');
      const read = ['--rw=randread', '--readonly', `--filename=${bench.path('m/disk.raw')}`];
      const output = run('fio', [...job, ...read], inBench);
      expect(output).toMatch(/err= 0/);
    });

    it('serves several readers at once', async () => {
      mountDisk('qcow2');
      const { root } = PARTITIONS;
      const whole = [bench.path('m/disk.raw'), bench.path('disk.raw')];
      const part = ['-i', `0:${root.offset}`, '-n', String(root.length)];
      const readers = Array.from({ length: 8 }, (_, index) =>
        index % 2 === 0
          ? exitCodeOf('cmp', whole)
          : exitCodeOf('cmp', [
              ...part,
              bench.path('m/partitions', root.file),
              bench.path('disk.raw'),
            ]),
      );
      expect(await Promise.all(readers)).toEqual(Array(8).fill(0));
    });
  });

  describe('through kernel', () => {
    const bench = mountBench();

    itPeers(['python3'], 'answers SEEK_DATA and SEEK_HOLE as the image has it', () => {
      run('qemu-img', ['create', '-q', '-f', 'qcow2', bench.path('s.qcow2'), '1G']);
      const writes = ['write -P 1 64k 64k', 'write -P 2 512M 128k', 'write -z 600M 64k'];
      run('qemu-io', ['-f', 'qcow2', ...writes.flatMap((w) => ['-c', w]), bench.path('s.qcow2')]);
      bench.ok('mount', 's.qcow2', 'm');
      const script = [
        'import os, sys',
        'fd = os.open(sys.argv[1], os.O_RDONLY)',
        'end = os.fstat(fd).st_size',
        'at = 0',
        'while True:',
        '    try: data = os.lseek(fd, at, os.SEEK_DATA)',
        '    except OSError as error:',
        '        print(error.errno); break',
        '    at = os.lseek(fd, data, os.SEEK_HOLE)',
        '    print(data, at)',
        '    if at >= end: break',
      ].join('\n');
      const found = run('python3', ['-c', script, bench.path('m/disk.raw')]);
      const MiB = 1024 * 1024;
      expect(found).toBe(`65536 131072\n${512 * MiB} ${512 * MiB + 131_072}\n6\n`);
      // A gigabyte that is nearly all holes takes next to nothing.
      expect(statSync(bench.path('m/disk.raw')).blocks * 512).toBeLessThan(2 * MiB);
    });

    it('of a damaged image gives an error for the bad cluster, and all others', () => {
      const damaged = new URL('../../images/damage/compressed-garbage.qcow2', import.meta.url);
      bench.ok('mount', fileURLToPath(damaged), 'm');
      const fd = openSync(bench.path('m/disk.raw'), 'r');
      try {
        const failed: number[] = [];
        const cluster = Buffer.alloc(4096);
        for (let offset = 0; offset < 262_144; offset += cluster.length) {
          try {
            expect(readSync(fd, cluster, 0, cluster.length, offset)).toBe(cluster.length);
          } catch (error) {
            expect(error).toMatchObject({ code: 'EIO' });
            failed.push(offset);
          }
        }
        expect(failed).toEqual([40_960]);
        readSync(fd, cluster, 0, cluster.length, 122_880);
        expect(cluster.equals(Buffer.alloc(4096, 0x33))).toBe(true);
      } finally {
        closeSync(fd);
      }
    });

    it('lists many snapshots', () => {
      run('qemu-img', ['create', '-q', '-f', 'qcow2', bench.path('s.qcow2'), '1M']);
      for (let count = 0; count < 40; count++) {
        run('qemu-img', ['snapshot', '-c', `snap/${count}`, bench.path('s.qcow2')]);
      }
      bench.ok('mount', 's.qcow2', 'm');
      const names = readdirSync(bench.path('m/snapshots'));
      const expected = Array.from({ length: 40 }, (_, i) => `${i + 1}-snap_${i}`);
      expect(names.sort()).toEqual(expected.sort());
      const files = run('find', [bench.path('m/snapshots'), '-name', 'disk.raw', '-size', '1M']);
      expect(files.trim().split('\n')).toHaveLength(40);
    });

    it('keeps what it has read in the cache of the kernel from one open to the next', () => {
      makeDisk(bench.path('disk.raw'));
      bench.ok('mount', 'disk.raw', 'm');
      const { pid } = bench.mount();
      run('cat', [bench.path('m/disk.raw')]);
      const before = bytesRead(pid);
      run('cmp', [bench.path('m/disk.raw'), bench.path('disk.raw')]);
      // Requests are read from the kernel too, but they are short.
      expect(bytesRead(pid) - before).toBeLessThan(statSync(bench.path('disk.raw')).size / 10);
    });
  });
});

/** How many bytes a process has read, from whatever file. */
function bytesRead(pid: number): number {
  const fd = openSync(`/proc/${pid}/io`, 'r');
  try {
    const bytes = Buffer.alloc(1024);
    const text = bytes.toString('utf8', 0, readSync(fd, bytes));
    return Number(/^rchar: (\d+)$/m.exec(text)![1]);
  } finally {
    closeSync(fd);
  }
}
