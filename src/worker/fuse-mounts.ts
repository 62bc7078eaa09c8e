/** What is mounted, what is left of mounts whose process died, and the ways to end both. */

import { rmdirSync } from 'node:fs';
import { Qcow2Error } from '../errors.ts';
import { abortConnection, unmountFuse } from '../host/mount.ts';
import { findMount, listMounts } from '../host/mountinfo.ts';
import type { MountEntry } from '../host/mountinfo.ts';
import {
  hasThreadsLeft,
  isAlive,
  isStopped,
  processOwner,
  usersOfMount,
} from '../host/processes.ts';
import { checkLazyPossible, isLazyPossible } from './fuse-channels.ts';
import { listStates, mountsOf, removeState } from './fuse-state.ts';
import type { FoundState } from './fuse-state.ts';

/** Whether a mount works: `dead` if its process is gone; `unknown` if there is no record of it. */
export type MountStatus = 'alive' | 'dead' | 'unknown';

/** A mount of this program. */
export interface MountReport {
  directory: string;
  image: string;
  status: MountStatus;
  /** The record; undefined for mounts that are only in the mount table. */
  state: FoundState | undefined;
}

/** How {@link unmount} goes about it. */
export interface UnmountRequest {
  lazy: boolean;
  force: boolean;
  /** Called once if the process that served the mount takes long to end; with why, in words. */
  onWait?: (reason: string) => void;
}

/** How long a process that serves a mount may take to end after it. */
const EXIT_TIMEOUT_MS = 10_000;
/** The same, where what was written has to reach a disk that may be slow. */
const WRITER_EXIT_TIMEOUT_MS = 600_000;
/** How long one may take to end its mount by itself. */
const TERMINATE_TIMEOUT_MS = 4000;
/** The same, for one that may have much to write yet. */
const WRITER_TERMINATE_TIMEOUT_MS = 30_000;
/** How long the last threads of one that was killed may take. */
const THREADS_TIMEOUT_MS = 1000;
/** How long one may take until it is told that it is waited for. */
const SILENT_MS = 3000;
/** How often it is looked whether it has ended; outside Linux that takes a program. */
const EXIT_POLL_MS = process.platform === 'linux' ? 5 : 50;
/** Users of a busy mount that an error names. */
const MAX_USERS_NAMED = 5;

const TYPE = 'fuse.qcow2';

/** All mounts of this program that this user may see. Asks nothing of the mounts themselves. */
export function listReports(): MountReport[] {
  const mounts = listMounts();
  const reports: MountReport[] = [];
  for (const state of listStates()) {
    const alive = isServing(state);
    if (!alive && !mounts.some((mount) => isMountOf(mount, state))) continue;
    const { directory, image } = state;
    reports.push({ directory, image, status: alive ? 'alive' : 'dead', state });
  }
  // With a directory of records of one's own, what has no record there belongs to others.
  if (process.env.QCOW2_STATE_DIR !== undefined) return reports;
  for (const mount of mounts.filter(isVisible)) {
    const { directory, source } = mount;
    if (reports.some((report) => report.directory === directory)) continue;
    reports.push({ directory, image: source, status: 'unknown', state: undefined });
  }
  return reports;
}

/** The image that is mounted on a directory by this program, whoever did it. */
export function imageMountedOn(directory: string): string | undefined {
  const report = listReports().find((candidate) => candidate.directory === directory);
  if (report !== undefined) return report.image;
  const mount = findMount(directory);
  return mount?.type === TYPE ? mount.source : undefined;
}

/** Whether a mount of this program is this user's; root sees everybody's. */
function isVisible({ type, superOptions }: MountEntry): boolean {
  const uid = process.geteuid?.() ?? 0;
  return type === TYPE && (uid === 0 || superOptions.includes(`user_id=${uid}`));
}

/** Whether the process that a record names is there, and is its owner's: it could name any. */
function isServing({ pid, startTime, uid }: FoundState): boolean {
  return isAlive(pid, startTime ?? undefined) && (processOwner(pid) ?? uid) === uid;
}

function isMountOf(mount: MountEntry, state: FoundState): boolean {
  return mountsOf(state).some(
    ({ directory, device }) =>
      mount.directory === directory && (device === '' || mount.device === device),
  );
}

/** Directories of a record that something of it is mounted on, the topmost first. */
function mountedOf(state: FoundState): string[] {
  return mountsOf(state)
    .map(({ directory }) => directory)
    .filter((directory) => {
      const mount = findMount(directory);
      return mount !== undefined && isMountOf(mount, state);
    });
}

/**
 * Undoes what died: unmounts it, removes the directories that were made for it, and its record.
 * Only what belongs to this user. Never throws.
 *
 * @returns the directories that were freed
 */
export function cleanStale(): string[] {
  const freed: string[] = [];
  const uid = process.geteuid?.() ?? 0;
  for (const state of listStates()) {
    if (state.uid !== uid || isServing(state)) continue;
    if (clean(state)) freed.push(state.directory);
  }
  return freed;
}

/** Undoes a mount whose process is gone; returns whether anything was still mounted. */
function clean(state: FoundState): boolean {
  const mounted = mountedOf(state);
  for (const directory of mounted) {
    try {
      unmountFuse(directory, { lazy: true });
    } catch {
      // Still there: the record stays for the next attempt.
      return false;
    }
  }
  // Of a failure that nobody was told of, the log is all that is left.
  forget(state, { keepsLog: state.failure !== undefined });
  return mounted.length > 0;
}

/**
 * Removes the record of a mount that has ended, and the directory if it was made for it. Not those
 * of another user: a record could name any directory.
 */
function forget(state: FoundState, { keepsLog = false } = {}): void {
  if (state.uid !== (process.geteuid?.() ?? 0)) return;
  const { directory, madeDirectory, files } = state;
  for (const made of files?.madeDirectories ?? []) removeEmptyDirectory(made);
  if (files !== undefined) removeEmptyDirectory(files.inner);
  if (madeDirectory) removeEmptyDirectory(directory);
  removeState(state.file, { keepsLog });
}

/** As {@link forget}; throws if what was written last may be lost. */
function forgetOrFail(state: FoundState): void {
  const failure = failureOf(state);
  forget(state);
  if (failure !== undefined) throw failure;
}

/** What a process that has ended left word of. */
function failureOf({ file, image, directory }: FoundState): Qcow2Error | undefined {
  const failure = listStates().find((state) => state.file === file)?.failure;
  if (failure === undefined) return undefined;
  return new Qcow2Error('HOST', `it is unmounted, but not all was written: ${failure}`, {
    file: directory,
    hint: `check the image with: qcow2 check ${image}`,
  });
}

/** Removes a directory unless something is in it by now. */
export function removeEmptyDirectory(directory: string): void {
  try {
    rmdirSync(directory);
  } catch {
    // Not empty, or gone already: either way not ours to remove.
  }
}

/**
 * Unmounts a directory, and waits until the process that served it is gone.
 *
 * @param directory absolute path; it is not looked into
 * @returns `dead` if what was mounted there had lost its process already
 * @throws {Qcow2Error} `NOT_FOUND` if nothing of this program is mounted there, `LOCKED` if it is
 * in use
 */
export async function unmount(directory: string, request: UnmountRequest): Promise<MountStatus> {
  if (request.lazy) checkLazyPossible();
  const report = listReports().findLast((candidate) => candidate.directory === directory);
  if (report === undefined) throw notMounted(directory);
  const { state, status } = report;
  if (state === undefined) {
    unmountOrExplain(directory, { lazy: request.lazy || request.force, force: request.force });
    return status;
  }
  if (status === 'dead') {
    for (const mounted of mountedOf(state)) unmountFuse(mounted, { lazy: true });
    clean(state);
    return status;
  }
  if (request.force) await terminate(state);
  else await unmountAlive(state, request);
  return status;
}

function notMounted(directory: string): Qcow2Error {
  const other = findMount(directory);
  if (other === undefined) {
    return new Qcow2Error('NOT_FOUND', 'no image is mounted there', {
      file: directory,
      hint: 'qcow2 mounts lists those that are',
    });
  }
  return new Qcow2Error('NOT_FOUND', `something else is mounted there (${other.type})`, {
    file: directory,
    hint: 'umount(8) unmounts it',
  });
}

async function unmountAlive(state: FoundState, { lazy, onWait }: UnmountRequest): Promise<void> {
  checkRunning(state);
  const mounted = state.files === undefined ? [state.directory] : mountedOf(state);
  for (const directory of mounted) unmountOrExplain(directory, { lazy, force: false });
  // After a lazy unmount the process lives until the last file is closed.
  const patienceMs = state.access === 'ro' ? EXIT_TIMEOUT_MS : WRITER_EXIT_TIMEOUT_MS;
  let gone = await waitForExit(state, lazy ? 500 : SILENT_MS);
  if (!gone && !lazy) {
    onWait?.(`waiting until process ${state.pid} has closed ${state.image}`);
    gone = await waitForExit(state, patienceMs - SILENT_MS, checkRunning);
  }
  if (gone) {
    forgetOrFail(state);
  } else if (!lazy) {
    throw new Qcow2Error('HOST', `it is unmounted, but process ${state.pid} has not ended`, {
      file: state.directory,
      hint: `the disk of ${state.image} may be slow, or not answer; --force kills the process`,
    });
  }
}

/** @throws {Qcow2Error} `LOCKED` if the process is stopped, and would be waited for in vain */
function checkRunning({ pid, directory }: FoundState): void {
  if (!isStopped(pid)) return;
  throw new Qcow2Error('LOCKED', `process ${pid}, which serves it, is stopped`, {
    file: directory,
    hint: `let it go on with: kill -CONT ${pid}; or end it with --force`,
  });
}

/** The process ends its mount itself; if it does not, it is killed, which ends the mount as well. */
async function terminate(state: FoundState): Promise<void> {
  signal(state, 'SIGTERM');
  // If it is stopped, it can still do so in good order.
  signal(state, 'SIGCONT');
  const patienceMs = state.access === 'ro' ? TERMINATE_TIMEOUT_MS : WRITER_TERMINATE_TIMEOUT_MS;
  if (!(await waitForExit(state, patienceMs))) {
    // A thread that waits for a disk cannot be killed, nor one that waits for memory, which waits for
    // pages to be written through that very thread. Whoever waits for it gets an error from here on.
    abortConnection(state.device);
    signal(state, 'SIGKILL');
    await waitForExit(state, EXIT_TIMEOUT_MS);
  }
  const failure = failureOf(state);
  clean(state);
  if (failure !== undefined) throw failure;
  await checkEnded(state);
}

/** @throws {Qcow2Error} `HOST` if a thread of the process still has the image open */
async function checkEnded(state: FoundState): Promise<void> {
  const deadline = performance.now() + THREADS_TIMEOUT_MS;
  while (isServing(state) || hasThreadsLeft(state.pid)) {
    if (performance.now() > deadline) {
      const { pid, directory, image } = state;
      throw new Qcow2Error('HOST', `it is unmounted, but process ${pid} waits for the disk`, {
        file: directory,
        hint: `it is killed, and ends as soon as the disk of ${image} answers`,
      });
    }
    await new Promise((resolve) => setTimeout(resolve, EXIT_POLL_MS));
  }
}

function signal(state: FoundState, name: NodeJS.Signals): void {
  const { pid, directory } = state;
  if (!isServing(state)) return;
  try {
    process.kill(pid, name);
  } catch (error) {
    throw new Qcow2Error('HOST', `cannot end process ${pid}, which serves it`, {
      file: directory,
      cause: error,
    });
  }
}

async function waitForExit(
  state: FoundState,
  timeoutMs: number,
  check: (state: FoundState) => void = () => undefined,
): Promise<boolean> {
  const deadline = performance.now() + timeoutMs;
  while (isServing(state)) {
    check(state);
    if (performance.now() > deadline) return false;
    await new Promise((resolve) => setTimeout(resolve, EXIT_POLL_MS));
  }
  return true;
}

function unmountOrExplain(directory: string, how: { lazy: boolean; force: boolean }): void {
  try {
    unmountFuse(directory, how);
  } catch (error) {
    if (!(error instanceof Qcow2Error) || error.code !== 'LOCKED') throw error;
    throw new Qcow2Error('LOCKED', `it is in use${namesOfUsers(directory)}`, {
      file: directory,
      hint: isLazyPossible()
        ? '--lazy lets them finish, --force cuts them off'
        : '--force cuts them off',
      cause: error,
    });
  }
}

function namesOfUsers(directory: string): string {
  const users = usersOfMount(directory);
  const above = listMounts().find((mount) => mount.directory.startsWith(`${directory}/`));
  if (users.length === 0) {
    return above === undefined ? '' : `, for something is mounted on ${above.directory}`;
  }
  const named = users
    .slice(0, MAX_USERS_NAMED)
    .map(({ pid, name }) => (pid === 0 ? name : `${name} (process ${pid})`));
  const more = users.length - named.length;
  return ` by ${named.join(', ')}${more > 0 ? ` and ${more} more` : ''}`;
}
