/**
 * Loop devices (loop(4)): a file of the host as a block device, for filesystem drivers of the kernel.
 *
 * A device is set up to clear itself: once nobody has it open or mounted any more, the kernel lets go
 * of the file. So a process that is killed leaves no device behind, and unmounting a filesystem is
 * all there is to do at the end.
 */

import { spawnSync } from 'node:child_process';
import { closeSync, openSync, readFileSync } from 'node:fs';
import { hostError, Qcow2Error } from '../errors.ts';
import { errnoName, loadLibc } from './libc.ts';
import type { Libc } from './libc.ts';
import { firstLine, missingProgram } from './mount-errors.ts';

const LOOP_CONFIGURE = 0x4c0a;
const LOOP_CTL_GET_FREE = 0x4c82;
const LO_FLAGS_READ_ONLY = 1;
const LO_FLAGS_AUTOCLEAR = 4;
const LO_FLAGS_DIRECT_IO = 16;

/** `struct loop_config`: descriptor, block size, and `struct loop_info64` from byte 8 on. */
const CONFIG_BYTES = 304;
const CONFIG_FLAGS_OFFSET = 60;
const CONFIG_NAME_OFFSET = 64;
/** Bytes of the name that losetup(8) shows, with a NUL. */
const NAME_BYTES = 64;
/** Attempts at a free device: others may take it between being told its number and taking it. */
const MAX_ATTEMPTS = 64;
/** Where the third argument of ioctl(2) is passed like those of functions with a fixed number. */
const ARCHITECTURES = new Set(['x64', 'arm64', 'riscv64', 'loong64', 's390x', 'ppc64']);

/** What a loop device is made of. */
export interface LoopRequest {
  /** Path of the file. */
  file: string;
  /** What the device is told to be of, in place of the path. */
  name: string;
  readOnly: boolean;
  /**
   * Read and write the file past its cache, so that nothing is cached twice. The kernel does without
   * where the file's filesystem cannot.
   */
  directIo: boolean;
}

/** A loop device that is kept from clearing itself. */
export interface LoopDevice {
  /** As in `/dev/loop3`. */
  path: string;
  /** Lets it clear itself as soon as nobody uses it. */
  release(): void;
}

/**
 * Makes a loop device. Keep it until a filesystem is mounted from it, then release it.
 *
 * This thread waits for reads of the file: whoever serves the file has to be another one.
 *
 * @throws {Qcow2Error} `HOST` if the kernel refuses, `MISSING_DEPENDENCY` if it has no loop devices
 */
export function attachLoop(request: LoopRequest): LoopDevice {
  const libc = loadLibc();
  if (libc === undefined || !ARCHITECTURES.has(process.arch)) return attachWithProgram(request);
  const ioctl = libc.func('int ioctl(int fd, unsigned long request, void *argument)');
  const fd = openFile(request);
  try {
    const control = openControl();
    try {
      return configure({ libc, ioctl, control, fd }, request);
    } finally {
      closeSync(control);
    }
  } finally {
    closeSync(fd);
  }
}

function openFile({ file, readOnly }: LoopRequest): number {
  try {
    return openSync(file, readOnly ? 'r' : 'r+');
  } catch (error) {
    throw hostError('cannot open', file, error);
  }
}

function openControl(): number {
  try {
    return openSync('/dev/loop-control', 'r+');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const isMissing = code === 'ENOENT' || code === 'ENXIO' || code === 'ENODEV';
    if (!isMissing) throw hostError('cannot open', '/dev/loop-control', error);
    throw new Qcow2Error('MISSING_DEPENDENCY', 'this system has no loop devices', {
      file: '/dev/loop-control',
      hint: 'load the kernel module with: modprobe loop',
      cause: error,
    });
  }
}

/** What the calls need. */
interface Calls {
  libc: Libc;
  ioctl: (...values: unknown[]) => unknown;
  /** Descriptor of `/dev/loop-control`. */
  control: number;
  /** Descriptor of the file. */
  fd: number;
}

function configure({ libc, ioctl, control, fd }: Calls, request: LoopRequest): LoopDevice {
  const { readOnly, directIo, file } = request;
  const config = Buffer.alloc(CONFIG_BYTES);
  config.writeUInt32LE(fd, 0);
  const flags =
    LO_FLAGS_AUTOCLEAR | (readOnly ? LO_FLAGS_READ_ONLY : 0) | (directIo ? LO_FLAGS_DIRECT_IO : 0);
  config.writeUInt32LE(flags, CONFIG_FLAGS_OFFSET);
  config.write(request.name.slice(-(NAME_BYTES - 1)), CONFIG_NAME_OFFSET, NAME_BYTES - 1);
  for (let attempt = 0; attempt < MAX_ATTEMPTS; attempt++) {
    const number = Number(ioctl(control, LOOP_CTL_GET_FREE, null));
    if (number < 0) throw refused(file, errnoName(libc, libc.errno()));
    const path = `/dev/loop${number}`;
    const device = openDevice(path);
    if (Number(ioctl(device, LOOP_CONFIGURE, config)) === 0) {
      return { path, release: () => closeSync(device) };
    }
    const reason = errnoName(libc, libc.errno());
    closeSync(device);
    // Before Linux 5.8 there is no such call.
    if (reason === 'EINVAL' || reason === 'ENOTTY') return attachWithProgram(request);
    if (reason !== 'EBUSY') throw refused(file, reason);
  }
  throw refused(file, 'others keep taking the free ones');
}

function openDevice(path: string): number {
  try {
    // For reading and writing also where the device is to be read only: the file decides.
    return openSync(path, 'r+');
  } catch (error) {
    throw hostError('cannot open the loop device', path, error);
  }
}

function refused(file: string, reason: string): Qcow2Error {
  const isDenied = reason === 'EPERM' || reason === 'EACCES';
  return new Qcow2Error('HOST', `cannot make a loop device: ${reason}`, {
    file,
    hint: isDenied ? 'a container needs CAP_SYS_ADMIN and the loop devices for it' : undefined,
  });
}

/**
 * The same through losetup(8). A device that is in use and told to be deleted is the same as one
 * that clears itself.
 */
function attachWithProgram({ file, readOnly, directIo }: LoopRequest): LoopDevice {
  const args = ['--find', '--show', ...(readOnly ? ['--read-only'] : [])];
  if (directIo) args.push('--direct-io=on');
  const { status, stdout, stderr, error } = spawnSync('losetup', [...args, '--', file], {
    encoding: 'utf8',
  });
  if (error !== undefined) throw missingProgram('losetup', error, 'install util-linux');
  if (status !== 0) throw refused(file, firstLine(stderr));
  const path = stdout.trim();
  return { path, release: () => void spawnSync('losetup', ['--detach', path]) };
}

/** Whether a loop device, as in `/dev/loop3`, holds a file. */
export function isAttached(path: string): boolean {
  try {
    readFileSync(`/sys/block/${path.replace('/dev/', '')}/loop/backing_file`);
    return true;
  } catch {
    return false;
  }
}
