/**
 * Installs the programs that the tests compare with (QEMU, libnbd, fio, …) on Debian and Ubuntu as
 * root; says what is missing elsewhere.
 */

import { spawnSync } from 'node:child_process';
import { accessSync, constants, existsSync } from 'node:fs';
import { delimiter, join } from 'node:path';

/** Debian's packages, and the program or Python module by which it shows that one is there. */
const PACKAGES = [
  { name: 'qemu-utils', program: 'qemu-img' },
  { name: 'qemu-system-common', program: 'qemu-storage-daemon' },
  { name: 'qemu-block-extra', package: true },
  { name: 'nbdkit', program: 'nbdkit' },
  { name: 'libnbd-bin', program: 'nbdinfo' },
  // A part of libnbd-bin in some releases, a package of its own in others.
  { name: 'nbdfuse', program: 'nbdfuse' },
  { name: 'python3-libnbd', module: 'nbd' },
  { name: 'openssl', program: 'openssl' },
  { name: 'fio', program: 'fio' },
  { name: 'fuse3', program: 'fusermount3' },
  { name: 'e2fsprogs', program: 'mke2fs' },
  { name: 'dosfstools', program: 'mkfs.vfat' },
  { name: 'xfsprogs', program: 'mkfs.xfs' },
  { name: 'fdisk', program: 'sfdisk' },
  { name: 'gdisk', program: 'sgdisk' },
  { name: 'mtools', program: 'mcopy' },
  { name: 'zsh', program: 'zsh' },
  { name: 'fish', program: 'fish' },
  { name: 'fuse2fs', program: 'fuse2fs' },
  { name: 'btrfs-progs', program: 'mkfs.btrfs' },
  { name: 'exfatprogs', program: 'mkfs.exfat' },
  { name: 'f2fs-tools', program: 'mkfs.f2fs' },
  { name: 'genisoimage', program: 'genisoimage' },
  { name: 'ntfs-3g', program: 'mkfs.ntfs' },
  { name: 'squashfs-tools', program: 'mksquashfs' },
  // Boots machines from served images; brings seabios with it.
  { name: 'qemu-system-x86', program: 'qemu-system-x86_64' },
];

/** Installs what can be installed, and names the rest. */
export function installPeers() {
  const missing = PACKAGES.filter((entry) => !isPresent(entry));
  if (missing.length === 0) return;
  const names = missing.map(({ name }) => name).join(' ');
  if (!existsSync('/etc/debian_version') || !hasProgram('apt-get')) {
    console.log(`Tests that need these are skipped (names of Debian's packages): ${names}`);
    return;
  }
  if (process.getuid?.() !== 0) {
    console.log(
      `Tests that need these are skipped; to have them, as root: apt-get install ${names}`,
    );
    return;
  }
  console.log(`Installing what the tests compare with: ${names} …`);
  aptGet(['update']);
  const available = missing.filter(({ name }) => succeeds('apt-cache', ['show', name]));
  aptGet(['install', '-y', '--no-install-recommends', ...available.map(({ name }) => name)]);
  const still = PACKAGES.filter((entry) => !isPresent(entry));
  if (still.length > 0) console.log(`Still missing: ${still.map(({ name }) => name).join(' ')}`);
}

function aptGet(args) {
  const { status, stderr } = spawnSync('apt-get', ['-q', ...args], {
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
    stdio: ['ignore', 'ignore', 'pipe'],
    encoding: 'utf8',
  });
  if (status !== 0) console.log(`apt-get ${args[0]} failed:\n${stderr}`);
}

function isPresent(entry) {
  if (entry.program !== undefined) return hasProgram(entry.program);
  if (entry.module !== undefined)
    return succeeds('/usr/bin/python3', ['-c', `import ${entry.module}`]);
  // Block drivers of QEMU: nothing on the search path tells.
  return !hasProgram('dpkg') || succeeds('dpkg', ['-s', entry.name]);
}

/** Whether a program can be run, searching the system administrator's directories too. */
export function hasProgram(name) {
  const directories = [...(process.env.PATH ?? '').split(delimiter), '/usr/sbin', '/sbin'];
  return directories.some((directory) => {
    try {
      accessSync(join(directory, name), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}

function succeeds(program, args) {
  return spawnSync(program, args, { stdio: 'ignore' }).status === 0;
}
