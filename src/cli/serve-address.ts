/** Where `qcow2 serve` listens, as its options and its environment say. */

import { readFileSync } from 'node:fs';
import { NBD_DEFAULT_PORT } from '../export/nbd/protocol.ts';
import type { NbdAddress, UnixSocketAddress } from '../export/nbd/server.ts';
import { Qcow2Error } from '../errors.ts';
import { usageError } from './command.ts';
import type { ParsedArguments } from './command.ts';
import { numberOption } from './serve-options.ts';

/** Descriptor of the first socket that is passed by socket activation (`sd_listen_fds(3)`). */
const SD_LISTEN_FDS_START = 3;
/** Sockets that can be passed. */
const MAX_PASSED_SOCKETS = 64;

/** Where to listen. */
export interface ServeAddress {
  addresses: NbdAddress[];
  /** Whether the sockets were made by somebody else. */
  isPassedIn: boolean;
}

/**
 * What the options about sockets say.
 * @throws {Qcow2Error} `INVALID_OPTION` for those that contradict each other, or the environment
 */
export function addressOf(args: ParsedArguments): ServeAddress {
  const socketPath = args.value('socket');
  const port = numberOption(args, 'port', { minimum: 0, maximum: 65_535 });
  const host = args.value('bind');
  const fd = numberOption(args, 'fd', { minimum: 0, maximum: 65_535 });
  const isTcp = port !== undefined || host !== undefined;
  if (socketPath !== undefined && isTcp) {
    throw usageError('--socket cannot be used together with --port or --bind');
  }
  if (fd !== undefined && (isTcp || socketPath !== undefined)) {
    throw usageError('--fd cannot be used together with --socket, --port or --bind');
  }
  if (socketPath === '') throw usageError('--socket needs a path');
  for (const name of ['socket-mode', 'socket-owner']) {
    if (args.value(name) !== undefined && socketPath === undefined) {
      throw usageError(`--${name} is for --socket`);
    }
  }
  const isGiven = socketPath !== undefined || isTcp || fd !== undefined;
  const passed = passedSockets();
  if (passed > 0 && isGiven) {
    throw usageError(
      'a socket was passed in (LISTEN_FDS): leave out --socket, --port, --bind and --fd',
    );
  }
  if (passed > 0) {
    const addresses = Array.from({ length: passed }, (_, index) => ({
      fd: SD_LISTEN_FDS_START + index,
    }));
    return { addresses, isPassedIn: true };
  }
  if (fd !== undefined) return { addresses: [{ fd }], isPassedIn: true };
  const address: NbdAddress =
    socketPath === undefined
      ? { port: port ?? NBD_DEFAULT_PORT, ...(host === undefined ? {} : { host }) }
      : { socketPath, ...accessOf(args) };
  return { addresses: [address], isPassedIn: false };
}

/** How many listening sockets are there as `sd_listen_fds(3)` describes them. */
function passedSockets(): number {
  const { LISTEN_PID, LISTEN_FDS } = process.env;
  if (LISTEN_PID !== String(process.pid) || LISTEN_FDS === undefined) return 0;
  const count = /^\d{1,3}$/.test(LISTEN_FDS) ? Number(LISTEN_FDS) : 0;
  if (count < 1 || count > MAX_PASSED_SOCKETS) {
    throw usageError(`1 to ${MAX_PASSED_SOCKETS} sockets can be passed in, not ${LISTEN_FDS}`);
  }
  return count;
}

function accessOf(args: ParsedArguments): Omit<UnixSocketAddress, 'socketPath'> {
  const mode = args.value('socket-mode');
  const owner = args.value('socket-owner');
  if (mode !== undefined && !/^0?[0-7]{3}$/.test(mode)) {
    throw usageError(`--socket-mode must be three octal digits, as in 660, not '${mode}'`);
  }
  return {
    ...(mode === undefined ? {} : { mode: Number.parseInt(mode, 8) }),
    ...(owner === undefined ? {} : { owner: parseOwner(owner) }),
  };
}

/** `USER`, `USER:GROUP` or `:GROUP`, each a name or a number. */
function parseOwner(text: string): NonNullable<UnixSocketAddress['owner']> {
  const [, user, group] = /^([^:]*)(?::(.+))?$/.exec(text) ?? [];
  if (user === undefined || (user === '' && group === undefined)) {
    throw usageError(`--socket-owner must be USER, USER:GROUP or :GROUP, not '${text}'`);
  }
  return {
    ...(user === '' ? {} : { uid: idOf(user, 'user', '/etc/passwd') }),
    ...(group === undefined ? {} : { gid: idOf(group, 'group', '/etc/group') }),
  };
}

function idOf(name: string, what: string, file: string): number {
  if (/^\d{1,9}$/.test(name)) return Number(name);
  const line = readFileSync(file, 'utf8')
    .split('\n')
    .map((entry) => entry.split(':'))
    .find(([first]) => first === name);
  if (line?.[2] !== undefined) return Number(line[2]);
  throw new Qcow2Error('INVALID_OPTION', `there is no ${what} '${name}' in ${file}`, {
    hint: 'give the number',
  });
}
