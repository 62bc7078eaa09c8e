/** Mounts that accept writes, written to by ordinary programs, on both channels. */

import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeEach, describe, expect, it } from 'vitest';
import { isAlive } from '../../src/host/processes.ts';
import { FileExerciser } from '../support/file-exerciser.ts';
import { describePeers, itPeers } from '../support/peers.ts';
import { run, tryRun } from '../support/qemu.ts';
import {
  availableChannels,
  DISK_BYTES,
  makeDisk,
  mountBench,
  PARTITIONS,
} from './mount-support.ts';

const PROGRAMS = ['root', '/dev/fuse', 'qemu-img', 'qemu-io', 'sfdisk', 'mkfs.ext4'] as const;
const MiB = 1024 * 1024;

/** Threads of a process that there still are; that of a zombie counts. */
function threadCount(pid: number): number {
  try {
    return readdirSync(`/proc/${pid}/task`).length;
  } catch {
    return 0;
  }
}

describePeers(PROGRAMS, 'a mount that accepts writes', () => {
  const bench = mountBench();

  beforeEach(() => {
    makeDisk(bench.path('disk.raw'));
    const convert = ['convert', '-f', 'raw', '-O', 'qcow2'];
    run('qemu-img', [...convert, bench.path('disk.raw'), bench.path('disk.qcow2')]);
  });

  /** The disk and its first partition as the exerciser wants them. */
  const files = () => [
    { path: bench.path('m/disk.raw'), offset: 0, length: DISK_BYTES },
    { path: bench.path('m/partitions', PARTITIONS.boot.file), ...PARTITIONS.boot },
    { path: bench.path('m/partitions', PARTITIONS.root.file), ...PARTITIONS.root },
  ];

  /** Nothing is wrong with an image, leaks included, and it holds these bytes. */
  function expectImage(image: string, content: Buffer): void {
    run('qemu-img', ['check', '-q', bench.path(image)]);
    writeFileSync(bench.path('expected.raw'), content);
    const formats = ['-f', 'qcow2', '-F', 'raw'];
    run('qemu-img', ['compare', '-q', ...formats, bench.path(image), bench.path('expected.raw')]);
  }

  function write(file: string, text: string, { offset = 0, sync = false } = {}): void {
    const fd = openSync(bench.path(file), 'r+');
    try {
      writeSync(fd, text, offset);
      if (sync) fsyncSync(fd);
    } finally {
      closeSync(fd);
    }
  }

  function textAt(file: string, offset: number, length: number): string {
    return readFileSync(bench.path(file)).toString('latin1', offset, offset + length);
  }

  /** Closes a file of a mount that is gone; on one of the channels, closing asks the mount. */
  function closeDead(fd: number): void {
    try {
      closeSync(fd);
    } catch (error) {
      expect(String(error)).toMatch(/ENOTCONN|ECONNABORTED/);
    }
  }

  const kill = async (pid: number, signal: NodeJS.Signals): Promise<void> => {
    process.kill(pid, signal);
    // Files are open, and locked, until the last thread has ended.
    while (isAlive(pid, undefined) || threadCount(pid) > 1) await sleep(5);
  };

  describe.each(availableChannels())('through %s', (channel) => {
    const mount = (...args: readonly string[]): string =>
      bench.ok('mount', '--channel', channel, ...args, 'disk.qcow2', 'm');

    it('holds what was written through each of its files, then and in the image', () => {
      expect(mount('--rw')).toContain('disk.qcow2 is mounted on ');
      expect(bench.mount()).toMatchObject({ channel, access: 'rw' });
      const model = readFileSync(bench.path('disk.raw'));
      const seed = 20 + channel.length;
      const hasHoles = channel === 'kernel';
      const exerciser = new FileExerciser({ seed, files: files(), model, hasHoles });
      try {
        exerciser.run({ count: 400 });
        exerciser.verify();
      } finally {
        exerciser.close();
      }
      expect(bench.ok('unmount', 'm')).toBe('');
      expectImage('disk.qcow2', model);
    });

    it('never loses the disk to a truncation, nor makes or removes files', () => {
      mount('--rw');
      for (const [command, words] of [
        ['truncate -s 0 m/disk.raw', 'Operation not permitted'],
        ['truncate -s 1T m/disk.raw', 'Operation not permitted'],
        [': > m/disk.raw', 'Operation not permitted|cannot create'],
        ['dd if=disk.raw of=m/disk.raw count=1', 'Operation not permitted'],
        ['dd if=/dev/zero of=m/disk.raw bs=1M seek=40 count=1 conv=notrunc', 'No space left'],
        ['echo x > m/info.json', 'Read-only|cannot create'],
        ['touch m/new', 'Operation not permitted|not implemented'],
        ['rm m/disk.raw', 'Operation not permitted|not implemented'],
      ] as const) {
        const { exitCode, stderr } = tryRun('sh', ['-c', command], { cwd: bench.path() });
        expect(exitCode, command).not.toBe(0);
        expect(stderr, command).toMatch(new RegExp(words));
      }
      expect(statSync(bench.path('m/disk.raw')).size).toBe(DISK_BYTES);
      run('truncate', ['-s', String(DISK_BYTES), bench.path('m/disk.raw')]);
      run('touch', ['-d', '2020-01-01', bench.path('m/disk.raw')]);
      run('cmp', [bench.path('m/disk.raw'), bench.path('disk.raw')]);
      bench.ok('unmount', 'm');
      expectImage('disk.qcow2', readFileSync(bench.path('disk.raw')));
    });

    it('keeps what was synced when its process is killed, and the image stays valid', async () => {
      mount('--rw');
      write('m/disk.raw', 'synced', { offset: 20 * MiB, sync: true });
      write('m/disk.raw', 'not synced', { offset: 39 * MiB });
      await kill(bench.mount().pid, 'SIGKILL');
      const { exitCode } = tryRun('qemu-img', ['check', '-q', bench.path('disk.qcow2')]);
      // 3: leaks, which are allowed.
      expect([0, 3]).toContain(exitCode);
      mount('--rw');
      expect(textAt('m/disk.raw', 20 * MiB, 6)).toBe('synced');
      expect(bench.qcow2('unmount', 'm').exitCode).toBe(0);
    });

    it('writes everything out when it is told to end although it is in use', async () => {
      mount('--rw');
      const fd = openSync(bench.path('m/disk.raw'), 'r+');
      try {
        writeSync(fd, 'in use', 5 * MiB);
        const { pid } = bench.mount();
        await kill(pid, 'SIGTERM');
        expect(() => writeSync(fd, 'x', 0)).toThrow(/ENOTCONN|ECONNABORTED/);
      } finally {
        closeDead(fd);
      }
      expect(bench.mounts()).toEqual([]);
      run('qemu-img', ['check', '-q', bench.path('disk.qcow2')]);
      const read = ['-r', '-c', 'read -P 0x69 5242880 1', '-c', 'read -P 0x73 5242884 1'];
      expect(run('qemu-io', ['-f', 'qcow2', ...read, bench.path('disk.qcow2')])).not.toMatch(
        /failed/,
      );
    });

    it('makes holes and zeroes, or says that it cannot and changes nothing', () => {
      mount('--rw');
      const expected = readFileSync(bench.path('disk.raw'));
      for (const [index, way] of ['--punch-hole', '--zero-range', '--posix'].entries()) {
        const offset = PARTITIONS.boot.offset + index * 262_144;
        const args = [way, '--offset', String(offset), '--length', '131072'];
        const { exitCode, stderr } = tryRun('fallocate', [...args, bench.path('m/disk.raw')]);
        if (channel === 'kernel' || way === '--posix') {
          expect({ exitCode, stderr }, way).toEqual({ exitCode: 0, stderr: '' });
          if (way !== '--posix') expected.fill(0, offset, offset + 131_072);
        } else {
          // fuse-native has no such operation.
          expect({ exitCode, stderr }, way).toEqual({
            exitCode: 1,
            stderr: expect.stringMatching(/unsupported|not supported/) as string,
          });
        }
      }
      bench.ok('unmount', 'm');
      expectImage('disk.qcow2', expected);
    });

    it('--temp forgets what was written, and never touches the image', () => {
      const before = readFileSync(bench.path('disk.qcow2'));
      const { mtimeMs } = statSync(bench.path('disk.qcow2'));
      expect(mount('--temp')).toMatch(/; what is written is forgotten at the end$/m);
      const partition = `m/partitions/${PARTITIONS.boot.file}`;
      write(partition, 'gone', { sync: true });
      expect(textAt(partition, 0, 4)).toBe('gone');
      expect(textAt('m/disk.raw', PARTITIONS.boot.offset, 4)).toBe('gone');
      // Another has changes of its own.
      bench.ok('mount', '--channel', channel, '--temp', 'disk.qcow2', 'm2');
      run('cmp', [bench.path('m2/disk.raw'), bench.path('disk.raw')]);
      bench.ok('unmount', 'm', 'm2');
      expect(readFileSync(bench.path('disk.qcow2')).equals(before)).toBe(true);
      expect(statSync(bench.path('disk.qcow2')).mtimeMs).toBe(mtimeMs);
    });

    it('--overlay keeps it in a file of its own, and goes on with that', () => {
      const before = readFileSync(bench.path('disk.qcow2'));
      expect(mount('--overlay', 'changes.qcow2')).toMatch(
        /what is written goes to .*changes.qcow2$/m,
      );
      write('m/disk.raw', 'kept', { offset: 100_000 });
      bench.ok('unmount', 'm');
      mount('--overlay', 'changes.qcow2');
      expect(textAt('m/disk.raw', 100_000, 4)).toBe('kept');
      write('m/disk.raw', 'more', { offset: 100_004 });
      bench.ok('unmount', 'm');
      expect(readFileSync(bench.path('disk.qcow2')).equals(before)).toBe(true);
      const expected = readFileSync(bench.path('disk.raw'));
      expected.write('keptmore', 100_000);
      expectImage('changes.qcow2', expected);
      const other = ['mount', '--overlay', 'changes.qcow2', 'disk.raw', 'm'];
      expect(bench.qcow2(...other).stderr).toMatch(
        /changes.qcow2: it is an overlay of '.*disk.qcow2'/,
      );
      expect(bench.qcow2('mount', '--overlay', 'disk.raw', 'disk.qcow2', 'm').stderr).toMatch(
        /disk.raw: .* not an overlay/,
      );
    });
  });

  it('excludes other writers, whoever comes first', () => {
    bench.ok('mount', '--rw', 'disk.qcow2', 'm');
    const io = tryRun('qemu-io', ['-f', 'qcow2', '-c', 'write 0 512', bench.path('disk.qcow2')]);
    expect(io.stderr + io.stdout).toMatch(/Failed to get .*lock/);
    for (const way of ['--rw', '--temp', '--overlay=o.qcow2']) {
      expect(bench.qcow2('mount', way, 'disk.qcow2', 'm2').stderr).toMatch(/it is in use: process/);
    }
    expect(existsSync(bench.path('o.qcow2'))).toBe(false);
    bench.ok('unmount', 'm');
    bench.ok('mount', '--temp', 'disk.qcow2', 'm');
    expect(bench.qcow2('mount', '--rw', 'disk.qcow2', 'm2').stderr).toMatch(
      /it is in use: process/,
    );
    expect(existsSync(bench.path('m2'))).toBe(false);
  });

  it('tells what cannot be', () => {
    for (const [args, words] of [
      [['--rw', '--temp'], /--rw and --temp exclude each other/],
      [['--rw', '--snapshot=1'], /a snapshot is for reading only: not with --rw/],
      [['--temp', '--force-share'], /must not change: not with --temp/],
      [['--rw', '-o', 'ro'], /-o ro: the image is mounted for writing too/],
      [['-o', 'rw'], /-o rw: the image is mounted for reading only; --rw/],
    ] as const) {
      expect(bench.qcow2('mount', ...args, 'disk.qcow2', 'm').stderr).toMatch(words);
    }
    expect(existsSync(bench.path('m'))).toBe(false);
  });

  it('shows the present state in its texts, and keeps snapshots and layers as they are', () => {
    run('qemu-img', ['snapshot', '-c', 'before', bench.path('disk.qcow2')]);
    const create = ['create', '-q', '-f', 'qcow2', '-F', 'qcow2', '-b', bench.path('disk.qcow2')];
    run('qemu-img', [...create, bench.path('top.qcow2')]);
    bench.ok('mount', '--rw', 'top.qcow2', 'm');
    const map = () => JSON.parse(readFileSync(bench.path('m/map.json'), 'utf8')) as object[];
    const stored = () => statSync(bench.path('m/disk.raw')).blocks;
    const [entries, blocks] = [map().length, stored()];
    write('m/disk.raw', 'x'.repeat(MiB), { offset: 36 * MiB, sync: true });
    expect(map().length).toBeGreaterThan(entries);
    expect(textAt('m/layers/1-top.qcow2.raw', 36 * MiB, 1)).toBe('x');
    expect(textAt('m/layers/0-disk.qcow2.raw', 36 * MiB, 1)).toBe('\0');
    expect(() => openSync(bench.path('m/layers/1-top.qcow2.raw'), 'r+')).toThrow(/EROFS/);
    bench.ok('unmount', 'm');
    bench.ok('mount', '--rw', 'disk.qcow2', 'm');
    write('m/disk.raw', 'new', { offset: PARTITIONS.boot.offset });
    run('cmp', [bench.path('m/snapshots/1-before/disk.raw'), bench.path('disk.raw')]);
    expect(() => openSync(bench.path('m/snapshots/1-before/disk.raw'), 'r+')).toThrow(/EROFS/);
    expect(blocks).toBeGreaterThan(0);
  });

  it('one partition can be mounted, and a raw image be written', () => {
    bench.ok('mount', '--rw', '--partition', '1', 'disk.qcow2', 'm');
    expect(statSync(bench.path('m/disk.raw')).size).toBe(PARTITIONS.boot.length);
    write('m/disk.raw', 'part');
    bench.ok('unmount', 'm');
    const expected = readFileSync(bench.path('disk.raw'));
    expected.write('part', PARTITIONS.boot.offset);
    expectImage('disk.qcow2', expected);
    bench.ok('mount', '--rw', '-f', 'raw', 'disk.raw', 'm');
    write(`m/partitions/${PARTITIONS.boot.file}`, 'part');
    run('fallocate', ['-p', '-o', '30MiB', '-l', '1MiB', bench.path('m/disk.raw')]);
    bench.ok('unmount', 'm');
    expected.fill(0, 30 * MiB, 31 * MiB);
    expect(readFileSync(bench.path('disk.raw')).equals(expected)).toBe(true);
  });

  itPeers(['loop'], 'carries a filesystem that is filled, trimmed and rewritten', () => {
    bench.ok('mount', '--rw', 'disk.qcow2', 'm');
    mkdirSync(bench.path('files'));
    const partition = bench.path('m/partitions', PARTITIONS.root.file);
    const loop = run('losetup', ['--find', '--show', partition]).trim();
    try {
      run('mount', [loop, bench.path('files')]);
      try {
        for (let round = 0; round < 3; round++) {
          const seed = String.fromCharCode(65 + round);
          writeFileSync(bench.path(`files/big${round % 2}`), seed.repeat(6 * MiB));
          if (round === 1) run('rm', [bench.path('files/big0')]);
          run('fstrim', [bench.path('files')]);
        }
        expect(readFileSync(bench.path('files/big0'), 'utf8')).toBe('C'.repeat(6 * MiB));
        expect(readFileSync(bench.path('files/hello.txt'), 'utf8')).toBe('hello from inside\n');
      } finally {
        run('umount', [bench.path('files')]);
      }
      run('e2fsck', ['-fn', loop]);
    } finally {
      run('losetup', ['-d', loop]);
    }
    bench.ok('unmount', 'm');
    run('qemu-img', ['check', '-q', bench.path('disk.qcow2')]);
    expect(bench.mounts()).toEqual([]);
  });

  itPeers(['fio'], 'holds what fio wrote, through mmap too', () => {
    bench.ok('mount', '--rw', 'disk.qcow2', 'm');
    const partition = `m/partitions/${PARTITIONS.root.file}`;
    for (const [engine, file, sizes] of [
      ['mmap', 'm/disk.raw', ['--bsrange=4k-128k']],
      ['psync', 'm/disk.raw', ['--bsrange=1k-128k', '--bs_unaligned']],
      ['psync', partition, ['--bsrange=4k-128k', '--direct=1']],
      ['mmap', partition, ['--bsrange=4k-64k']],
    ] as const) {
      run('fio', [
        ...['--name=verify', `--filename=${bench.path(file).replaceAll(':', '\\:')}`],
        ...['--rw=randwrite', ...sizes, '--size=20M', '--io_size=8M'],
        ...[`--ioengine=${engine}`, '--verify=crc32c', '--verify_fatal=1', '--randseed=7'],
        ...['--fsync=32', '--allow_file_create=0', '--overwrite=1'],
      ]);
    }
    const disk = readFileSync(bench.path('m/disk.raw'));
    bench.ok('unmount', 'm');
    expectImage('disk.qcow2', disk);
  });

  itPeers(['fio'], 'is used by many at once, and nobody waits for ever', async () => {
    bench.ok('mount', '--rw', 'disk.qcow2', 'm');
    const { offset, length, file } = PARTITIONS.root;
    const named = (path: string) => `--filename=${bench.path(path).replaceAll(':', '\\:')}`;
    const disk = [named('m/disk.raw'), `--offset=${offset}`];
    const partition = [named(`m/partitions/${file}`)];
    const common = ['--rw=randrw', `--size=${length}`, '--time_based', '--runtime=2'];
    const jobs = [
      [...disk, '--ioengine=psync', '--bsrange=512-64k', '--bs_unaligned'],
      [...disk, '--ioengine=mmap', '--bsrange=4k-64k'],
      [...partition, '--ioengine=psync', '--bsrange=512-64k', '--bs_unaligned', '--fsync=100'],
      [...partition, '--ioengine=mmap', '--bsrange=4k-64k', '--fsync=50'],
      [...partition, '--ioengine=psync', '--direct=1', '--bs=4k'],
    ].map((options, index) => {
      const args = [`--name=job${index}`, '--norandommap', ...options, ...common];
      return new Promise((resolve) => bench.start('fio', args).once('exit', resolve));
    });
    expect(await Promise.all(jobs)).toEqual(jobs.map(() => 0));
    for (const path of ['m/disk.raw', `m/partitions/${file}`]) run('sync', [bench.path(path)]);
    const whole = readFileSync(bench.path('m/disk.raw'));
    const part = readFileSync(bench.path('m/partitions', file));
    expect(whole.subarray(offset, offset + length).equals(part)).toBe(true);
    bench.ok('unmount', 'm');
    expectImage('disk.qcow2', whole);
  });

  describe('what happens to the image meanwhile', () => {
    it('a full disk is told, harms nothing, and is got over', () => {
      mkdirSync(bench.path('small'));
      run('mount', ['-t', 'tmpfs', '-o', 'size=4m', 'small', bench.path('small')]);
      try {
        run('qemu-img', ['create', '-q', '-f', 'qcow2', bench.path('small/i.qcow2'), '64M']);
        writeFileSync(bench.path('small/ballast'), Buffer.alloc(MiB));
        bench.ok('mount', '--rw', 'small/i.qcow2', 'm');
        const dd = [
          'if=/dev/zero',
          `of=${bench.path('m/disk.raw')}`,
          'bs=1M',
          'conv=notrunc,fsync',
        ];
        const full = tryRun('sh', ['-c', `tr '\\0' x < /dev/zero | dd ${dd.slice(1).join(' ')}`]);
        expect(full.stderr).toMatch(/No space left on device/);
        const { log } = bench.mount();
        expect(readFileSync(log!, 'utf8')).toMatch(/no space left on the device/);
        run('rm', [bench.path('small/ballast')]);
        write('m/disk.raw', 'after', { offset: 63 * MiB, sync: true });
        bench.ok('unmount', 'm');
        run('qemu-img', ['check', '-q', bench.path('small/i.qcow2')]);
      } finally {
        tryRun('umount', [bench.path('m')]);
        run('umount', ['-l', bench.path('small')]);
      }
    });

    it('if it is truncated, that is told by fsync and by unmount', () => {
      bench.ok('mount', '--rw', 'disk.qcow2', 'm');
      write('m/disk.raw', 'x', { offset: 39 * MiB, sync: true });
      truncateSync(bench.path('disk.qcow2'), 300_000);
      expect(() => write('m/disk.raw', 'y', { offset: 38 * MiB, sync: true })).toThrow(/EIO/);
      const { exitCode, stderr } = bench.qcow2('unmount', 'm');
      expect(exitCode).toBe(1);
      expect(stderr).toMatch(
        /m: it is unmounted, but not all was written: .*disk.qcow2: the file became shorter while/,
      );
      expect(bench.mounts()).toEqual([]);
      expect(existsSync(bench.path('m'))).toBe(false);
    });

    it('if it is replaced, unmount says that what was written is not in the new one', () => {
      bench.ok('mount', '--rw', 'disk.qcow2', 'm');
      write('m/disk.raw', 'x');
      renameSync(bench.path('disk.qcow2'), bench.path('old.qcow2'));
      run('cp', [bench.path('old.qcow2'), bench.path('disk.qcow2')]);
      const { exitCode, stderr } = bench.qcow2('unmount', 'm');
      expect([exitCode, stderr]).toEqual([
        1,
        expect.stringMatching(/the file was replaced by another while it was mounted; what was/),
      ]);
      run('qemu-img', ['check', '-q', bench.path('old.qcow2')]);
    });
  });
});
