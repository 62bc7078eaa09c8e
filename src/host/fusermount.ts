/**
 * Mounting as an ordinary user: fusermount3 does it with its own privileges, and hands the
 * descriptor of `/dev/fuse` over through a Unix socket.
 */

import { spawnSync } from 'node:child_process';
import { closeSync } from 'node:fs';
import { Qcow2Error } from '../errors.ts';
import { findProgram } from './find-program.ts';
import { requireLibc } from './libc.ts';
import type { Libc } from './libc.ts';
import { firstLine, missingProgram, unmountRefused } from './mount-errors.ts';
import type { FuseMountOptions } from './mount-errors.ts';

const AF_UNIX = 1;
const SOCK_STREAM = 1;
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const MSG_CMSG_CLOEXEC = 0x40000000;

const HINT = 'install the package fuse3';

/** Path of fusermount3, or of the older fusermount; undefined if neither is in `PATH`. */
function findFusermount(): string | undefined {
  return findProgram('fusermount3') ?? findProgram('fusermount');
}

function requireFusermount(): string {
  const program = findFusermount();
  if (program !== undefined) return program;
  throw new Qcow2Error(
    'MISSING_DEPENDENCY',
    'mounting as an ordinary user needs the program fusermount3',
    { hint: HINT },
  );
}

/**
 * Mounts through fusermount3 and returns the descriptor.
 *
 * @throws {Qcow2Error} `MISSING_DEPENDENCY` without fusermount3 or koffi, `HOST` if it refuses
 */
export function mountWithFusermount(options: FuseMountOptions): number {
  const { directory, source, subtype, flags, allowOther } = options;
  const program = requireFusermount();
  const libc = requireLibc('mounting as an ordinary user');
  const [ours, theirs] = socketPair(libc);
  try {
    // A comma ends an option, so those of the source are escaped.
    const list = [
      ...flags.filter((flag) => flag !== 'nosuid' && flag !== 'nodev'), // always set for users
      `fsname=${source.replace(/[\\,]/g, '\\$&')}`,
      `subtype=${subtype}`,
      'default_permissions',
      ...(allowOther ? ['allow_other'] : []),
    ];
    const { status, stderr, error } = spawnSync(program, ['-o', list.join(','), '--', directory], {
      stdio: ['ignore', 'ignore', 'pipe', theirs],
      env: { ...process.env, _FUSE_COMMFD: '3' },
      encoding: 'utf8',
    });
    if (error !== undefined) throw missingProgram(program, error, HINT);
    if (status !== 0) {
      throw new Qcow2Error('HOST', `cannot mount: ${reasonOf(stderr)}`, { file: directory });
    }
    return receiveDescriptor(libc, ours);
  } finally {
    closeSync(ours);
    closeSync(theirs);
  }
}

/**
 * Unmounts through fusermount3.
 * @throws {Qcow2Error} `LOCKED` if it is in use, `HOST` if it is refused for another reason
 */
export function unmountWithFusermount(directory: string, lazy: boolean): void {
  const program = requireFusermount();
  const args = [lazy ? '-uz' : '-u', '--', directory];
  const { status, stderr, error } = spawnSync(program, args, { encoding: 'utf8' });
  if (error !== undefined) throw missingProgram(program, error, HINT);
  if (status !== 0) throw unmountRefused(directory, reasonOf(stderr));
}

/** fusermount3's own words, with what to do where they leave that open. */
function reasonOf(stderr: string): string {
  const line = firstLine(stderr.replace(/^fusermount3?: /, ''));
  if (line.includes('user_allow_other')) {
    return 'allow_other is only for root, unless /etc/fuse.conf has the line user_allow_other';
  }
  return line;
}

function socketPair(libc: Libc): [ours: number, theirs: number] {
  const socketpair = libc.func('int socketpair(int domain, int type, int protocol, void *pair)');
  const pair = new Int32Array(new ArrayBuffer(128), 0, 2);
  if (Number(socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) !== 0) {
    throw new Qcow2Error('HOST', `cannot make a socket pair: errno ${libc.errno()}`);
  }
  return [pair[0]!, pair[1]!];
}

/**
 * recvmsg(2) of one byte with one descriptor attached. `msghdr` and `cmsghdr` are laid out by
 * hand, as every 64-bit Linux has them.
 */
function receiveDescriptor(libc: Libc, socket: number): number {
  const recvmsg = libc.func('int64_t recvmsg(int socket, void *message, int flags)');
  const message = new BigUint64Array(new ArrayBuffer(128));
  const vector = new BigUint64Array(new ArrayBuffer(128));
  const byte = new Uint8Array(new ArrayBuffer(128));
  const controlBuffer = new ArrayBuffer(128);
  vector[0] = libc.address(byte);
  vector[1] = 1n;
  message[2] = libc.address(asBytes(vector)); // msg_iov; before it msg_name and its length
  message[3] = 1n; // msg_iovlen
  message[4] = libc.address(new Uint8Array(controlBuffer)); // msg_control
  message[5] = BigInt(controlBuffer.byteLength);
  const count = Number(recvmsg(socket, message, MSG_CMSG_CLOEXEC));
  const control = new Int32Array(controlBuffer); // cmsg_len (64 bits), cmsg_level, cmsg_type, data
  if (count !== 1 || control[2] !== SOL_SOCKET || control[3] !== SCM_RIGHTS) {
    throw new Qcow2Error('HOST', 'fusermount3 sent no descriptor');
  }
  return control[4]!;
}

function asBytes(view: BigUint64Array): Uint8Array {
  return new Uint8Array(view.buffer);
}
