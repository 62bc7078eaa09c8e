/**
 * Rounds of hard use of one writable mount each. In some, several files of the mount that show the
 * same bytes are written at once, and every byte is held against a model. In the others, a filesystem
 * on a loop device over it is filled, trimmed and rewritten until the process that serves the mount
 * is killed: after that, nothing may be wrong that a power cut would not leave on a real disk.
 */

import { spawn } from 'node:child_process';
import { mkdirSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { listMounts } from '../../src/host/mountinfo.ts';
import { FileExerciser } from '../support/file-exerciser.ts';
import { run, tryRun } from '../support/qemu.ts';
import { Random } from '../support/random.ts';

/** A round that is asked for. */
export interface RoundRequest {
  /** Empty; the round leaves nothing mounted. */
  directory: string;
  /** Path of the built command. */
  program: string;
  seed: number;
  /** Operations on overlapping files (default 3000). */
  operations?: number;
}

const MiB = 1024 * 1024;
const DISK_BYTES = 64 * MiB;
const PARTITION = { offset: 2 * MiB, length: 60 * MiB, file: '1-data.raw' };

/** Runs a round; what was done. @throws {Error} what was found wrong */
export async function runRound(request: RoundRequest): Promise<string> {
  const random = new Random(request.seed);
  const bench = new StressMount(request, random);
  try {
    return random.oneIn(3) ? overlappingFiles(bench, request) : await killed(bench, random);
  } finally {
    bench.clear();
  }
}

/** An image with one partition, and the command that mounts it. */
export class StressMount {
  readonly #request: RoundRequest;
  readonly channel: 'kernel' | 'fuse-native';
  readonly image: string;
  readonly #options: readonly string[];

  constructor(request: RoundRequest, random: Random, { diskBytes = DISK_BYTES } = {}) {
    this.#request = request;
    this.channel = random.oneIn(5) ? 'fuse-native' : 'kernel';
    this.image = this.path('disk.qcow2');
    mkdirSync(this.path('state'), { mode: 0o700 });
    const clusterSize = random.pick([4096, 65536, 65536, 2 * MiB]);
    const extended = clusterSize > 4096 && random.oneIn(4) ? ',extended_l2=on' : '';
    const lazy = random.oneIn(4) ? ',lazy_refcounts=on' : '';
    const raw = this.path('disk.raw');
    writeFileSync(raw, '');
    truncateSync(raw, diskBytes);
    const start = PARTITION.offset / 512;
    const layout = `label: gpt\nstart=${start}, size=${PARTITION.length / 512}, name=data\n`;
    run('sfdisk', ['--quiet', raw], { input: layout });
    const options = `cluster_size=${clusterSize}${extended}${lazy}`;
    run('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', '-o', options, raw, this.image]);
    this.#options = [options, `channel=${this.channel}`];
  }

  path(...names: readonly string[]): string {
    return join(this.#request.directory, ...names);
  }

  get story(): string {
    return this.#options.join(',');
  }

  qcow2(...args: readonly string[]): string {
    const env = { ...process.env, QCOW2_STATE_DIR: this.path('state') };
    return run(process.execPath, [this.#request.program, ...args], { env, timeoutMs: 120_000 });
  }

  mount(): void {
    this.qcow2('mount', '--rw', '--channel', this.channel, this.image, this.path('m'));
  }

  unmount(): void {
    this.qcow2('unmount', this.path('m'));
  }

  /** Kills the process that serves the mount. */
  kill(): void {
    const [line] = JSON.parse(this.qcow2('mounts', '--output=json')) as { pid: number }[];
    process.kill(line!.pid, 'SIGKILL');
  }

  /** Leaves nothing mounted, attached or running. */
  clear(): void {
    tryRun('umount', ['-l', this.path('files')]);
    const { stdout } = tryRun('losetup', ['--noheadings', '--output', 'NAME,BACK-FILE']);
    for (const line of stdout.split('\n')) {
      const [device, file] = line.trim().split(/\s+/);
      if (file?.startsWith(this.#request.directory) === true) tryRun('losetup', ['-d', device!]);
    }
    try {
      this.qcow2('unmount', '--all', '--force');
    } catch {
      // What is left is found below.
    }
    for (const { directory } of listMounts()) {
      if (directory.startsWith(this.#request.directory)) tryRun('umount', ['-l', directory]);
    }
  }
}

function overlappingFiles(bench: StressMount, { seed, operations = 3000 }: RoundRequest): string {
  bench.mount();
  const model = readFileSync(bench.path('disk.raw'));
  const files = [
    { path: bench.path('m/disk.raw'), offset: 0, length: DISK_BYTES },
    { ...PARTITION, path: bench.path('m/partitions', PARTITION.file) },
  ];
  const hasHoles = bench.channel === 'kernel';
  const exerciser = new FileExerciser({ seed, files, model, hasHoles, mostBytes: 3 * MiB });
  try {
    exerciser.run({ count: operations });
    exerciser.verify();
  } finally {
    exerciser.close();
  }
  bench.unmount();
  run('qemu-img', ['check', '-q', bench.image]);
  writeFileSync(bench.path('expected.raw'), model);
  const formats = ['-f', 'qcow2', '-F', 'raw'];
  run('qemu-img', ['compare', '-q', ...formats, bench.image, bench.path('expected.raw')]);
  return `${exerciser.count} operations on overlapping files (${bench.story})`;
}

/**
 * Writes files, syncs each, and tells so in a log outside; removes some, trims now and then. It ends
 * when something fails.
 */
const WRITER = `
cd "$1" || exit 1
i=0
while :; do
  i=$((i + 1))
  head -c $((RANDOM * (RANDOM % 60) + 1)) /dev/urandom > "f$i" || exit 0
  sync "f$i" . && sum=$(md5sum < "f$i") && echo "f$i $sum" >> "$2" || exit 0
  if [ $((i % 3)) = 0 ]; then
    echo "gone f$((i - 2))" >> "$2"
    rm -f "f$((i - 2))" || exit 0
  fi
  if [ $((i % 11)) = 0 ]; then fstrim . || exit 0; fi
  if [ "$(stat -f -c %a .)" -lt 4000 ]; then
    for old in $(ls -tr | head -n 5); do echo "gone $old" >> "$2"; rm -f "$old"; done
  fi
done
`;

async function killed(bench: StressMount, random: Random): Promise<string> {
  bench.mount();
  const isPartition = random.oneIn(2);
  const file = bench.path('m', isPartition ? `partitions/${PARTITION.file}` : 'disk.raw');
  const log = bench.path('written.log');
  writeFileSync(log, '');
  mkdirSync(bench.path('files'));
  const options = random.oneIn(3) ? ['--direct-io=on'] : [];
  const loop = run('losetup', ['--find', '--show', ...options, file]).trim();
  run('mkfs.ext4', ['-q', '-F', '-E', 'nodiscard', loop]);
  const how = random.pick(['noatime', 'discard', 'data=journal']);
  run('mount', ['-o', how, loop, bench.path('files')]);
  const writer = spawn('bash', ['-c', WRITER, 'writer', bench.path('files'), log], {
    stdio: 'ignore',
  });
  const ended = new Promise((resolve) => writer.once('close', resolve));
  const milliseconds = 200 + random.below(4000);
  await sleep(milliseconds);
  bench.kill();
  await Promise.race([ended, sleep(20_000)]);
  writer.kill('SIGKILL');
  tryRun('umount', [bench.path('files')], { timeoutMs: 60_000 });
  await detachLoop(loop);
  const synced = await judge(bench, { file, log });
  const place = isPartition ? 'a partition' : 'the disk';
  return (
    `killed after ${milliseconds} ms with ${synced} synced files on ${place} ` +
    `(${bench.story},${how},${options.join()})`
  );
}

/** Holds an image and the filesystem in it against what a power cut may leave; the files found. */
async function judge(
  bench: StressMount,
  { file, log }: { file: string; log: string },
): Promise<number> {
  const { exitCode, stdout } = tryRun('qemu-img', ['check', bench.image]);
  // 3: leaks only, which are allowed. With lazy refcounts the counts are made anew first.
  const isLazy = bench.story.includes('lazy');
  if (exitCode !== 0 && exitCode !== 3 && !isLazy) throw new Error(`the image: ${stdout}`);
  bench.mount();
  const loop = run('losetup', ['--find', '--show', file]).trim();
  let count: number;
  try {
    // 1: the journal was replayed.
    const replay = tryRun('e2fsck', ['-y', '-E', 'journal_only', loop]);
    if (replay.exitCode > 1) throw new Error(`the journal: ${replay.stdout}${replay.stderr}`);
    run('e2fsck', ['-fn', loop]);
    run('mount', [loop, bench.path('files')]);
    count = expectFiles(bench.path('files'), readFileSync(log, 'utf8'));
    run('umount', [bench.path('files')]);
  } finally {
    await detachLoop(loop);
  }
  bench.unmount();
  const after = tryRun('qemu-img', ['check', bench.image]);
  if (after.exitCode !== 0 && after.exitCode !== 3) throw new Error(`at the end: ${after.stdout}`);
  return count;
}

/** Detaches a loop device; whoever looks at it just then delays that. */
export async function detachLoop(loop: string): Promise<void> {
  tryRun('losetup', ['-d', loop]);
  for (let tries = 0; tries < 1000 && tryRun('losetup', [loop]).exitCode === 0; tries++) {
    await sleep(10);
  }
}

/** Every file that was synced and never removed is there, as it was. */
function expectFiles(directory: string, log: string): number {
  const sums = new Map<string, string>();
  for (const line of log.split('\n')) {
    const [name, sum] = line.split(/\s+/);
    if (name === 'gone') sums.delete(sum!);
    else if (name !== undefined && sum !== undefined) sums.set(name, sum);
  }
  for (const [name, sum] of sums) {
    const found = run('md5sum', [join(directory, name)]).split(' ')[0];
    if (found !== sum) throw new Error(`${name} was synced as ${sum} and is ${found}`);
  }
  return sums.size;
}
