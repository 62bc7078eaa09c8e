/**
 * A disk from which a PC boots Linux: a boot sector, a FAT partition with the boot loader, a kernel
 * and an initial filesystem, and an ext4 partition with the files to work on.
 */

import { mkdirSync, readdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { GUEST_DIRECTORY } from '../support/peers.ts';
import { run } from '../support/qemu.ts';
import { packCpio } from './cpio.ts';
import type { CpioEntry } from './cpio.ts';

const MiB = 1024 * 1024;

/** Where the partitions lie, in bytes. */
export const BOOT_PARTITION = { offset: MiB, length: 32 * MiB } as const;
export const ROOT_PARTITION = { offset: 33 * MiB, length: 63 * MiB } as const;
export const DISK_BYTES = 96 * MiB;

const DIRECTORY = 0o40755;
const PROGRAM = 0o100755;
const LINK = 0o120777;
const CHARACTER_DEVICE = 0o20600;

/** Commands of busybox that {@link INIT} and the guest's script use. */
const COMMANDS = (
  'sh cat dd dmesg echo fstrim grep insmod md5sum mount mkdir mv poweroff rm seq sleep sync ' +
  'truncate umount'
).split(' ');

/** What Linux calls the second partition, by the kind of disk. */
const ROOT_DEVICES = ['/dev/vda2', '/dev/nvme0n1p2'];

/** The order in which they need each other. */
const MODULE_ORDER = [
  'virtio_ring',
  'virtio',
  'virtio_pci_legacy_dev',
  'virtio_pci_modern_dev',
  'virtio_pci',
  'virtio_blk',
];

/** Runs the script that is on the disk, tells how that went, and switches the machine off. */
const INIT = `#!/bin/sh
mount -t devtmpfs dev /dev; mount -t proc proc /proc
for module in $(cat /modules.order); do insmod /$module; done
for try in $(seq 100); do
  for disk in ${ROOT_DEVICES.join(' ')}; do [ -b $disk ] && break 2; done
  sleep 0.1
done
if mount -t ext4 $disk /mnt; then
  cd /mnt; sh -e /mnt/job; echo "job: exit code $?"
  cd /; umount /mnt; echo "umount: exit code $?"
fi
dmesg | grep -iE 'i/o error|ext4-fs (error|warning)|remount'
poweroff -f
`;

/** The kernel's first filesystem: busybox, drivers and {@link INIT}. */
function initialFilesystem(): Buffer {
  const present = readdirSync(join(GUEST_DIRECTORY, 'modules'));
  const modules = MODULE_ORDER.map((name) => `${name}.ko`).filter((name) => present.includes(name));
  const directories = ['dev', 'proc', 'mnt', 'bin'];
  const entries: CpioEntry[] = [
    ...directories.map((name) => ({ name, mode: DIRECTORY })),
    { name: 'dev/console', mode: CHARACTER_DEVICE, device: [5, 1] },
    { name: 'bin/busybox', mode: PROGRAM, data: readFileSync(join(GUEST_DIRECTORY, 'busybox')) },
    ...COMMANDS.map((name) => ({
      name: `bin/${name}`,
      mode: LINK,
      data: Buffer.from('busybox'),
    })),
    ...modules.map((name) => ({
      name,
      mode: PROGRAM,
      data: readFileSync(join(GUEST_DIRECTORY, 'modules', name)),
    })),
    { name: 'modules.order', mode: PROGRAM, data: Buffer.from(modules.join('\n')) },
    { name: 'init', mode: PROGRAM, data: Buffer.from(INIT) },
  ];
  return packCpio(entries);
}

/**
 * Makes a raw disk that boots, with `job` as the script that the guest runs in the root directory of
 * its second partition.
 */
export function makeBootableDisk(path: string, job: string): void {
  const scratch = `${path}.files`;
  const boot = join(scratch, 'boot');
  const root = join(scratch, 'root');
  for (const directory of [scratch, boot, root]) mkdirSync(directory);
  writeFileSync(path, '');
  truncateSync(path, DISK_BYTES);
  const sectors = [BOOT_PARTITION, ROOT_PARTITION].map(
    ({ offset, length }) => `start=${offset / 512}, size=${length / 512}`,
  );
  const table = `label: dos\n${sectors[0]}, type=c, bootable\n${sectors[1]}, type=83\n`;
  run('sfdisk', ['--quiet', path], { input: table });
  run('dd', [`if=${GUEST_DIRECTORY}/mbr.bin`, `of=${path}`, 'conv=notrunc', 'status=none']);

  const fat = ['-F', '16', '--offset', `${BOOT_PARTITION.offset / 512}`, '-h', '2048'];
  run('mkfs.vfat', [...fat, path, `${BOOT_PARTITION.length / 1024}`]);
  writeFileSync(join(boot, 'initrd'), initialFilesystem());
  // Nothing of the kernel's own on the console, and no check of a timer that fails where the host is
  // busy: what matters is asked for by INIT.
  const options = 'console=ttyS0 loglevel=0 no_timer_check panic=-1 nokaslr mitigations=off';
  const entry = `LABEL linux\nKERNEL vmlinuz\nINITRD initrd\nAPPEND ${options}\n`;
  writeFileSync(join(boot, 'syslinux.cfg'), `DEFAULT linux\nPROMPT 0\n${entry}`);
  const files = [
    join(GUEST_DIRECTORY, 'vmlinuz'),
    join(boot, 'initrd'),
    join(boot, 'syslinux.cfg'),
  ];
  run('mcopy', ['-i', `${path}@@${BOOT_PARTITION.offset}`, ...files, '::']);
  run(join(GUEST_DIRECTORY, 'syslinux'), [
    '--install',
    '--offset',
    `${BOOT_PARTITION.offset}`,
    path,
  ]);

  writeFileSync(join(root, 'job'), job);
  const ext4 = ['-q', '-t', 'ext4', '-d', root, '-E', `offset=${ROOT_PARTITION.offset}`];
  run('mke2fs', [...ext4, path, `${ROOT_PARTITION.length / 1024}k`]);
}
