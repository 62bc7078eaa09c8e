/**
 * An image exported through FUSE or NBD, by this project and by its rivals.
 */

import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import { OURS, type BenchContext, type Contender, type Rival, type Sample } from './bench.ts';
import { findProgram, type Command, type Daemon } from './process.ts';

/** An export that is being served. */
export interface RunningExport {
  /** Path of the mounted file, or URI. */
  address: string;
  daemon: Daemon;
  /** Ends it and removes what it needed. */
  stop(): Promise<void>;
}

/** Starts to serve an image and returns once it can be read. */
export interface Exporter {
  name: string;
  program?: string;
  start(context: BenchContext, image: string): Promise<RunningExport>;
}

/** `qcow2 mount`. */
export const ourMount: Exporter = mountWith([]);

/** `qcow2 mount --rw`. */
export const ourWritableMount: Exporter = mountWith(['--rw']);

function mountWith(options: readonly string[]): Exporter {
  return {
    name: OURS,
    async start(context, image) {
      const directory = makeDirectory(context, 'mount');
      const mountPoint = path.join(directory, 'tree');
      mkdirSync(mountPoint);
      const args = ['mount', '--foreground', ...options, image, mountPoint];
      const file = path.join(mountPoint, MOUNTED_DISK);
      const command: Command = [...context.qcow2, ...args];
      return serve(context, { command, directory, address: file, mountPoint });
    },
  };
}

/** qemu-storage-daemon's FUSE export. */
export const storageDaemonMount: Exporter = storageDaemonWith({ writable: false });

/** qemu-storage-daemon's FUSE export, writable. */
export const storageDaemonWritableMount: Exporter = storageDaemonWith({ writable: true });

function storageDaemonWith(options: { writable: boolean }): Exporter {
  return {
    name: 'qemu-storage-daemon',
    program: 'qemu-storage-daemon',
    async start(context, image) {
      const directory = makeDirectory(context, 'qsd');
      const mountPoint = path.join(directory, 'disk.raw');
      writeFileSync(mountPoint, '');
      const command = storageDaemonCommand(image, mountPoint, options);
      return serve(context, { command, directory, address: mountPoint, mountPoint });
    },
  };
}

/** `qcow2 serve` on a Unix socket. */
export const ourServer: Exporter = ourServerWith([]);

/** `qcow2 serve --rw`. */
export const ourWritableServer: Exporter = ourServerWith(['--rw']);

function ourServerWith(options: readonly string[]): Exporter {
  return {
    name: OURS,
    async start(context, image) {
      const directory = makeDirectory(context, 'serve');
      const socket = path.join(directory, 'socket');
      const command: Command = [...context.qcow2, 'serve', ...options, '--socket', socket, image];
      return serve(context, { command, directory, address: socketUri(socket), socket });
    },
  };
}

/** qemu-nbd on a Unix socket, for up to eight clients. */
export const qemuNbd: Exporter = qemuNbdWith(['-r']);

/** qemu-nbd for clients that write. */
export const qemuNbdWritable: Exporter = qemuNbdWith([]);

function qemuNbdWith(extra: readonly string[]): Exporter {
  return {
    name: 'qemu-nbd',
    program: 'qemu-nbd',
    async start(context, image) {
      const directory = makeDirectory(context, 'nbd');
      const socket = path.join(directory, 'socket');
      const options = [...extra, '-t', '-e', '8', '-f', 'qcow2'];
      const command: Command = ['qemu-nbd', ...options, '-k', socket, image];
      return serve(context, { command, directory, address: socketUri(socket), socket });
    },
  };
}

/** The command line of a FUSE export by qemu-storage-daemon. */
export function storageDaemonCommand(
  image: string,
  mountPoint: string,
  { writable }: { writable: boolean } = { writable: false },
): Command {
  const optionValue = (text: string) => text.replaceAll(',', ',,');
  const readOnly = writable ? 'off' : 'on';
  return [
    'qemu-storage-daemon',
    '--blockdev',
    `driver=file,node-name=file,read-only=${readOnly},filename=${optionValue(image)}`,
    '--blockdev',
    `driver=qcow2,node-name=disk,read-only=${readOnly},file=file`,
    '--export',
    `type=fuse,id=export,node-name=disk,writable=${writable ? 'on' : 'off'},` +
      `mountpoint=${optionValue(mountPoint)}`,
  ];
}

/** Name of the whole disk in the tree that `qcow2 mount` shows. */
export const MOUNTED_DISK = 'disk.raw';

/** A contender that serves `image` afresh, measures what `measure` says, and stops. */
export function measureExport(
  context: BenchContext,
  exporter: Exporter,
  image: string,
  measure: (address: string) => Promise<number>,
): Contender {
  return {
    name: exporter.name,
    async measure(): Promise<Sample> {
      const running = await exporter.start(context, image);
      try {
        const value = await measure(running.address);
        return { value, peakRssBytes: running.daemon.peakRssBytes() };
      } finally {
        await running.stop();
      }
    },
  };
}

/** {@link measureExport} for a rival. */
export function measureRivalExport(
  context: BenchContext,
  exporter: Exporter,
  image: string,
  measure: (address: string) => Promise<number>,
  thresholds: { atLeast: number; aim: number },
): Rival {
  const { program } = exporter;
  return {
    ...measureExport(context, exporter, image, measure),
    ...thresholds,
    ...(program === undefined ? {} : { program }),
  };
}

/** Whether the first byte of a file can be read; false while there is no such file or byte. */
export function canReadFirstByte(file: string): boolean {
  try {
    const descriptor = openSync(file, 'r');
    try {
      return readSync(descriptor, new Uint8Array(1)) === 1;
    } finally {
      closeSync(descriptor);
    }
  } catch {
    return false;
  }
}

/** Detaches a mount that outlived the program that served it; nothing if there is none. */
export async function detachMount(context: BenchContext, mountPoint: string): Promise<void> {
  if (!isMounted(mountPoint)) return;
  const command: Command =
    process.getuid?.() === 0
      ? ['umount', '-l', mountPoint]
      : [findProgram('fusermount3') ?? 'fusermount', '-u', '-z', mountPoint];
  await context.programs.run(command);
}

/** Makes an empty directory in the run's own. */
export function makeDirectory(context: BenchContext, name: string): string {
  return mkdtempSync(path.join(context.directory, `${name}-`));
}

interface Service {
  command: Command;
  /** Removed at the end. */
  directory: string;
  address: string;
  mountPoint?: string;
  socket?: string;
}

async function serve(context: BenchContext, service: Service): Promise<RunningExport> {
  const { command, directory, address, mountPoint, socket } = service;
  const undo = context.cleanup.add(directory, async () => {
    if (mountPoint !== undefined) await detachMount(context, mountPoint);
    rmSync(directory, { recursive: true, force: true });
  });
  const daemon = context.programs.start(command);
  const stop = async () => {
    await daemon.stop();
    await undo();
  };
  try {
    await daemon.waitUntil(address, () =>
      socket === undefined ? canReadFirstByte(address) : existsSync(socket),
    );
  } catch (error) {
    await stop();
    throw error;
  }
  return { address, daemon, stop };
}

function isMounted(mountPoint: string): boolean {
  const escaped = mountPoint.replace(/[\s\\]/g, (character) => {
    return `\\${character.charCodeAt(0).toString(8).padStart(3, '0')}`;
  });
  return readFileSync('/proc/self/mounts', 'utf8')
    .split('\n')
    .some((line) => line.split(' ')[1] === escaped);
}

function socketUri(socket: string): string {
  return `nbd+unix:///?socket=${encodeURIComponent(socket)}`;
}
