/** `mount --fs` as root: the files of an image, through a loop device and the kernel's drivers. */

import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmdirSync,
  writeFileSync,
} from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { isAttached } from '../../src/host/loop.ts';
import { kernelDrivers } from '../../src/host/kernel-mount.ts';
import { findMount } from '../../src/host/mountinfo.ts';
import { isAlive } from '../../src/host/processes.ts';
import { describePeers, itPeers } from '../support/peers.ts';
import { qemuImg, run, tryRun } from '../support/qemu.ts';
import { until } from '../support/until.ts';
import { copyWithoutPackages, mountBench } from './mount-support.ts';
import {
  EMPTY,
  HOME,
  makeFilesystem,
  makePartitionedDisk,
  makeWholeDisk,
  ROOT,
  SWAP,
} from './mount-fs-support.ts';

const MKFS_EXT4 = 'mkfs.ext4 -q -d FILES FILE';

/** Threads of a process whose requests for memory never wait for writing (PF_MEMALLOC_NOIO). */
function flusherThreads(pid: number): number {
  return readdirSync(`/proc/${pid}/task`).filter((thread) => {
    const stat = readFileSync(`/proc/${pid}/task/${thread}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return (Number(fields[6]) & 0x8_0000) !== 0;
  }).length;
}

function hasSysResource(): boolean {
  const [, digits = '0'] =
    /^CapEff:\s*(\w+)$/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? [];
  return ((BigInt(`0x${digits}`) >> 24n) & 1n) === 1n;
}

const NEEDED = ['root', '/dev/fuse', 'loop', 'sfdisk', 'mkfs.ext4', 'mkfs.vfat', 'qemu-img'];

describePeers(NEEDED, 'qcow2 mount --fs', () => {
  const bench = mountBench();
  const hello = (directory = 'm'): string =>
    readFileSync(bench.path(directory, 'hello.txt'), 'utf8');

  /** Nothing of the test is left but the files named. */
  function expectClear(...names: readonly string[]): void {
    expect(readdirSync(bench.path('state'))).toEqual([]);
    expect(readdirSync(bench.path()).sort()).toEqual([...names, 'state'].sort());
  }

  it('shows the files of the only partition that has a filesystem, and undoes all of it', () => {
    makePartitionedDisk(bench.path('disk.qcow2'), [EMPTY, ROOT, SWAP]);
    const output = bench.ok('mount', '--fs', 'disk.qcow2');
    expect(output.split('\n')).toEqual([
      `the files of ${bench.path('disk.qcow2')} are mounted on ${bench.path('disk')}`,
      expect.stringMatching(/^ {2}Number {2}Size +Type +Label +Filesystem +Directory$/),
      expect.stringMatching(/^ {2}1 +4 MiB +EFI.* +boot +-$/),
      expect.stringMatching(/^ {2}2 +16 MiB +Linux .* +root +ext4 'system' +\/.*\/disk$/),
      expect.stringMatching(/^ {2}3 +2 MiB +Linux swap.* +swap +-$/),
      'unmount with: qcow2 unmount disk',
      '',
    ]);
    expect(hello('disk')).toBe('hello from inside\n');
    const { source = '', type } = findMount(bench.path('disk')) ?? {};
    expect(source).toMatch(/^\/dev\/loop\d+$/);
    expect(type).toBe('ext4');
    const { pid, directory } = bench.mount();
    expect(directory).toBe(bench.path('disk'));
    expect(() => writeFileSync(bench.path('disk/new'), '')).toThrow('EROFS');
    expect(bench.ok('unmount', 'disk')).toBe('');
    expect(isAlive(pid, undefined)).toBe(false);
    expect(isAttached(source)).toBe(false);
    expectClear('disk.qcow2');
  });

  it('takes a disk without partitions, and one partition or snapshot by its name', () => {
    makeWholeDisk(bench.path('whole.qcow2'), 16, MKFS_EXT4);
    bench.ok('mount', '--fs', 'whole.qcow2', 'm');
    expect(hello()).toBe('hello from inside\n');
    bench.ok('unmount', 'm');
    makePartitionedDisk(bench.path('disk.qcow2'), [ROOT, HOME]);
    run('qemu-img', ['snapshot', '-c', 'first', bench.path('disk.qcow2')]);
    bench.ok('mount', '--fs', '--partition', '2', '--snapshot', 'first', 'disk.qcow2', 'm');
    expect(hello()).toBe('hello from inside\n');
    bench.ok('unmount', 'm');
    expectClear('disk.qcow2', 'whole.qcow2');
  });

  describe('of several partitions', () => {
    it('asks which, in one line, and leaves nothing behind', () => {
      makePartitionedDisk(bench.path('disk.qcow2'), [ROOT, HOME, SWAP]);
      const { exitCode, stderr } = bench.qcow2('mount', '--fs', 'disk.qcow2');
      expect(exitCode).toBe(1);
      expect(stderr).toBe(
        'qcow2: several partitions hold files: 1 (ext4, system), 2 (ext4); ' +
          'choose one with --partition N, or take all with --all\n',
      );
      expectClear('disk.qcow2');
    });

    it('takes all with --all, each in a directory, and undoes all of them', () => {
      makePartitionedDisk(bench.path('disk.qcow2'), [ROOT, SWAP, HOME]);
      bench.ok('mount', '--fs', '--all', 'disk.qcow2', 'm');
      expect(readdirSync(bench.path('m'))).toEqual(['1-root', '3-home']);
      expect([hello('m/1-root'), hello('m/3-home')]).toEqual(Array(2).fill('hello from inside\n'));
      expect(bench.mounts()).toHaveLength(1);
      bench.ok('unmount', 'm');
      expectClear('disk.qcow2');
    });

    it('says who uses one of them, and goes on from there the next time', () => {
      makePartitionedDisk(bench.path('disk.qcow2'), [ROOT, HOME]);
      mkdirSync(bench.path('m'));
      bench.ok('mount', '--fs', '--all', 'disk.qcow2', 'm');
      const fd = openSync(bench.path('m/1-root/hello.txt'), 'r');
      const { exitCode, stderr } = bench.qcow2('unmount', 'm');
      expect(exitCode).toBe(1);
      expect(stderr).toMatch(/m\/1-root: it is in use by .*\(process \d+\); --lazy lets them/);
      closeSync(fd);
      bench.ok('unmount', 'm');
      expect(readdirSync(bench.path('m'))).toEqual([]);
      expectClear('disk.qcow2', 'm');
    });
  });

  describe('where there are no files', () => {
    it.each([
      ['mkswap -q FILE', /there is no filesystem to mount, only swap space in the disk\n$/],
      ['true', /no filesystem was recognised; mount it without --fs to look at its bytes\n$/],
    ])('after %s says so', (command, message) => {
      makeWholeDisk(bench.path('disk.qcow2'), 4, command);
      const { exitCode, stderr } = bench.qcow2('mount', '--fs', 'disk.qcow2');
      expect(exitCode).toBe(1);
      expect(stderr).toMatch(message);
      expectClear('disk.qcow2');
    });

    it('names what holds them, and how to go on', () => {
      writeFileSync(bench.path('luks.raw'), Buffer.alloc(1024 * 1024));
      const header = Buffer.alloc(512);
      header.write('LUKS\xba\xbe', 0, 'latin1');
      header.writeUInt16BE(2, 6);
      writeFileSync(bench.path('luks.raw'), Buffer.concat([header, Buffer.alloc(1024 * 1024)]));
      const { exitCode, stderr } = bench.qcow2('mount', '--fs', '-f', 'raw', 'luks.raw');
      expect(exitCode).toBe(1);
      expect(stderr).toMatch(/but a volume encrypted with LUKS 2 in the disk; .*cryptsetup open /);
      expectClear('luks.raw');
    });
  });

  describe('writing', () => {
    it('reaches the image with --rw before unmount returns', () => {
      makePartitionedDisk(bench.path('disk.qcow2'), [ROOT]);
      bench.ok('mount', '--fs', '--rw', 'disk.qcow2', 'm');
      const content = Buffer.alloc(3_000_000, 'written through all of it\n');
      writeFileSync(bench.path('m/new'), content);
      run('fstrim', [bench.path('m')]);
      // One that serves, and only where root has the capability for it, as in few containers.
      expect(flusherThreads(bench.mount().pid) > 0).toBe(hasSysResource());
      bench.ok('unmount', 'm');
      run('qemu-img', ['check', bench.path('disk.qcow2')]);
      bench.ok('mount', '--fs', 'disk.qcow2', 'm');
      expect(readFileSync(bench.path('m/new')).equals(content)).toBe(true);
      bench.ok('unmount', 'm');
      run('qemu-img', ['convert', '-O', 'raw', bench.path('disk.qcow2'), bench.path('raw')]);
      run('dd', [
        `if=${bench.path('raw')}`,
        `of=${bench.path('part')}`,
        'bs=1M',
        'skip=1',
        'count=16',
        'status=none',
      ]);
      run('e2fsck', ['-f', '-n', bench.path('part')]);
    });

    itPeers(
      ['fuse-native'],
      'goes on through fuse-native for as long as the files are there',
      async () => {
        makeWholeDisk(bench.path('disk.qcow2'), 16, MKFS_EXT4);
        bench.ok('mount', '--fs', '--rw', '--channel=fuse-native', 'disk.qcow2', 'm');
        const { pid } = bench.mount();
        // Longer than it takes to notice that the image's own directory is gone.
        await sleep(1000);
        writeFileSync(bench.path('m/new'), 'written late');
        run('sync', ['-f', bench.path('m')]);
        expect(isAlive(pid, undefined)).toBe(true);
        bench.ok('unmount', 'm');
        expect(isAlive(pid, undefined)).toBe(false);
        qemuImg('check', '-q', bench.path('disk.qcow2'));
        bench.ok('mount', '--fs', 'disk.qcow2', 'm');
        expect(readFileSync(bench.path('m/new'), 'utf8')).toBe('written late');
        bench.ok('unmount', 'm');
        expectClear('disk.qcow2');
      },
    );

    it('is forgotten with --temp, also what replays a journal', () => {
      makeWholeDisk(bench.path('disk.qcow2'), 16, MKFS_EXT4);
      const before = readFileSync(bench.path('disk.qcow2'));
      bench.ok('mount', '--fs', '--temp', 'disk.qcow2', 'm');
      writeFileSync(bench.path('m/new'), 'gone soon');
      bench.ok('unmount', 'm');
      expect(readFileSync(bench.path('disk.qcow2')).equals(before)).toBe(true);
    });
  });

  it('leaves a journal alone that would have to be replayed, and says so', () => {
    makeFilesystem(bench.path('disk.raw'), 16, MKFS_EXT4);
    run('debugfs', ['-w', '-R', 'feature needs_recovery', bench.path('disk.raw')]);
    const { exitCode, stderr } = bench.qcow2('mount', '--fs', '-f', 'raw', 'disk.raw', 'm');
    expect(exitCode).toBe(0);
    expect(stderr).toMatch(/the journal of the ext4 filesystem was not replayed.*--temp replays/);
    expect(hello()).toBe('hello from inside\n');
    bench.ok('unmount', 'm');
    bench.ok('mount', '--fs', '--temp', '-f', 'raw', 'disk.raw', 'm');
    bench.ok('unmount', 'm');
  });

  describe('the end', () => {
    it('waits for what is mounted in it, and names that', () => {
      makeWholeDisk(bench.path('disk.qcow2'), 16, MKFS_EXT4);
      bench.ok('mount', '--fs', 'disk.qcow2', 'm');
      run('mount', ['-t', 'tmpfs', 'none', bench.path('m/lost+found')]);
      const { exitCode, stderr } = bench.qcow2('unmount', 'm');
      run('umount', [bench.path('m/lost+found')]);
      expect(exitCode).toBe(1);
      expect(stderr).toMatch(/m: it is in use, for something is mounted on \S+\/m\/lost\+found;/);
      bench.ok('unmount', 'm');
    });

    it('comes with umount(8) too', async () => {
      makeWholeDisk(bench.path('disk.qcow2'), 16, MKFS_EXT4);
      bench.ok('mount', '--fs', 'disk.qcow2', 'm');
      const { pid } = bench.mount();
      run('umount', [bench.path('m')]);
      await until(() => !isAlive(pid, undefined));
      expectClear('disk.qcow2');
    });

    it.each(['SIGTERM', '--force'])(
      'comes with %s although it is in use, with all that was written',
      async (how) => {
        makeWholeDisk(bench.path('disk.qcow2'), 16, MKFS_EXT4);
        bench.ok('mount', '--fs', '--rw', 'disk.qcow2', 'm');
        const { pid } = bench.mount();
        writeFileSync(bench.path('m/new'), 'kept');
        const fd = openSync(bench.path('m/hello.txt'), 'r');
        if (how === 'SIGTERM') process.kill(pid, 'SIGTERM');
        else bench.ok('unmount', '--force', 'm');
        await until(() => !isAlive(pid, undefined));
        closeSync(fd);
        bench.qcow2('unmount', '--all');
        expectClear('disk.qcow2');
        bench.ok('mount', '--fs', '--temp', 'disk.qcow2', 'm');
        expect(readFileSync(bench.path('m/new'), 'utf8')).toBe('kept');
        bench.ok('unmount', 'm');
      },
    );

    it('of a process that was killed hangs nobody, and is cleared away by the next mount', async () => {
      makePartitionedDisk(bench.path('disk.qcow2'), [ROOT, HOME]);
      bench.ok('mount', '--fs', '--all', 'disk.qcow2', 'm');
      const { pid } = bench.mount();
      const loops = ['m/1-root', 'm/2-home'].map((name) => findMount(bench.path(name))!.source);
      const fd = openSync(loops[0]!, 'r');
      process.kill(pid, 'SIGKILL');
      await until(() => !isAlive(pid, undefined));
      expect(() => readSync(fd, Buffer.alloc(4096), 0, 4096, 8 * 1024 * 1024)).toThrow('EIO');
      closeSync(fd);
      expect(bench.mount().status).toBe('dead');
      bench.ok('mount', '--fs', '--partition', '1', 'disk.qcow2', 'm');
      expect(hello()).toBe('hello from inside\n');
      bench.ok('unmount', 'm');
      await until(() => loops.every((loop) => !isAttached(loop)));
      expectClear('disk.qcow2');
    });

    it('of a connection that somebody aborts takes the files with it', async () => {
      makeWholeDisk(bench.path('disk.qcow2'), 16, MKFS_EXT4);
      bench.ok('mount', '--fs', 'disk.qcow2', 'm');
      const { pid } = bench.mount();
      const record = readdirSync(bench.path('state')).find((name) => name.endsWith('.json'))!;
      const { device } = JSON.parse(readFileSync(bench.path('state', record), 'utf8')) as {
        device: string;
      };
      const control = bench.path('control');
      mkdirSync(control);
      run('mount', ['-t', 'fusectl', 'none', control]);
      writeFileSync(`${control}/${device.split(':')[1]}/abort`, '1\n');
      run('umount', [control]);
      await until(() => !isAlive(pid, undefined));
      rmdirSync(control);
      expectClear('disk.qcow2');
    });

    it('comes with Ctrl-C in the foreground', async () => {
      makeWholeDisk(bench.path('disk.qcow2'), 16, MKFS_EXT4);
      const args = [bench.program, 'mount', '--fs', '--foreground', 'disk.qcow2', 'm'];
      const child = bench.start(process.execPath, args);
      const ended = new Promise<number | null>((resolve) => child.once('exit', resolve));
      await until(() => existsSync(bench.path('m/hello.txt')));
      child.kill('SIGINT');
      expect(await ended).toBe(0);
      expectClear('disk.qcow2');
    });
  });

  describe('filesystems', () => {
    const cases: readonly [type: string, program: string, mib: number, command: string][] = [
      ['xfs', 'mkfs.xfs', 300, 'mkfs.xfs -q FILE'],
      ['btrfs', 'mkfs.btrfs', 128, 'mkfs.btrfs -q --rootdir FILES FILE'],
      ['squashfs', 'mksquashfs', 0, 'mksquashfs FILES FILE -quiet -no-progress -noappend'],
      ['vfat', 'mkfs.vfat', 4, 'mkfs.vfat FILE'],
      ['iso9660', 'genisoimage', 0, 'genisoimage -quiet -R -o FILE FILES'],
    ];
    for (const [type, program, mib, command] of cases) {
      itPeers([program], `${type} is mounted, or it is said that there is no driver`, () => {
        makeWholeDisk(bench.path('disk.qcow2'), mib, command);
        const { exitCode, stderr } = bench.qcow2('mount', '--fs', 'disk.qcow2', 'm');
        if (kernelDrivers().includes(type)) {
          expect({ exitCode, stderr }).toEqual({ exitCode: 0, stderr: '' });
          expect(findMount(bench.path('m'))?.type).toBe(type);
          bench.ok('unmount', 'm');
        } else if (exitCode !== 0) {
          const advice = `this kernel has no driver for ${type}; .*modprobe ${type}`;
          expect(stderr).toMatch(new RegExp(advice));
        } else bench.ok('unmount', 'm');
        expectClear('disk.qcow2');
      });
    }

    itPeers(['mkfs.xfs'], 'xfs with a journal to replay is shown without', () => {
      makeWholeDisk(bench.path('disk.qcow2'), 300, 'mkfs.xfs -q FILE');
      if (!kernelDrivers().includes('xfs')) return;
      bench.ok('mount', '--fs', '--rw', 'disk.qcow2', 'm');
      writeFileSync(bench.path('m/new'), 'x');
      run('sync', ['-f', bench.path('m')]);
      process.kill(bench.mount().pid, 'SIGKILL');
      bench.ok('unmount', 'm');
      const { exitCode, stderr } = bench.qcow2('mount', '--fs', 'disk.qcow2', 'm');
      expect(exitCode).toBe(0);
      expect(stderr).toMatch(/journal of the xfs filesystem was not replayed/);
      bench.ok('unmount', 'm');
      bench.ok('mount', '--fs', '--temp', 'disk.qcow2', 'm');
      expect(readFileSync(bench.path('m/new'), 'utf8')).toBe('x');
      bench.ok('unmount', 'm');
    });
  });

  it('works through losetup(8), mount(8) and umount(8) where koffi is not installed', async () => {
    makePartitionedDisk(bench.path('disk.qcow2'), [ROOT]);
    bench.program = copyWithoutPackages(bench.path('program'));
    bench.ok('mount', '--fs', 'disk.qcow2', 'm');
    expect(hello()).toBe('hello from inside\n');
    const { source } = findMount(bench.path('m'))!;
    bench.ok('unmount', 'm');
    await until(() => !isAttached(source));
    expectClear('disk.qcow2', 'program');
  });

  it('refuses options that make no sense together', () => {
    for (const [args, message] of [
      [['--all', 'x.qcow2'], /--all says of which partitions --fs mounts/],
      [
        ['--fs', '--all', '--partition', '1', 'x.qcow2'],
        /--all and --partition exclude each other/,
      ],
    ] as const) {
      expect(bench.qcow2('mount', ...args).stderr).toMatch(message);
    }
    expect(tryRun('ls', [bench.path()]).stdout).toBe('state\n');
  });
});
