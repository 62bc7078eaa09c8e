/** `mount`, `unmount` and `mounts`: what they print, make, remove, refuse and clear away. */

import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { setImmediate, setTimeout as sleep } from 'node:timers/promises';
import { beforeEach, describe, expect, it } from 'vitest';
import { findMount } from '../../src/host/mountinfo.ts';
import { isAlive } from '../../src/host/processes.ts';
import { describePeers } from '../support/peers.ts';
import { run, tryRun } from '../support/qemu.ts';
import { until } from '../support/until.ts';
import {
  availableChannels,
  CLI,
  copyWithoutPackages,
  makeDisk,
  mountBench,
} from './mount-support.ts';

/** Name of the error of reading a file; `ok` if there is none. */
function readError(fd: number): string {
  try {
    readSync(fd, Buffer.alloc(65_536), 0, 65_536, 8 * 1024 * 1024);
    return 'ok';
  } catch (error) {
    return (error as NodeJS.ErrnoException).code!;
  }
}

/** The first byte of a file; undefined as long as it cannot be read. */
function readFirstByte(path: string): number | undefined {
  try {
    const fd = openSync(path, 'r');
    try {
      const byte = Buffer.alloc(1);
      return readSync(fd, byte, 0, 1, 0) === 1 ? byte[0] : undefined;
    } finally {
      closeSync(fd);
    }
  } catch {
    return undefined;
  }
}

describePeers(['root', '/dev/fuse', 'sfdisk', 'mkfs.ext4'], 'qcow2 mount', () => {
  const bench = mountBench();
  beforeEach(() => makeDisk(bench.path('disk.img')));

  describe('without a directory', () => {
    it('makes one named after the image, tells what is where, and removes it at the end', () => {
      const output = bench.ok('mount', 'disk.img');
      expect(output.split('\n')).toEqual([
        `${bench.path('disk.img')} is mounted on ${bench.path('disk')}`,
        '  Number  Size    Type              Label       Filesystem  File',
        '          40 MiB  disk (raw)                                disk.raw',
        '  1        4 MiB  EFI system        boot                    partitions/1-boot.raw',
        '  2       24 MiB  Linux filesystem  root files  ext4        partitions/2-root files.raw',
        'see its files with: qcow2 mount --fs disk.img DIR',
        'unmount with: qcow2 unmount disk',
        '',
      ]);
      expect(readdirSync(bench.path('disk'))).toContain('disk.raw');
      const { pid } = bench.mount();
      expect(bench.ok('unmount', 'disk')).toBe('');
      expect(existsSync(bench.path('disk'))).toBe(false);
      expect(isAlive(pid, undefined)).toBe(false);
      expect(readdirSync(bench.path('state'))).toEqual([]);
    });

    it('takes an empty one that is there, and leaves it there', () => {
      mkdirSync(bench.path('disk'));
      bench.ok('mount', 'disk.img');
      bench.ok('unmount', 'disk');
      expect(readdirSync(bench.path('disk'))).toEqual([]);
    });

    it('finds another name for an image without a suffix', () => {
      run('mv', [bench.path('disk.img'), bench.path('disk')]);
      bench.ok('mount', 'disk');
      expect(bench.mount().directory).toBe(bench.path('disk.mnt'));
    });
  });

  it('prints one JSON document with --output=json', () => {
    const document: unknown = JSON.parse(bench.ok('mount', '--output=json', 'disk.img', "it's"));
    expect(document).toMatchObject({
      directory: bench.path("it's"),
      image: bench.path('disk.img'),
      channel: 'kernel',
      format: 'raw',
      disk: { file: 'disk.raw', size: 41_943_040 },
      partitionScheme: 'gpt',
      partitions: [
        {
          number: 1,
          name: 'boot',
          file: 'partitions/1-boot.raw',
          size: 4_194_304,
          filesystem: null,
        },
        {
          number: 2,
          name: 'root files',
          file: 'partitions/2-root files.raw',
          filesystem: { type: 'ext4', usage: 'filesystem', label: '', size: 25_165_824 },
        },
      ],
      unmount: "qcow2 unmount 'it'\\''s'",
    });
  });

  it('says with --verbose which channel it took', () => {
    expect(bench.ok('mount', '-v', 'disk.img', 'm')).toMatch(/^channel: kernel\nprocess: \d+$/m);
  });

  it('shows one partition as the disk with --partition', () => {
    bench.ok('mount', '--partition', '1', 'disk.img', 'm');
    const { stdout } = tryRun('stat', ['-c', '%s', bench.path('m/disk.raw')]);
    expect(stdout).toBe('4194304\n');
    run('cmp', [
      '-i',
      '0:1048576',
      '-n',
      '4194304',
      bench.path('m/disk.raw'),
      bench.path('disk.img'),
    ]);
  });

  it('follows a symbolic link to the directory, both ways', () => {
    mkdirSync(bench.path('real'));
    symlinkSync('real', bench.path('link'));
    bench.ok('mount', 'disk.img', 'link');
    expect(bench.mount().directory).toBe(bench.path('real'));
    bench.ok('unmount', 'link');
    expect(readdirSync(bench.path('real'))).toEqual([]);
  });

  describe('mount options', () => {
    it('set owner, permissions, name, type and flags', () => {
      const options = 'uid=12,gid=34,umask=077,fsname=a\\,b,subtype=my.type,noexec,noatime';
      bench.ok('mount', '-o', options, '-o', 'allow_other', 'disk.img', 'm');
      const stat = run('stat', ['-c', '%u %g %a', bench.path('m'), bench.path('m/disk.raw')]);
      expect(stat).toBe('12 34 500\n12 34 400\n');
      const mount = findMount(bench.path('m'))!;
      expect(mount).toMatchObject({ type: 'fuse.my.type', source: 'a,b' });
      expect(mount.superOptions).toContain('allow_other');
      const flags = run('findmnt', ['-no', 'OPTIONS', bench.path('m')]);
      expect(flags).toMatch(/^ro,nosuid,nodev,noexec,noatime,/);
      bench.ok('unmount', 'm');
    });

    it('that are unknown are refused with a suggestion, and nothing is made', () => {
      const { exitCode, stderr } = bench.qcow2('mount', '-o', 'alow_other', 'disk.img');
      expect(exitCode).toBe(1);
      expect(stderr).toBe('qcow2: unknown mount option -o alow_other; did you mean allow_other?\n');
      expect(existsSync(bench.path('disk'))).toBe(false);
    });
  });

  describe('refuses', () => {
    /** Fails with one line, and leaves no trace. */
    function refuses(args: readonly string[], line: RegExp): void {
      const before = readdirSync(bench.path());
      const { exitCode, stdout, stderr } = bench.qcow2('mount', ...args);
      expect(stderr).toMatch(/^qcow2: [^\n]*\n$/);
      expect(stderr).toMatch(line);
      expect({ exitCode, stdout }).toEqual({ exitCode: 1, stdout: '' });
      expect(readdirSync(bench.path())).toEqual(before);
      expect(readdirSync(bench.path('state'))).toEqual([]);
    }

    it('an image that is missing', () => {
      refuses(['none.qcow2'], /none\.qcow2: cannot open: no such file or directory/);
    });

    it('a directory in place of an image', () => {
      refuses(['state', 'm'], /it is a directory, not a disk image/);
    });

    it('a file that says it is qcow2 and is not', () => {
      writeFileSync(bench.path('bad.qcow2'), Buffer.concat([Buffer.from('QFI\xfb', 'latin1')]));
      refuses(['-f', 'qcow2', 'bad.qcow2', 'm'], /bad\.qcow2/);
      writeFileSync(
        bench.path('bad.qcow2'),
        Buffer.from('QFI\xfb\0\0\0\x03'.padEnd(600, 'x'), 'latin1'),
      );
      refuses(['bad.qcow2', 'm'], /bad\.qcow2/);
    });

    it('a partition that there is not', () => {
      refuses(['--partition', '7', 'disk.img', 'm'], /partition 7/);
      refuses(['--partition', 'x', 'disk.img', 'm'], /--partition must be a number/);
    });

    it('a directory with files in it, unless nonempty is given', () => {
      mkdirSync(bench.path('full'));
      writeFileSync(bench.path('full/file'), '');
      refuses(['disk.img', 'full'], /full: the directory is not empty; .*-o nonempty/);
      bench.ok('mount', '-o', 'nonempty', 'disk.img', 'full');
      bench.ok('unmount', 'full');
      expect(readdirSync(bench.path('full'))).toEqual(['file']);
    });

    it('a directory that is a file, or has no parent', () => {
      refuses(['disk.img', 'disk.img'], /disk\.img: it is not a directory/);
      refuses(['disk.img', 'a/b'], /cannot make the directory: no such file or directory/);
    });

    it('a directory that an image is mounted on', () => {
      bench.ok('mount', 'disk.img', 'm');
      const { exitCode, stderr } = bench.qcow2('mount', 'disk.img', 'm');
      expect(exitCode).toBe(1);
      expect(stderr).toBe(
        `qcow2: ${bench.path('m')}: ${bench.path('disk.img')} is mounted there already; ` +
          'qcow2 unmount m\n',
      );
    });
  });

  it.each(['SIGINT', 'SIGTERM', 'SIGHUP'] as const)(
    'in the foreground unmounts on %s',
    async (signal) => {
      const child = bench.start(process.execPath, [CLI, 'mount', '--foreground', 'disk.img']);
      const ended = new Promise((resolve) => child.once('exit', resolve));
      await until(() => existsSync(bench.path('disk/disk.raw')));
      await until(() => bench.mounts().length === 1);
      expect(bench.mount()).toMatchObject({ pid: child.pid, log: null, status: 'alive' });
      child.kill(signal);
      expect(await ended).toBe(0);
      expect(existsSync(bench.path('disk'))).toBe(false);
      expect(bench.mounts()).toEqual([]);
    },
  );

  it('in the foreground unmounts when the signal comes with the first byte', async () => {
    for (let attempt = 0; attempt < 6; attempt++) {
      const child = bench.start(process.execPath, [CLI, 'mount', '--foreground', 'disk.img']);
      const ended = new Promise((resolve) => {
        child.once('exit', (code, signal) => resolve(code ?? signal));
      });
      while (readFirstByte(bench.path('disk/disk.raw')) === undefined) await setImmediate();
      child.kill('SIGTERM');
      expect(await ended).toBe(0);
      expect(existsSync(bench.path('disk'))).toBe(false);
    }
    expect(bench.mounts()).toEqual([]);
  });

  describe('qcow2 mounts', () => {
    it('tells what is mounted, by whom, since when', () => {
      expect(bench.ok('mounts')).toBe('nothing is mounted\n');
      bench.ok('mount', 'disk.img', 'm');
      const line = bench.mount();
      expect(line).toMatchObject({
        directory: bench.path('m'),
        image: bench.path('disk.img'),
        status: 'alive',
        user: 'root',
        uid: 0,
        channel: 'kernel',
      });
      expect(Date.now() - Date.parse(line.since)).toBeLessThan(20_000);
      expect(readFileSync(`/proc/${line.pid}/cmdline`, 'latin1')).toContain('qcow2 mount');
      expect(existsSync(line.log!)).toBe(true);
      const [head, row] = bench.ok('mounts').split('\n');
      expect(head).toMatch(
        /^Directory +Image +State +User +Since \(UTC\) +Process +Channel +Access$/,
      );
      expect(row).toContain(`${bench.path('m')}  ${bench.path('disk.img')}  alive  root  `);
    });

    it('leaves out records that somebody else could have written', () => {
      bench.ok('mount', 'disk.img', 'm');
      const [record] = readdirSync(bench.path('state')).filter((name) => name.endsWith('.json'));
      const text = readFileSync(bench.path('state', record!), 'utf8');
      writeFileSync(bench.path('state/aa.json'), text.replace('"pid": ', '"pid": "x", "p": '));
      writeFileSync(bench.path('state/bb.json'), text);
      run('chown', ['nobody', bench.path('state/bb.json')]);
      writeFileSync(bench.path('state/cc.json'), 'not JSON');
      writeFileSync(bench.path('state/dd.json'), text + ' '.repeat(100_000));
      expect(bench.mounts()).toHaveLength(1);
    });
  });

  describe.each(availableChannels())('a mount through %s', (channel) => {
    beforeEach(() => {
      bench.ok('mount', '--channel', channel, 'disk.img', 'm');
    });

    it('whose process is killed hangs nobody, and the next mount clears it away', async () => {
      const fd = openSync(bench.path('m/disk.raw'), 'r');
      try {
        process.kill(bench.mount().pid, 'SIGKILL');
        await until(() => readError(fd) !== 'ok');
        expect(['ENOTCONN', 'ECONNABORTED']).toContain(readError(fd));
      } finally {
        closeSync(fd);
      }
      expect(bench.mount().status).toBe('dead');
      expect(tryRun('ls', [bench.path('m')], { timeoutMs: 5000 }).exitCode).not.toBe(0);
      bench.ok('mount', '--channel', channel, 'disk.img', 'm');
      expect(bench.mount().status).toBe('alive');
      expect(readdirSync(bench.path('m'))).toContain('disk.raw');
    });

    it('whose process was killed is cleared away by unmount, directory and all', async () => {
      const { pid } = bench.mount();
      process.kill(pid, 'SIGKILL');
      await until(() => !isAlive(pid, undefined));
      bench.ok('unmount', 'm');
      expect(existsSync(bench.path('m'))).toBe(false);
      expect(bench.mounts()).toEqual([]);
      expect(bench.qcow2('unmount', 'm').stderr).toMatch(/no image is mounted there/);
    });

    it('that is in use stays, and who uses it is told; --force cuts the user off', async () => {
      const reader = bench.start('sh', ['-c', 'exec sleep 60 < m/disk.raw']);
      const name = `sleep (process ${reader.pid})`;
      await until(() => tryRun('ls', ['-l', `/proc/${reader.pid}/fd`]).stdout.includes('disk.raw'));
      const { exitCode, stderr } = bench.qcow2('unmount', 'm');
      expect(exitCode).toBe(1);
      expect(stderr).toBe(
        `qcow2: ${bench.path('m')}: it is in use by ${name}; ` +
          '--lazy lets them finish, --force cuts them off\n',
      );
      expect(bench.mount().status).toBe('alive');
      bench.ok('unmount', '--force', 'm');
      expect(existsSync(bench.path('m'))).toBe(false);
    });

    it('ends on SIGTERM although it is in use', async () => {
      const fd = openSync(bench.path('m/disk.raw'), 'r');
      const { pid } = bench.mount();
      try {
        process.kill(pid, 'SIGTERM');
        await until(() => !isAlive(pid, undefined));
        expect(['ENOTCONN', 'ECONNABORTED']).toContain(readError(fd));
      } finally {
        closeSync(fd);
      }
      expect(existsSync(bench.path('m'))).toBe(false);
      expect(bench.mounts()).toEqual([]);
    });

    it('that umount(8) ends takes its process and its directory with it', async () => {
      const { pid } = bench.mount();
      run('umount', [bench.path('m')]);
      await until(() => !isAlive(pid, undefined));
      expect(existsSync(bench.path('m'))).toBe(false);
      expect(bench.mounts()).toEqual([]);
    });
  });

  describe('qcow2 unmount', () => {
    it.each(availableChannels())(
      '--lazy, through %s, leaves what is open readable, and the process until it is closed',
      async (channel) => {
        bench.ok('mount', '--channel', channel, 'disk.img', 'm');
        const { pid } = bench.mount();
        const fd = openSync(bench.path('m/disk.raw'), 'r');
        try {
          bench.ok('unmount', '--lazy', 'm');
          expect(findMount(bench.path('m'))).toBeUndefined();
          // The end would be noticed by now.
          await sleep(500);
          expect(readError(fd)).toBe('ok');
          expect(isAlive(pid, undefined)).toBe(true);
        } finally {
          closeSync(fd);
        }
        await until(() => !isAlive(pid, undefined));
        expect(existsSync(bench.path('m'))).toBe(false);
      },
    );

    it('--force ends a process that does not answer', () => {
      bench.ok('mount', 'disk.img', 'm');
      const { pid } = bench.mount();
      process.kill(pid, 'SIGSTOP');
      bench.ok('unmount', '--force', 'm');
      expect(isAlive(pid, undefined)).toBe(false);
      expect(existsSync(bench.path('m'))).toBe(false);
    });

    it('--all ends everything', () => {
      bench.ok('mount', 'disk.img', 'a');
      bench.ok('mount', 'disk.img', 'b');
      expect(bench.mounts()).toHaveLength(2);
      bench.ok('unmount', '--all');
      expect(bench.mounts()).toEqual([]);
      expect(bench.ok('unmount', '--all')).toBe('');
    });

    it('refuses what is not its own', () => {
      expect(bench.qcow2('unmount').stderr).toMatch(/name a directory, or use --all/);
      expect(bench.qcow2('unmount', '--all', 'x').stderr).toMatch(/--all takes no directories/);
      expect(bench.qcow2('unmount', 'nowhere').stderr).toMatch(/no image is mounted there/);
      expect(bench.qcow2('unmount', '/proc').stderr).toBe(
        'qcow2: /proc: something else is mounted there (proc); umount(8) unmounts it\n',
      );
    });
  });

  describe('without the optional packages', () => {
    beforeEach(() => {
      bench.program = copyWithoutPackages(bench.path('program'));
    });

    it('root mounts and unmounts through mount(8) and umount(8)', () => {
      bench.ok('mount', '-o', 'noexec,fsname=a b', 'disk.img', 'm');
      expect(bench.mount().channel).toBe('kernel');
      expect(findMount(bench.path('m'))).toMatchObject({ type: 'fuse.qcow2', source: 'a b' });
      run('cmp', [bench.path('m/disk.raw'), bench.path('disk.img')]);
      const fd = openSync(bench.path('m/disk.raw'), 'r');
      try {
        // This process, by the name that it gave its main thread.
        const name = readFileSync('/proc/self/comm', 'utf8').trim();
        expect(bench.qcow2('unmount', 'm').stderr).toContain(`it is in use by ${name} (process`);
        bench.ok('unmount', '--force', 'm');
      } finally {
        closeSync(fd);
      }
      expect(existsSync(bench.path('m'))).toBe(false);
    });

    it('the other channel says what to install', () => {
      const { exitCode, stderr } = bench.qcow2('mount', '--channel', 'fuse-native', 'disk.img');
      expect(exitCode).toBe(1);
      expect(stderr).toBe(
        'qcow2: the channel fuse-native needs the optional package fuse-native; ' +
          'install it with: npm install fuse-native\n',
      );
      expect(existsSync(bench.path('disk'))).toBe(false);
    });
  });

  it('uses little memory', () => {
    bench.ok('mount', 'disk.img', 'm');
    run('cat', [bench.path('m/disk.raw')]);
    const status = readFileSync(`/proc/${bench.mount().pid}/status`, 'utf8');
    const kibibytes = Number(/^VmHWM:\s+(\d+) kB$/m.exec(status)![1]);
    expect(kibibytes).toBeLessThan(120 * 1024);
  });
});
