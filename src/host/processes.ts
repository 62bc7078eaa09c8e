/** What proc(5) tells of other processes, or on macOS ps(1) and lsof(8). */

import { lstatSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { macProcessStart, macProcessState, macUsersOfMount } from './macos.ts';

/** A process that uses a mount. */
export interface MountUser {
  pid: number;
  /** Name of its program. */
  name: string;
}

/**
 * When a process started, in the kernel's clock ticks since boot, or as ps(1) has it: with its number
 * this names a process for good. Undefined if there is none, or this cannot be told.
 */
export function processStartTime(pid: number): string | undefined {
  if (process.platform === 'darwin') return macProcessStart(pid) || undefined;
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
    // The name, in parentheses, may hold anything; the state is the first field after it.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return fields[0] === 'Z' || fields[0] === 'X' ? undefined : fields[19];
  } catch {
    return undefined;
  }
}

/** Whether a process is stopped, by SIGSTOP or a debugger: it does nothing until it is continued. */
export function isStopped(pid: number): boolean {
  if (process.platform === 'darwin') return macProcessState(pid)?.startsWith('T') === true;
  return /[Tt]/.test(stateIn(`/proc/${pid}/stat`));
}

/** Whether a process that has been killed still has a thread, which waits for a disk. */
export function hasThreadsLeft(pid: number): boolean {
  return listNumbers(`/proc/${pid}/task`).some((thread) =>
    /[^ZX]/.test(stateIn(`/proc/${pid}/task/${thread}/stat`)),
  );
}

/** The letter for what a process or thread is doing; empty if there is none. */
function stateIn(file: string): string {
  const stat = readText(file);
  return stat.slice(stat.lastIndexOf(')') + 2).charAt(0);
}

/** Whether the process that had this number and start time is still there. */
export function isAlive(pid: number, startTime: string | undefined): boolean {
  if (process.platform === 'linux') {
    const now = processStartTime(pid);
    return now !== undefined && (startTime === undefined || now === startTime);
  }
  if (!exists(pid)) return false;
  if (process.platform !== 'darwin') return true;
  // Where ps(1) does not tell, a process of that number is taken for the same: nothing is cleared away
  // then that may be in use.
  const now = macProcessStart(pid) ?? startTime;
  return now !== '' && (startTime === undefined || now === startTime);
}

function exists(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
}

/**
 * The processes that have a file of a mount open or mapped, or stand in one of its directories:
 * as far as this user may see, and without asking the mounted filesystem anything.
 */
export function usersOfMount(directory: string): MountUser[] {
  if (process.platform === 'darwin') return macUsersOfMount(directory);
  const users: MountUser[] = [];
  const isInside = (path: string): boolean =>
    path === directory || path.startsWith(`${directory}/`);
  for (const pid of listNumbers('/proc')) {
    if (pid === process.pid || !usesMount(pid, isInside)) continue;
    users.push({ pid, name: readText(`/proc/${pid}/comm`).trim() });
  }
  for (const user of loopUsers(isInside)) users.push(user);
  return users;
}

function usesMount(pid: number, isInside: (path: string) => boolean): boolean {
  const links = ['cwd', 'root', ...listNumbers(`/proc/${pid}/fd`).map((fd) => `fd/${fd}`)];
  if (links.some((link) => isInside(readLink(`/proc/${pid}/${link}`)))) return true;
  return readText(`/proc/${pid}/maps`)
    .split('\n')
    .some((line) => {
      const start = line.indexOf('/');
      return start >= 0 && isInside(line.slice(start));
    });
}

/** Loop devices have no process: the kernel holds their files. */
function loopUsers(isInside: (path: string) => boolean): MountUser[] {
  return listNames('/sys/block')
    .filter((name) => name.startsWith('loop'))
    .filter((name) => isInside(readText(`/sys/block/${name}/loop/backing_file`).trimEnd()))
    .map((name) => ({ pid: 0, name: `/dev/${name}` }));
}

function listNumbers(folder: string): number[] {
  return listNames(folder)
    .map(Number)
    .filter((number) => Number.isInteger(number));
}

function listNames(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return '';
  }
}

function readLink(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return '';
  }
}

/** The owner of a process; undefined if there is none. */
export function processOwner(pid: number): number | undefined {
  try {
    return lstatSync(`/proc/${pid}`).uid;
  } catch {
    return undefined;
  }
}
