/**
 * Which filesystems of a disk are mounted when its files are asked for, and what is told where there
 * are none, or several.
 */

import { Qcow2Error } from '../errors.ts';
import type { Filesystem } from '../format/filesystem/index.ts';
import type { ImageSummary, ShownDisk } from './fuse-request.ts';

/** A filesystem that is to be mounted. */
export interface ChosenFilesystem {
  /** Path of its file in the mounted image. */
  file: string;
  filesystem: Filesystem;
  /** What it is called where there are several: `2-root`. */
  name: string;
  /** Words about it that do not keep it from being mounted. */
  warnings: string[];
}

/** What is asked for. */
export interface FilesChoice {
  /** All partitions that have a filesystem, in place of the only one. */
  all: boolean;
  /** Whether the filesystem will be written: then nothing about it may be in doubt. */
  writable: boolean;
}

/** What `disk` of a summary is, or one of its partitions. */
type Shown = ShownDisk & { number?: number };

/**
 * Chooses among what an image shows.
 *
 * @throws {Qcow2Error} `NOT_FOUND` if there is no filesystem, `INVALID_OPTION` if there are several
 * and only one is asked for, `UNSUPPORTED` if there is something else that holds the files
 */
export function chooseFilesystems(
  { disk, partitions, partitionScheme }: ImageSummary,
  choice: FilesChoice,
): ChosenFilesystem[] {
  const inPartitions = partitions.filter(holdsFiles);
  if (inPartitions.length === 0) {
    // Also a disc that is a filesystem as a whole, beside a table for those who want to start it.
    if (holdsFiles(disk)) return [chosen(disk, 'disk', choice)];
    throw nothingToMount(partitionScheme === 'none' ? [disk] : partitions);
  }
  if (inPartitions.length > 1 && !choice.all) {
    throw new Qcow2Error('INVALID_OPTION', `several partitions hold files: ${list(inPartitions)}`, {
      hint: 'choose one with --partition N, or take all with --all',
    });
  }
  return inPartitions.map((partition) => chosen(partition, nameOf(partition), choice));
}

function holdsFiles({ filesystems }: Shown): boolean {
  return filesystems[0]?.usage === 'filesystem';
}

function nameOf({ file }: Shown): string {
  return file.replace(/^partitions\//, '').replace(/\.raw$/, '');
}

function list(partitions: readonly Shown[]): string {
  return partitions
    .map(({ number, filesystems }) => {
      const { type, label } = filesystems[0]!;
      return label === '' ? `${number} (${type})` : `${number} (${type}, ${label})`;
    })
    .join(', ');
}

function chosen(shown: Shown, name: string, { writable }: FilesChoice): ChosenFilesystem {
  const [filesystem, ...others] = shown.filesystems;
  const warnings: string[] = [];
  if (others.length > 0) {
    const types = [filesystem!, ...others].map(({ type }) => type).join(' and ');
    const problem = `${placeOf(shown)} has the signatures of ${types}`;
    if (writable) {
      throw new Qcow2Error('REFUSED', `${problem}: writing to the wrong one would destroy both`, {
        hint: 'mount it without --fs and say which it is: mount -t TYPE -o loop FILE DIR',
      });
    }
    warnings.push(`${problem}; it is mounted as ${filesystem!.type}`);
  }
  if (filesystem!.size !== undefined && filesystem!.size > shown.size) {
    const missing = filesystem!.size - shown.size;
    warnings.push(`the filesystem in ${placeOf(shown)} is ${missing} bytes longer than that`);
  }
  return { file: shown.file, filesystem: filesystem!, name, warnings };
}

function placeOf({ number }: Shown): string {
  return number === undefined ? 'the disk' : `partition ${number}`;
}

/** What is on the disk in place of files, and how to get at them. */
function nothingToMount(shown: readonly Shown[]): Qcow2Error {
  const known = shown.filter(({ filesystems }) => filesystems.length > 0);
  const reached = known.find(({ filesystems }) => adviceFor(filesystems[0]!) !== undefined);
  const found = known
    .map((one) => `${describe(one.filesystems[0]!)} in ${placeOf(one)}`)
    .join(', ');
  if (reached !== undefined) {
    return new Qcow2Error('UNSUPPORTED', `there is no filesystem to mount, but ${found}`, {
      hint: adviceFor(reached.filesystems[0]!)!.replace('FILE', reached.file),
    });
  }
  if (found !== '') {
    return new Qcow2Error('NOT_FOUND', `there is no filesystem to mount, only ${found}`);
  }
  return new Qcow2Error('NOT_FOUND', 'no filesystem was recognised', {
    hint: 'mount it without --fs to look at its bytes',
  });
}

function describe({ type, version }: Filesystem): string {
  switch (type) {
    case 'LVM2_member':
      return 'an LVM physical volume';
    case 'crypto_LUKS':
      return `a volume encrypted with LUKS ${version}`;
    case 'BitLocker':
      return 'a volume encrypted with BitLocker';
    case 'linux_raid_member':
      return 'a member of a RAID';
    case 'zfs_member':
      return 'a member of a ZFS pool';
    case 'swap':
    case 'swsuspend':
      return 'swap space';
    case 'jbd':
      return 'the journal of an ext4 filesystem';
    default:
      return type;
  }
}

/** How to go on; `FILE` stands for the file in the mounted image. */
function adviceFor({ type }: Filesystem): string | undefined {
  const first = 'mount the image without --fs, then as root: ';
  switch (type) {
    case 'LVM2_member':
      return `${first}losetup --find --show DIR/FILE && vgchange --activate y`;
    case 'crypto_LUKS':
      return `${first}cryptsetup open DIR/FILE NAME`;
    case 'BitLocker':
      return `${first}cryptsetup bitlkOpen DIR/FILE NAME`;
    case 'linux_raid_member':
      return `${first}losetup --find --show DIR/FILE, and mdadm --assemble --scan`;
    case 'zfs_member':
      return `${first}zpool import -d DIR/FILE`;
    default:
      return undefined;
  }
}
