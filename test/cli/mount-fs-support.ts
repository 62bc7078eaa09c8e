/** Disks with files in them, for the tests of `mount --fs`. */

import { mkdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { qemuImg, run } from '../support/qemu.ts';

const MiB = 1024 * 1024;

/** A partition to make: its size, and the command that fills it, in which `FILE` is its file. */
export interface PartitionPlan {
  mib: number;
  /** As sfdisk names it. */
  type: string;
  name: string;
  /** Left out: the partition stays empty. */
  command?: string;
}

/** Partitions that most tests need: no files, files, files, no files. */
export const EMPTY: PartitionPlan = { mib: 4, type: 'uefi', name: 'boot' };
export const ROOT: PartitionPlan = {
  mib: 16,
  type: 'linux',
  name: 'root',
  command: 'mkfs.ext4 -q -L system -d FILES FILE',
};
export const HOME: PartitionPlan = {
  mib: 16,
  type: 'linux',
  name: 'home',
  command: 'mkfs.ext4 -q -O ^has_journal -d FILES FILE',
};
export const SWAP: PartitionPlan = { mib: 2, type: 'swap', name: '', command: 'mkswap -q FILE' };

/** Makes a file with what `command` puts into it; `FILES` is a directory with a file `hello.txt`. */
export function makeFilesystem(path: string, mib: number, command: string): void {
  writeFileSync(path, '');
  truncateSync(path, mib * MiB);
  const files = `${path}.files`;
  mkdirSync(files);
  writeFileSync(join(files, 'hello.txt'), 'hello from inside\n');
  writeFileSync(join(files, 'secret'), 'of root alone\n', { mode: 0o600 });
  const [program = '', ...args] = command
    .split(' ')
    .map((word) => (word === 'FILE' ? path : word === 'FILES' ? files : word));
  run(program, args);
  rmSync(files, { recursive: true });
}

/** Makes a qcow2 image of a disk with a GPT and these partitions. */
export function makePartitionedDisk(image: string, partitions: readonly PartitionPlan[]): void {
  const raw = `${image}.raw`;
  const total = partitions.reduce((sum, { mib }) => sum + mib, 2);
  writeFileSync(raw, '');
  truncateSync(raw, total * MiB);
  const lines = ['label: gpt'];
  let start = 1;
  for (const { mib, type, name } of partitions) {
    lines.push(`start=${start}MiB, size=${mib}MiB, type=${type}, name="${name}"`);
    start += mib;
  }
  run('sfdisk', ['--quiet', raw], { input: `${lines.join('\n')}\n` });
  start = 1;
  for (const { mib, command } of partitions) {
    if (command !== undefined) {
      const part = `${image}.part`;
      makeFilesystem(part, mib, command);
      const copy = ['bs=1M', `seek=${start}`, 'conv=notrunc,sparse', 'status=none'];
      run('dd', [`if=${part}`, `of=${raw}`, ...copy]);
      rmSync(part);
    }
    start += mib;
  }
  qemuImg('convert', '-O', 'qcow2', raw, image);
  rmSync(raw);
}

/** Makes a qcow2 image of a disk that is a filesystem as a whole. */
export function makeWholeDisk(image: string, mib: number, command: string): void {
  const raw = `${image}.raw`;
  makeFilesystem(raw, mib, command);
  qemuImg('convert', '-O', 'qcow2', raw, image);
  rmSync(raw);
}
