/**
 * `mount --fs` as an ordinary user, through fuse2fs. In a private mount namespace `/dev/fuse` is one
 * that everybody may open, as it is on most systems.
 */

import { chmodSync, chownSync, mkdirSync } from 'node:fs';
import { beforeEach, expect } from 'vitest';
import { describePeers, itPeers } from '../support/peers.ts';
import { tryRun } from '../support/qemu.ts';
import type { RunResult } from '../support/qemu.ts';
import { mountBench } from './mount-support.ts';
import { EMPTY, HOME, makePartitionedDisk, makeWholeDisk, ROOT } from './mount-fs-support.ts';

const NOBODY = 65_534;
const PROGRAMS = ['fusermount3', 'unshare', 'sfdisk', 'mkfs.ext4', 'fuse2fs', 'qemu-img'];
const NEEDED = ['root', 'other-user', '/dev/fuse', 'koffi', ...PROGRAMS];

describePeers(NEEDED, 'qcow2 mount --fs as an ordinary user', () => {
  const bench = mountBench();
  beforeEach(() => mkdirSync(bench.path('home')));

  /** Runs a shell script as nobody; `qcow2` is the command. The mounts go with the namespace. */
  function asNobody(script: string, { hidden = [] as string[] } = {}): RunResult {
    chmodSync(bench.path(), 0o755);
    for (const name of ['home', 'state', 'disk.qcow2']) {
      chownSync(bench.path(name), NOBODY, NOBODY);
    }
    const asRoot = [
      'set -e',
      ...hidden.map((name) => `mount --bind /dev/null $(readlink -f $(command -v ${name}))`),
      'mkdir dev; mount -t tmpfs none dev; mknod dev/fuse c 10 229',
      'chmod 666 dev/fuse; mount --bind dev/fuse /dev/fuse',
      `cd home; exec setpriv --reuid=${NOBODY} --regid=${NOBODY} --clear-groups sh -c "$1"`,
    ].join('\n');
    const asUser = `qcow2() { '${process.execPath}' '${bench.program}' "$@"; }\n${script}`;
    return tryRun('unshare', ['-m', 'sh', '-c', asRoot, 'sh', asUser], {
      cwd: bench.path(),
      env: bench.environment,
    });
  }

  itPeers([], 'shows the files, those of root too, and unmounts', () => {
    makePartitionedDisk(bench.path('disk.qcow2'), [EMPTY, ROOT]);
    const { stdout, stderr, exitCode } = asNobody(`
      qcow2 mount --fs -v ../disk.qcow2 > told || exit
      grep -o 'driver: fuse2fs' told; rm told
      cat disk/hello.txt disk/secret || exit
      echo new 2> /dev/null > disk/new && exit 9
      qcow2 mounts | grep -c alive
      exec 3< disk/hello.txt
      qcow2 unmount disk && exit 10
      exec 3<&-
      qcow2 unmount disk || exit
      ls; qcow2 mounts`);
    expect(stderr).toMatch(/^qcow2: \S+\/disk: it is in use by sh \(process \d+\).*\n$/);
    expect(exitCode).toBe(0);
    expect(stdout).toBe(
      'driver: fuse2fs\nhello from inside\nof root alone\n1\nnothing is mounted\n',
    );
  });

  itPeers([], 'writes with --rw, and with --all to each', () => {
    makePartitionedDisk(bench.path('disk.qcow2'), [ROOT, HOME]);
    const { stdout, stderr, exitCode } = asNobody(`
      qcow2 mount --fs --all --rw ../disk.qcow2 m > told || exit
      echo one > m/1-root/new; echo two > m/2-home/new
      qcow2 unmount m || exit
      qemu-img check -q ../disk.qcow2 || exit
      qcow2 mount --fs --all ../disk.qcow2 m > told || exit
      cat m/1-root/new m/2-home/new
      qcow2 unmount m || exit
      rm told; ls`);
    expect({ stderr, exitCode }).toEqual({ stderr: '', exitCode: 0 });
    expect(stdout).toBe('one\ntwo\n');
  });

  itPeers([], 'clears away what a killed process left', () => {
    makePartitionedDisk(bench.path('disk.qcow2'), [ROOT]);
    const { stdout, exitCode } = asNobody(`
      qcow2 mount --fs ../disk.qcow2 m > told || exit
      kill -9 $(qcow2 mounts --output=json | sed -n 's/.*"pid": \\([0-9]*\\).*/\\1/p')
      qcow2 mounts | grep -c dead
      qcow2 unmount m || exit
      rm told; ls; qcow2 mounts; ls ../state`);
    expect(exitCode).toBe(0);
    expect(stdout).toBe('1\nnothing is mounted\n');
  });

  itPeers([], 'says what to install, or that only root can', () => {
    makePartitionedDisk(bench.path('disk.qcow2'), [ROOT]);
    const missing = asNobody('qcow2 mount --fs ../disk.qcow2; ls; ls ../state', {
      hidden: ['fuse2fs'],
    });
    expect(missing).toMatchObject({
      exitCode: 0,
      stdout: '',
      stderr:
        'qcow2: an ordinary user needs the program fuse2fs to see the files of ext4; ' +
        'install the package fuse2fs, or mount as root\n',
    });
  });

  itPeers(
    ['mkfs.ntfs', 'ntfs-3g'],
    'shows NTFS through ntfs-3g, or says what that has against it',
    () => {
      makeWholeDisk(bench.path('disk.qcow2'), 8, 'mkfs.ntfs -q -F -Q FILE');
      const { stdout, stderr, exitCode } = asNobody(`
      qcow2 mount --fs ../disk.qcow2 m > told && qcow2 unmount m; code=$?
      rm -f told; ls; qcow2 mounts; ls ../state; exit $code`);
      expect(stdout).toBe('nothing is mounted\n');
      expect(`${exitCode} ${stderr}`).toMatch(
        /^(?:0 |1 qcow2: ntfs-3g cannot mount it: .*Permission denied; .*mount as root\n)$/,
      );
    },
  );

  itPeers(['mkfs.xfs'], 'says where only root can', () => {
    makeWholeDisk(bench.path('disk.qcow2'), 300, 'mkfs.xfs -q FILE');
    expect(asNobody('qcow2 mount --fs ../disk.qcow2; ls')).toMatchObject({
      stdout: '',
      stderr:
        'qcow2: no program is known that shows xfs to users; ' +
        'root can mount it with the driver of the kernel\n',
    });
  });
});
