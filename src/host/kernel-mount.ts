/** Mounting a block device with a filesystem driver of the kernel. */

import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { Qcow2Error } from '../errors.ts';
import { errnoName, loadLibc } from './libc.ts';
import { firstLine, missingProgram } from './mount-errors.ts';
import { MOUNT_FLAGS } from './mount.ts';

/** What to mount where. */
export interface KernelMountRequest {
  /** Path of the block device. */
  device: string;
  directory: string;
  /** Drivers to try, in this order: the first that the kernel has is taken. */
  types: readonly string[];
  /** Names of flags of mount(2), as in `ro` and `noexec`. */
  flags: readonly string[];
  /** Options of the driver. */
  options: readonly string[];
  /**
   * Further options for a driver that will not mount without replaying a journal, which it cannot
   * write: with them it leaves the journal alone.
   */
  withoutJournal: readonly string[];
}

/** How something was mounted. */
export interface KernelMounted {
  /** The driver. */
  type: string;
  /** A journal is not replayed: what was being changed last may be missing or half done. */
  journalIgnored: boolean;
}

/** A reason that mount(2) gave: an errno's name, or what mount(8) said. */
type Reason = string;

/**
 * Mounts a device. This thread waits for reads of it: whoever serves its file has to be another one.
 *
 * @throws {Qcow2Error} `UNSUPPORTED` if the kernel has none of the drivers, `HOST` if it refuses
 */
export function mountDevice(request: KernelMountRequest): KernelMounted {
  return mountWithDrivers(request, (type, more) => tryMount(request, type, more));
}

/**
 * {@link mountDevice}, by whatever mounts.
 *
 * @param attempt tries a driver with further options; returns why it failed, or undefined
 */
export function mountWithDrivers(
  { types, withoutJournal, device, directory }: KernelMountRequest,
  attempt: (type: string, more: readonly string[]) => Reason | undefined,
): KernelMounted {
  let reason: Reason = 'ENODEV';
  for (const type of types) {
    reason = attempt(type, []) ?? '';
    if (reason === '') return { type, journalIgnored: false };
    if (isUnknownDriver(reason)) continue;
    if (!needsJournal(reason) || withoutJournal.length === 0) break;
    const second = attempt(type, withoutJournal);
    if (second === undefined) return { type, journalIgnored: true };
    reason = second;
    break;
  }
  if (isUnknownDriver(reason)) {
    throw new Qcow2Error('UNSUPPORTED', `this kernel has no driver for ${types[0]}`, {
      file: directory,
      hint: `those that it has are in /proc/filesystems; modprobe ${types[0]} may load one`,
    });
  }
  throw new Qcow2Error('HOST', `cannot mount the ${types[0]} filesystem: ${explain(reason)}`, {
    file: directory,
    hint: `what the driver has against it is at the end of dmesg, under ${device.slice(5)}`,
  });
}

function isUnknownDriver(reason: Reason): boolean {
  return reason === 'ENODEV' || reason.includes('unknown filesystem type');
}

/** A read-only device and a journal to replay meet in this error, with all drivers. */
function needsJournal(reason: Reason): boolean {
  return reason === 'EROFS' || /cannot mount .* read-only/.test(reason);
}

/** An errno in words, for those that drivers give. */
function explain(reason: Reason): string {
  const words: Record<string, string> = {
    EINVAL: 'the driver does not take it (damaged, or with features that it does not know)',
    EUCLEAN: 'it is damaged',
    EIO: 'it cannot be read',
    EROFS: 'it would have to be written',
    EPERM: 'this process may not mount',
  };
  return words[reason] ?? reason;
}

/** Returns why it failed; undefined if it is mounted. */
function tryMount(
  request: KernelMountRequest,
  type: string,
  more: readonly string[],
): Reason | undefined {
  const { device, directory, flags } = request;
  const options = [...request.options, ...more];
  const libc = loadLibc();
  if (libc === undefined) {
    const list = [...flags, ...options].join(',');
    const args = ['-i', '-t', type, '-o', list, '--', device, directory];
    const { status, stderr, error } = spawnSync('mount', args, { encoding: 'utf8' });
    if (error !== undefined) throw missingProgram('mount', error, 'install util-linux');
    return status === 0 ? undefined : firstLine(stderr);
  }
  const mount = libc.func(
    'int mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)',
  );
  const bits = flags.reduce((sum, name) => sum | (MOUNT_FLAGS[name] ?? 0), 0);
  if (Number(mount(device, directory, type, bits, options.join(','))) === 0) return undefined;
  return errnoName(libc, libc.errno());
}

/** Brings what was written to a filesystem to its device; does what it can (sync(1)). */
export function syncFilesystem(directory: string): void {
  spawnSync('sync', ['-f', '--', directory], { stdio: 'ignore' });
}

/** Drivers that the kernel has loaded or built in; it may load others when they are asked for. */
export function kernelDrivers(): string[] {
  try {
    return readFileSync('/proc/filesystems', 'utf8')
      .split('\n')
      .filter((line) => line !== '' && !line.startsWith('nodev'))
      .map((line) => line.trim());
  } catch {
    return [];
  }
}
