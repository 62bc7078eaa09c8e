/** `qcow2 mount --threads`: more threads change nothing but the speed. */

import { spawn } from 'node:child_process';
import { copyFileSync, readdirSync, readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { beforeAll, beforeEach, expect, it } from 'vitest';
import { loadLibc } from '../../src/host/libc.ts';
import { isAlive } from '../../src/host/processes.ts';
import { describePeers } from '../support/peers.ts';
import { run } from '../support/qemu.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { until } from '../support/until.ts';
import { makeDisk, mountBench } from './mount-support.ts';

/**
 * Reads parts of disk.raw from eight threads at once, past the kernel's cache, for a number of rounds,
 * and holds them against the raw disk. Prints how many parts were right, and how many reads failed.
 */
const MANY_READERS = `
import mmap, os, random, sys, threading
mounted, raw, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
right, failed, wrong = [0], [0], []
with open(raw, 'rb') as file: disk = file.read()
def work(seed):
    numbers = random.Random(seed)
    fd = os.open(mounted, os.O_RDONLY | os.O_DIRECT)
    memory = mmap.mmap(-1, 1 << 20)
    for _ in range(rounds):
        length = numbers.choice((4096, 65536, 1 << 20))
        offset = numbers.randrange((len(disk) - length) // 4096) * 4096
        try:
            os.preadv(fd, [memoryview(memory)[:length]], offset)
        except OSError:
            failed[0] += 1
            continue
        if memory[:length] == disk[offset:offset + length]: right[0] += 1
        else: wrong.append((offset, length))
print('reading', flush=True)
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(right[0], failed[0], wrong[:3])
`;

/** Ends the second thread that helps the worker of a mount, when the process gets SIGUSR2. */
const KILLER = `
import { isMainThread } from 'node:worker_threads';
if (isMainThread) {
  const workers = new Set();
  process.on('worker', (worker) => {
    workers.add(worker);
    // Those that only decompress.
    worker.on('message', (message) => message === 'running' && workers.delete(worker));
  });
  process.on('SIGUSR2', () => void [...workers][2].terminate());
}
`;

/** How many descriptors of a file a process has; each thread that serves has one of `/dev/fuse`. */
function descriptorsOf(pid: number, file: string): number {
  const directory = `/proc/${pid}/fd`;
  const targets = readdirSync(directory).map((fd) => {
    try {
      return readlinkSync(join(directory, fd));
    } catch {
      return undefined;
    }
  });
  return targets.filter((target) => target === file).length;
}

describePeers(['root', '/dev/fuse', 'sfdisk', 'mkfs.ext4', 'qemu-img'], 'mount --threads', () => {
  const bench = mountBench();
  const made = sharedTemporaryDirectory();
  beforeAll(() => {
    const [disk, image] = [join(made, 'disk.img'), join(made, 'disk.qcow2')];
    makeDisk(disk);
    run('qemu-img', ['convert', '-c', '-O', 'qcow2', disk, image]);
    run('qemu-img', ['snapshot', '-c', 'first', image]);
    run('qemu-io', ['-c', 'write -P 5 1M 1M', image]);
    run('qemu-img', ['convert', '-O', 'raw', image, disk]);
  });
  beforeEach(() => {
    for (const file of ['disk.img', 'disk.qcow2']) copyFileSync(join(made, file), bench.path(file));
  });

  const readers = (directory: string, rounds: number) => [
    '-c',
    MANY_READERS,
    bench.path(directory, 'disk.raw'),
    bench.path('disk.img'),
    String(rounds),
  ];

  it.skipIf(loadLibc() === undefined)(
    'shows the same files, inode numbers and bytes with any number of threads',
    { timeout: 90_000 },
    () => {
      const seen: string[] = [];
      for (const threads of ['1', '2', '4']) {
        bench.ok('mount', '--threads', threads, 'disk.qcow2', 'm');
        const listing = run('sh', [
          '-c',
          // Many at once: which thread is asked for which directory is up to chance.
          `cd '${bench.path('m')}' && find . -type f ! -name 'stats*' | sort | xargs -P 8 -n 1 sha256sum | sort -k 2; ` +
            `find . ! -name 'stats*' -printf '%p %i %s %b %m %t\\n' | sort`,
        ]);
        seen.push(listing);
        const [, result] = run('python3', readers('m', 30)).trim().split('\n');
        expect(result).toBe('240 0 []');
        const { pid } = bench.mount();
        expect(descriptorsOf(pid, '/dev/fuse')).toBe(Number(threads));
        bench.ok('unmount', 'm');
        expect(isAlive(pid, undefined)).toBe(false);
      }
      expect(seen[0]).toContain('./snapshots/1-first/partitions/2-root files.raw');
      expect(seen[1]).toBe(seen[0]);
      expect(seen[2]).toBe(seen[0]);
    },
  );

  it('ends with all its threads while all of them are busy', async () => {
    bench.ok('mount', '--threads', '4', 'disk.qcow2', 'm');
    const { pid } = bench.mount();
    const reader = bench.start('python3', readers('m', 1_000_000));
    await new Promise((resolve) => reader.stdout!.once('data', resolve));
    process.kill(pid, 'SIGTERM');
    await until(() => !isAlive(pid, undefined));
    reader.kill('SIGKILL');
  });

  it.skipIf(loadLibc() === undefined)(
    'goes on when one of its threads ends',
    { timeout: 90_000 },
    async () => {
      writeFileSync(bench.path('killer.mjs'), KILLER);
      const environment = {
        ...bench.environment,
        NODE_OPTIONS: `--import ${bench.path('killer.mjs')}`,
      };
      const command = [bench.program, 'mount', '--threads', '3', 'disk.qcow2', 'm'];
      const mount = spawn(process.execPath, command, { cwd: bench.path(), env: environment });
      expect(await new Promise((resolve) => mount.on('close', resolve))).toBe(0);
      const { pid } = bench.mount();
      const reader = bench.start('python3', readers('m', 600));
      const ended = new Promise((resolve) => reader.on('close', resolve));
      let output = '';
      reader.stdout!.on('data', (chunk: Buffer) => (output += chunk.toString()));
      await until(() => output.includes('reading'));
      // A thread that is ended while it loads a native module takes the process with it.
      await until(() => descriptorsOf(pid, bench.path('disk.qcow2')) === 3);
      await sleep(300);
      process.kill(pid, 'SIGUSR2');
      await until(() => descriptorsOf(pid, '/dev/fuse') === 2);
      await ended;
      // A read that the thread had taken fails; none waits for ever, and none gets wrong bytes.
      const [, right, failed, wrong] = /(\d+) (\d+) (.*)/.exec(output)!;
      expect(wrong).toBe('[]');
      expect(Number(right) + Number(failed)).toBe(4800);
      expect(Number(failed)).toBeLessThan(3);
      expect(run('python3', readers('m', 20)).trim()).toMatch(/160 0 \[\]$/);
      bench.ok('unmount', 'm');
      expect(isAlive(pid, undefined)).toBe(false);
    },
  );

  it('is refused where something is written, and for numbers that make no sense', () => {
    const refused = (...options: string[]): string => {
      const { exitCode, stderr } = bench.qcow2('mount', ...options, 'disk.qcow2', 'm');
      expect(exitCode).toBe(1);
      return stderr;
    };
    expect(refused('--threads=2', '--temp')).toMatch(/--threads is for images that are only read/);
    expect(refused('--threads=0')).toMatch(/--threads must be a number from 1 to 64, not '0'/);
    expect(refused('--threads=many')).toMatch(/must be a number from 1 to 64, not 'many'/);
  });
});
