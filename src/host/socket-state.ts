/** What an inherited socket is for, which Node does not tell (Linux: /proc). */

import { fstatSync, readFileSync, readlinkSync } from 'node:fs';

/** What an inherited descriptor is. */
export type DescriptorState = 'listening' | 'connected' | 'no socket';

/** The flag of /proc/net/unix, and the state of /proc/net/tcp, of a socket that listens. */
const UNIX_LISTENS = '00010000';
const TCP_LISTENS = '0A';

/** What a descriptor is; a socket of which that cannot be told is taken for one that listens. */
export function descriptorState(fd: number): DescriptorState {
  try {
    if (!fstatSync(fd).isSocket()) return 'no socket';
  } catch {
    return 'no socket';
  }
  let inode: string | undefined;
  try {
    inode = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/self/fd/${fd}`))?.[1];
  } catch {
    return 'listening';
  }
  // Columns of a line: those of Unix sockets are number, references, protocol, flags, type, state,
  // inode; those of TCP number, local, remote, state, queues, timer, retransmits, user, timeout,
  // inode.
  const unix = findLine('/proc/net/unix', 6, inode);
  if (unix !== undefined) return unix[3] === UNIX_LISTENS ? 'listening' : 'connected';
  const tcp = findLine('/proc/net/tcp', 9, inode) ?? findLine('/proc/net/tcp6', 9, inode);
  return tcp === undefined || tcp[3] === TCP_LISTENS ? 'listening' : 'connected';
}

function findLine(file: string, column: number, value: string | undefined): string[] | undefined {
  try {
    return readFileSync(file, 'utf8')
      .split('\n')
      .map((line) => line.trim().split(/\s+/))
      .find((columns) => columns[column] === value);
  } catch {
    return undefined;
  }
}
