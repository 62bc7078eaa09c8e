/**
 * Mounts of an ordinary user, through fusermount3. In a private mount namespace `/dev/fuse` is one
 * that everybody may open, as it is on most systems.
 */

import { chmodSync, chownSync, mkdirSync } from 'node:fs';
import { expect } from 'vitest';
import { describePeers, itPeers } from '../support/peers.ts';
import { tryRun } from '../support/qemu.ts';
import type { RunResult } from '../support/qemu.ts';
import { copyWithoutPackages, makeDisk, mountBench } from './mount-support.ts';

const NOBODY = 65_534;
const NEEDED = ['root', 'other-user', '/dev/fuse', 'koffi', 'fusermount3', 'unshare'] as const;

describePeers([...NEEDED, 'sfdisk', 'mkfs.ext4'], 'qcow2 mount as an ordinary user', () => {
  const bench = mountBench();

  /** Runs a shell script as nobody; `qcow2` is the command. The mounts go with the namespace. */
  function asNobody(script: string, { fuseMode = '666', hideFusermount = false } = {}): RunResult {
    makeDisk(bench.path('disk.img'));
    mkdirSync(bench.path('home'));
    chmodSync(bench.path(), 0o755);
    for (const name of ['home', 'state']) chownSync(bench.path(name), NOBODY, NOBODY);
    const hide = 'program=$(command -v $name) && mount --bind /dev/null $(readlink -f $program)';
    const asRoot = [
      'set -e',
      hideFusermount ? `for name in fusermount3 fusermount; do ${hide} || :; done` : '',
      'mkdir dev; mount -t tmpfs none dev; mknod dev/fuse c 10 229',
      `chmod ${fuseMode} dev/fuse; mount --bind dev/fuse /dev/fuse`,
      `cd home; exec setpriv --reuid=${NOBODY} --regid=${NOBODY} --clear-groups sh -c "$1"`,
    ].join('\n');
    const asUser = `qcow2() { '${process.execPath}' '${bench.program}' "$@"; }\n${script}`;
    return tryRun('unshare', ['-m', 'sh', '-c', asRoot, 'sh', asUser], {
      cwd: bench.path(),
      env: bench.environment,
    });
  }

  itPeers([], 'works, and unmounts', () => {
    const { stdout, stderr, exitCode } = asNobody(`
      qcow2 mount -v ../disk.img || exit
      cmp disk/disk.raw ../disk.img || exit
      stat -c '%u %a' disk/disk.raw
      findmnt -no FSTYPE,OPTIONS disk
      qcow2 mounts
      qcow2 unmount disk || exit
      ls
      qcow2 mounts`);
    expect({ stderr, exitCode }).toEqual({ stderr: '', exitCode: 0 });
    expect(stdout).toContain('channel: kernel\n');
    expect(stdout).toContain('65534 444\n');
    expect(stdout).toMatch(/fuse\.qcow2 +ro,nosuid,nodev,.*user_id=65534.*default_permissions/);
    expect(stdout).toMatch(/ alive +nobody /);
    expect(stdout.endsWith('nothing is mounted\n')).toBe(true);
  });

  itPeers([], 'writes with --rw', () => {
    const { stdout, stderr, exitCode } = asNobody(`
      cp ../disk.img mine.img
      qcow2 mount --rw -f raw mine.img m > told || exit
      stat -c '%u %a' m/disk.raw
      echo written | dd of=m/disk.raw bs=1M seek=30 conv=notrunc,fsync status=none || exit
      fallocate -p -o 1M -l 1M m/disk.raw || exit
      qcow2 unmount m || exit
      dd if=mine.img bs=1M skip=30 count=1 status=none | head -c 8
      cmp -n 1M -i 1M:0 mine.img /dev/zero && echo freed`);
    expect({ stderr, exitCode }).toEqual({ stderr: '', exitCode: 0 });
    expect(stdout).toBe('65534 644\nwritten\nfreed\n');
  });

  itPeers([], 'clears away what a killed process left, and ends what is in use', () => {
    const { stdout, stderr, exitCode } = asNobody(`
      pid() { qcow2 mounts --output=json | sed -n 's/.*"pid": \\([0-9]*\\).*/\\1/p'; }
      qcow2 mount ../disk.img m > first || exit
      kill -9 $(pid)
      qcow2 mount ../disk.img m > second || exit
      cmp -n 4096 m/disk.raw ../disk.img || exit
      exec 3< m/disk.raw
      qcow2 unmount m && exit 9
      qcow2 unmount --force m || exit
      dd bs=1M skip=30 count=1 <&3 > part && exit 10
      ls; qcow2 mounts`);
    expect(exitCode).toBe(0);
    expect(stderr).toMatch(/m: it is in use by sh \(process \d+\)/);
    expect(stdout).toBe('first\npart\nsecond\nnothing is mounted\n');
  });

  itPeers([], 'explains that allow_other is not for everyone', () => {
    const { stderr, exitCode } = asNobody('qcow2 mount -o allow_other ../disk.img; ls');
    expect(exitCode).toBe(0);
    expect(stderr).toMatch(/allow_other is only for root, unless \/etc\/fuse\.conf/);
  });

  itPeers([], 'says what is missing in one line', () => {
    const closed = asNobody('qcow2 mount --channel kernel ../disk.img', { fuseMode: '600' });
    expect(closed.exitCode).toBe(1);
    expect(closed.stderr).toMatch(/^qcow2: .*\/dev\/fuse.*\n$/);
  });

  itPeers([], 'says that it needs koffi', () => {
    bench.program = copyWithoutPackages(bench.path('program'));
    const { exitCode, stderr } = asNobody('qcow2 mount ../disk.img');
    expect(exitCode).toBe(1);
    expect(stderr).toBe(
      'qcow2: mounting as an ordinary user needs the optional package koffi; ' +
        'install it with: npm install koffi\n',
    );
  });

  itPeers([], 'says that it needs fusermount3', () => {
    const { exitCode, stderr } = asNobody('qcow2 mount ../disk.img', { hideFusermount: true });
    expect(exitCode).toBe(1);
    expect(stderr).toBe(
      'qcow2: mounting as an ordinary user needs the program fusermount3; ' +
        'install the package fuse3\n',
    );
  });
});
