/**
 * mount: from the start of the command to the first byte read, for a 1 TiB image with every L2
 * table there; as a command that returns once the mount is usable, and in the foreground.
 */

import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import {
  OURS,
  type Bench,
  type BenchContext,
  type Contender,
  type Rival,
} from '../support/bench.ts';
import {
  canReadFirstByte,
  detachMount,
  makeDirectory,
  MOUNTED_DISK,
  ourMount,
  storageDaemonCommand,
  storageDaemonMount,
  type Exporter,
} from '../support/exports.ts';
import { findProgram, waitUntil } from '../support/process.ts';

export const bench: Bench = {
  name: 'mount',
  summary: 'command start to first byte read, 1 TiB image with a full set of L2 tables',
  tools: ['qemu-img'],
  async prepare(context) {
    // guestmount mounts filesystems, not disks; making one is for it alone.
    const makeFilesystem = findProgram('guestmount') !== undefined;
    const image = await (makeFilesystem
      ? context.images.hugeWithFilesystem()
      : context.images.huge());
    const aim = 1 / 3;
    const daemonProgram = { program: 'qemu-storage-daemon' };
    return [
      {
        name: 'mount',
        unit: 'seconds' as const,
        ours: mountInBackground(context, image),
        rivals: [
          { ...daemonizeStorageDaemon(context, image), ...daemonProgram, aim },
          guestmount(context, image),
        ],
      },
      {
        name: 'mount --foreground',
        unit: 'seconds' as const,
        ours: mountInForeground(context, ourMount, image),
        rivals: [
          { ...mountInForeground(context, storageDaemonMount, image), ...daemonProgram, aim },
        ],
      },
    ];
  },
};

function mountInForeground(context: BenchContext, exporter: Exporter, image: string): Contender {
  return {
    name: exporter.name,
    async measure() {
      const elapsed = stopwatch();
      const running = await exporter.start(context, image);
      const value = elapsed();
      const peakRssBytes = running.daemon.peakRssBytes();
      await running.stop();
      return { value, peakRssBytes };
    },
  };
}

function mountInBackground(context: BenchContext, image: string): Contender {
  return {
    name: OURS,
    async measure() {
      const directory = makeDirectory(context, 'mount');
      const mountPoint = path.join(directory, 'tree');
      mkdirSync(mountPoint);
      const undo = context.cleanup.add(mountPoint, async () => {
        try {
          await context.programs.run([...context.qcow2, 'unmount', mountPoint]);
        } finally {
          await detachMount(context, mountPoint);
        }
      });
      try {
        const elapsed = stopwatch();
        await context.programs.run([...context.qcow2, 'mount', image, mountPoint]);
        requireFirstByte(path.join(mountPoint, MOUNTED_DISK));
        return { value: elapsed() };
      } finally {
        await undo();
      }
    },
  };
}

function daemonizeStorageDaemon(context: BenchContext, image: string): Contender {
  return {
    name: storageDaemonMount.name,
    async measure() {
      const directory = makeDirectory(context, 'qsd');
      const mountPoint = path.join(directory, 'disk.raw');
      const pidFile = path.join(directory, 'pid');
      writeFileSync(mountPoint, '');
      const undo = context.cleanup.add(mountPoint, async () => {
        await endByPidFile(pidFile);
        await detachMount(context, mountPoint);
        rmSync(directory, { recursive: true, force: true });
      });
      try {
        const elapsed = stopwatch();
        const command = storageDaemonCommand(image, mountPoint);
        await context.programs.run([...command, '--daemonize', '--pidfile', pidFile]);
        requireFirstByte(mountPoint);
        return { value: elapsed() };
      } finally {
        await undo();
      }
    },
  };
}

/** A fifth of guestmount's time is the least; its first byte is a name in the root directory. */
function guestmount(context: BenchContext, image: string): Rival {
  return {
    name: 'guestmount',
    program: 'guestmount',
    atLeast: 5,
    async measure() {
      const mountPoint = makeDirectory(context, 'guestmount');
      const undo = context.cleanup.add(mountPoint, async () => {
        await context.programs.run(['guestunmount', mountPoint]);
      });
      try {
        const elapsed = stopwatch();
        const options = ['--ro', '-a', image, '-m', '/dev/sda'];
        await context.programs.run(['guestmount', ...options, mountPoint]);
        readdirSync(mountPoint);
        return { value: elapsed() };
      } finally {
        await undo();
      }
    },
  };
}

async function endByPidFile(pidFile: string): Promise<void> {
  let pid: number;
  try {
    pid = Number.parseInt(readFileSync(pidFile, 'utf8'), 10);
    process.kill(pid, 'SIGTERM');
  } catch {
    return;
  }
  await waitUntil(`the end of process ${pid}`, () => {
    try {
      process.kill(pid, 0);
      return false;
    } catch {
      return true;
    }
  });
}

function requireFirstByte(file: string): void {
  if (!canReadFirstByte(file)) throw new Error(`${file}: the mount cannot be read`);
}

function stopwatch(): () => number {
  const start = process.hrtime.bigint();
  return () => Number(process.hrtime.bigint() - start) / 1e9;
}
