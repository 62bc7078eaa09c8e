/**
 * Mounting a FUSE filesystem with no library: `/dev/fuse` and mount(2), or mount(8) where koffi is
 * not installed; for ordinary users `fusermount.ts`. And unmounting, by the same ways.
 */

import { spawnSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { hostError, Qcow2Error } from '../errors.ts';
import { mountWithFusermount, unmountWithFusermount } from './fusermount.ts';
import { errnoName, loadLibc } from './libc.ts';
import { firstLine, missingProgram, refused, unmountRefused } from './mount-errors.ts';
import type { FuseMountOptions } from './mount-errors.ts';
import { unmountOnMac } from './macos.ts';
import { findMount } from './mountinfo.ts';

/** Bits of mount(2) that can be asked for by name. */
export const MOUNT_FLAGS: Readonly<Record<string, number>> = {
  ro: 1,
  nosuid: 2,
  nodev: 4,
  noexec: 8,
  noatime: 1024,
  nodiratime: 2048,
  relatime: 1 << 21,
  strictatime: 1 << 24,
};

/** Bits of umount2(2). */
const MNT_FORCE = 1;
const MNT_DETACH = 2;
const UMOUNT_NOFOLLOW = 8;

/** Longest that mounting and unmounting the control filesystem of FUSE may take. */
const CONTROL_TIMEOUT_MS = 5000;

/** How an unmount goes about a filesystem that is in use. */
export interface UnmountOptions {
  /** Detach it now, and let those who use it finish. */
  lazy?: boolean;
  /** End the connection first: those who use it get errors. Only root can. */
  force?: boolean;
}

/** Whether this process has the privileges that mount(2) wants, as far as that can be told. */
export function canMountDirectly(): boolean {
  return process.geteuid?.() === 0;
}

/**
 * Mounts, and returns the descriptor that the kernel's requests are read from.
 *
 * @throws {Qcow2Error} `HOST` where the kernel refuses, `MISSING_DEPENDENCY` where a program or
 * package is missing
 */
export function mountFuse(options: FuseMountOptions): number {
  if (!canMountDirectly()) return mountWithFusermount(options);
  const fd = openFuseDevice();
  try {
    mountDescriptor(fd, options);
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

function openFuseDevice(): number {
  try {
    return openSync('/dev/fuse', 'r+');
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const isMissing = code === 'ENOENT' || code === 'ENXIO' || code === 'ENODEV';
    if (!isMissing) throw hostError('cannot open', '/dev/fuse', error);
    throw new Qcow2Error('MISSING_DEPENDENCY', 'this system has no FUSE device', {
      file: '/dev/fuse',
      hint: 'load the kernel module with: modprobe fuse',
      cause: error,
    });
  }
}

function mountDescriptor(fd: number, options: FuseMountOptions): void {
  const { directory, source, subtype } = options;
  const type = `fuse.${subtype}`;
  const libc = loadLibc();
  if (libc === undefined) {
    mountWithProgram(fd, options);
    return;
  }
  const mount = libc.func(
    'int mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)',
  );
  const flags = options.flags.reduce((bits, name) => bits | (MOUNT_FLAGS[name] ?? 0), 0);
  if (Number(mount(source, directory, type, flags, kernelOptions(fd, options))) === 0) return;
  throw refused(directory, errnoName(libc, libc.errno()));
}

/** The options that FUSE itself parses. */
function kernelOptions(fd: number, { allowOther }: FuseMountOptions): string {
  const owner = `user_id=${process.geteuid!()},group_id=${process.getegid!()}`;
  const access = allowOther ? ',allow_other' : '';
  return `fd=${fd},rootmode=40000,${owner},default_permissions${access}`;
}

/** mount(8) with the descriptor inherited as 3. `-i`: not through a helper of the type's name. */
function mountWithProgram(fd: number, options: FuseMountOptions): void {
  const { directory, source, subtype, flags } = options;
  const list = [...flags, kernelOptions(3, options)].join(',');
  const args = ['-i', '-t', `fuse.${subtype}`, '-o', list, '--', source, directory];
  const { status, stderr, error } = spawnSync('mount', args, {
    stdio: ['ignore', 'ignore', 'pipe', fd],
    encoding: 'utf8',
  });
  if (error !== undefined) throw missingProgram('mount', error);
  if (status !== 0) throw refused(directory, firstLine(stderr));
}

/**
 * Unmounts a directory without looking into it, so that a dead filesystem does not get in the way.
 *
 * @throws {Qcow2Error} `LOCKED` if it is in use, `HOST` if it is refused for another reason
 */
export function unmountFuse(directory: string, { lazy, force }: UnmountOptions = {}): void {
  if (process.platform === 'darwin') {
    // There is no detaching: what is in use, or dead, is unmounted by force.
    unmountOnMac(directory, { force: lazy === true || force === true });
    return;
  }
  if (!canMountDirectly() && process.platform === 'linux') {
    unmountWithFusermount(directory, lazy === true || force === true);
    return;
  }
  const libc = process.platform === 'linux' ? loadLibc() : undefined;
  if (libc === undefined) {
    unmountWithProgram(directory, { lazy: lazy === true, force: force === true });
    return;
  }
  const umount2 = libc.func('int umount2(const char *target, int flags)');
  const flags = UMOUNT_NOFOLLOW | (lazy === true || force === true ? MNT_DETACH : 0);
  const bits = flags | (force === true ? MNT_FORCE : 0);
  if (Number(umount2(directory, bits)) === 0) return;
  throw unmountRefused(directory, errnoName(libc, libc.errno()));
}

function unmountWithProgram(directory: string, { lazy, force }: Required<UnmountOptions>): void {
  const isLinux = process.platform === 'linux';
  const args = isLinux ? ['-i'] : [];
  if (force) args.push('-f');
  if (isLinux && (lazy || force)) args.push('-l');
  const { status, stderr, error } = spawnSync('umount', [...args, directory], { encoding: 'utf8' });
  if (error !== undefined) throw missingProgram('umount', error);
  if (status !== 0) throw unmountRefused(directory, firstLine(stderr));
}

/**
 * Lets the kernel read ahead further in files of the filesystem mounted on `directory`: the window
 * that FUSE gets is 128 KiB. Only root may; for others nothing happens.
 */
export function raiseReadAhead(directory: string, kibibytes: number): void {
  const device = findMount(directory)?.device;
  if (device === undefined || process.platform !== 'linux') return;
  const file = `/sys/class/bdi/${device}/read_ahead_kb`;
  try {
    if (Number(readFileSync(file, 'utf8')) < kibibytes) writeFileSync(file, `${kibibytes}\n`);
  } catch {
    // Slower sequential reads are all that this costs.
  }
}

/**
 * Ends a FUSE connection from outside, so that everyone who waits for it gets an error.
 *
 * @param device device number of the filesystem, as in `0:45`
 * @returns whether that was possible: it needs the fusectl filesystem, and root or the owner. Where it
 * is not mounted, as in most containers, root mounts it for as long as that takes
 */
export function abortConnection(device: string): boolean {
  if (process.platform !== 'linux') return false;
  const minor = device.split(':')[1];
  if (minor === undefined || minor === '') return false;
  if (abortThrough('/sys/fs/fuse/connections', minor)) return true;
  if (!canMountDirectly()) return false;
  let place: string | undefined;
  try {
    place = mkdtempSync(join(tmpdir(), 'qcow2-'));
    const options = { stdio: 'ignore', timeout: CONTROL_TIMEOUT_MS } as const;
    if (spawnSync('mount', ['-t', 'fusectl', 'none', place], options).status !== 0) return false;
    const isDone = abortThrough(place, minor);
    spawnSync('umount', [place], options);
    return isDone;
  } catch {
    return false;
  } finally {
    if (place !== undefined) rmdirSync(place);
  }
}

function abortThrough(control: string, minor: string): boolean {
  try {
    writeFileSync(join(control, minor, 'abort'), '1\n');
    return true;
  } catch {
    return false;
  }
}
