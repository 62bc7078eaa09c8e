/**
 * Which driver shows the files of which filesystem: those of the kernel, for root, and programs that
 * speak FUSE, for everybody else.
 */

import { Qcow2Error } from '../errors.ts';
import type { Filesystem, FilesystemType } from '../format/filesystem/index.ts';
import { findProgram } from '../host/find-program.ts';

/** How a driver of the kernel is asked for a filesystem. */
export interface KernelDriver {
  /** Names of drivers that can do it, the best first. */
  types: readonly string[];
  /** It only ever reads. */
  readsOnly: boolean;
  options: readonly string[];
  /** Options for reading where a journal would have to be replayed first. */
  withoutJournal: readonly string[];
  /** Its files have no owners and permissions of their own: those of the mount are given to them. */
  lacksOwners: boolean;
}

const PLAIN = { readsOnly: false, options: [], withoutJournal: [], lacksOwners: false };
const READING = { ...PLAIN, readsOnly: true };

/** ext4's driver takes all three; a kernel may have the older ones alone. */
const EXT = { ...PLAIN, withoutJournal: ['noload'] };

const KERNEL_DRIVERS: Readonly<Partial<Record<FilesystemType, KernelDriver>>> = {
  btrfs: { ...PLAIN, types: ['btrfs'], withoutJournal: ['rescue=nologreplay'] },
  erofs: { ...READING, types: ['erofs'] },
  exfat: { ...PLAIN, types: ['exfat'], lacksOwners: true },
  ext2: { ...EXT, types: ['ext4', 'ext2'] },
  ext3: { ...EXT, types: ['ext4', 'ext3'] },
  ext4: { ...EXT, types: ['ext4'] },
  f2fs: { ...PLAIN, types: ['f2fs'], withoutJournal: ['norecovery'] },
  hfs: { ...READING, types: ['hfs'] },
  hfsplus: { ...READING, types: ['hfsplus'] },
  iso9660: { ...READING, types: ['iso9660'] },
  ntfs: { ...PLAIN, types: ['ntfs3', 'ntfs'], lacksOwners: true },
  reiserfs: { ...READING, types: ['reiserfs'] },
  squashfs: { ...READING, types: ['squashfs'] },
  ufs: { ...READING, types: ['ufs'], options: ['ufstype=ufs2'] },
  vfat: { ...PLAIN, types: ['vfat'], lacksOwners: true },
  // Copies of a disk have the same UUID; xfs would refuse the second of them.
  xfs: { ...PLAIN, types: ['xfs'], options: ['nouuid'], withoutJournal: ['norecovery'] },
};

/** The kernel's driver for a filesystem; undefined if no kernel has one. */
export function kernelDriverFor({
  type,
  version,
}: Pick<Filesystem, 'type' | 'version'>): KernelDriver | undefined {
  if (type === 'ufs' && version === '1') {
    return { ...KERNEL_DRIVERS.ufs!, options: ['ufstype=44bsd'] };
  }
  return KERNEL_DRIVERS[type];
}

/** A program that shows the files of a filesystem through FUSE. */
export interface UserDriver {
  program: string;
  /** Debian's package that it is in. */
  package: string;
  /** It only ever reads. */
  readsOnly: boolean;
  /** Its arguments; it stays in the foreground if it can. */
  args(job: UserDriverJob): string[];
}

/** What a {@link UserDriver} is to do. */
export interface UserDriverJob {
  file: string;
  directory: string;
  readOnly: boolean;
  /** Other users may look at the files. */
  allowOther: boolean;
  /** A journal would have to be replayed first. */
  needsRecovery: boolean;
}

function optionList(...options: readonly (string | false)[]): string[] {
  const chosen = options.filter((option) => option !== false);
  return chosen.length === 0 ? [] : ['-o', chosen.join(',')];
}

function access({ readOnly }: UserDriverJob): string {
  return readOnly ? 'ro' : 'rw';
}

function others({ allowOther }: UserDriverJob): string | false {
  return allowOther && 'allow_other';
}

const FUSE2FS: UserDriver = {
  program: 'fuse2fs',
  package: 'fuse2fs',
  readsOnly: false,
  args(job) {
    // Whoever may read the image may read all files in it, whoever they belong to.
    const journal = job.readOnly && job.needsRecovery && 'norecovery';
    return [
      '-f',
      ...optionList(access(job), 'fakeroot', journal, others(job)),
      job.file,
      job.directory,
    ];
  },
};

/** `PROGRAM -f -o OPTIONS FILE DIRECTORY`, as most of them have it. */
function plain(program: string, packageName = program): UserDriver {
  return {
    program,
    package: packageName,
    readsOnly: true,
    args: (job) => ['-f', ...optionList('ro', others(job)), job.file, job.directory],
  };
}

const USER_DRIVERS: Readonly<Partial<Record<FilesystemType, readonly UserDriver[]>>> = {
  apfs: [plain('apfs-fuse')],
  erofs: [plain('erofsfuse', 'erofs-utils')],
  exfat: [
    {
      program: 'mount.exfat-fuse',
      package: 'exfat-fuse',
      readsOnly: false,
      // It always goes to the background.
      args: (job) => [...optionList(access(job), others(job)), job.file, job.directory],
    },
  ],
  ext2: [FUSE2FS],
  ext3: [FUSE2FS],
  ext4: [FUSE2FS],
  hfsplus: [plain('hfsfuse')],
  iso9660: [
    {
      program: 'fuseiso',
      package: 'fuseiso',
      readsOnly: true,
      // `-n`: without a table of its own in the home directory.
      args: (job) => ['-n', job.file, job.directory, '-f', ...optionList('ro', others(job))],
    },
  ],
  ntfs: [
    {
      program: 'ntfs-3g',
      package: 'ntfs-3g',
      readsOnly: false,
      args: (job) => [
        ...optionList('no_detach', access(job), others(job)),
        job.file,
        job.directory,
      ],
    },
  ],
  squashfs: [plain('squashfuse')],
  vfat: [
    {
      program: 'fusefat',
      package: 'fusefat',
      readsOnly: false,
      // Its author has it write only for those who say that they know what they do.
      args: (job) => [
        '-f',
        ...optionList(job.readOnly ? 'ro' : 'rw+', others(job)),
        job.file,
        job.directory,
      ],
    },
  ],
};

/** A driver for those who may not mount, and whether its program is installed. */
export interface FoundUserDriver {
  driver: UserDriver;
  /** Path of the program; undefined if it is not installed. */
  path: string | undefined;
}

/**
 * The driver for a filesystem, one that is installed if there is; undefined if none is known.
 * @param find finds programs
 */
export function userDriverFor(
  type: FilesystemType,
  find: (program: string) => string | undefined = findProgram,
): FoundUserDriver | undefined {
  const drivers = USER_DRIVERS[type] ?? [];
  const found = drivers.map((driver) => ({ driver, path: find(driver.program) }));
  return found.find(({ path }) => path !== undefined) ?? found[0];
}

/** The error where the kernel has no driver, and no program is installed that could do without. */
export function noDriver(type: FilesystemType, found: FoundUserDriver | undefined): Qcow2Error {
  const driver = kernelDriverFor({ type, version: '' })?.types[0];
  const module = driver === undefined ? [] : [`load one, if there is, with: modprobe ${driver}`];
  const install = found === undefined ? [] : [`install the package ${found.driver.package}`];
  return new Qcow2Error('UNSUPPORTED', `this kernel has no driver for ${type}`, {
    hint: [...module, ...install].join('; or '),
  });
}
