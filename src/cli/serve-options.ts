/** The options of `qcow2 serve`. */

import { NBD_DEFAULT_PORT } from '../export/nbd/protocol.ts';
import type { NbdTlsOptions } from '../export/nbd/tls.ts';
import { CACHE_SIZE_OPTION } from './cache-size.ts';
import { usageError } from './command.ts';
import type { OptionDefinition, ParsedArguments } from './command.ts';
import { FORCE_SHARE_OPTION, IMAGE_FORMATS, REFERENCE_OPTIONS } from './image-options.ts';

const IMAGE_OPTIONS = {
  name: {
    kind: 'value',
    short: 'x',
    placeholder: 'EXPORT',
    description: "name of the disk's export (default: the image's name)",
  },
  description: {
    kind: 'value',
    short: 'D',
    placeholder: 'TEXT',
    description: "description of the disk's export",
  },
  snapshot: {
    kind: 'value',
    placeholder: 'ID',
    description: 'serve an internal snapshot, by ID or name, as the disk',
  },
  partition: {
    kind: 'value',
    placeholder: 'N',
    description: 'serve one partition in place of the disk',
  },
  bitmap: {
    kind: 'list',
    short: 'B',
    placeholder: 'NAME',
    description: 'let clients ask for a dirty bitmap, as qemu:dirty-bitmap:NAME; can be repeated',
  },
  'read-only': { kind: 'flag', short: 'r', description: 'refuse writes; this is the default' },
  rw: { kind: 'flag', description: 'let clients write to the image' },
  temp: { kind: 'flag', description: 'let clients write, and forget it all at the end' },
  overlay: {
    kind: 'value',
    placeholder: 'FILE',
    description: 'keep writes in FILE, an overlay of the image; made if missing',
  },
  resize: {
    kind: 'flag',
    description: 'let clients that write change the size of the disk (an experiment of NBD)',
  },
  format: {
    kind: 'value',
    short: 'f',
    placeholder: 'FMT',
    description: 'format of the images; found out if not given',
    choices: IMAGE_FORMATS,
  },
  ...REFERENCE_OPTIONS,
  ...FORCE_SHARE_OPTION,
} as const satisfies Record<string, OptionDefinition>;

const SOCKET_OPTIONS = {
  socket: {
    kind: 'value',
    short: 'k',
    placeholder: 'PATH',
    description: 'listen on a Unix socket, which is removed at the end',
  },
  port: {
    kind: 'value',
    short: 'p',
    placeholder: 'N',
    description: `listen on TCP (default ${NBD_DEFAULT_PORT}; 0 takes a free port)`,
  },
  bind: {
    kind: 'value',
    short: 'b',
    placeholder: 'ADDR',
    description: 'address to listen on (default localhost, IPv4 and IPv6)',
  },
  'socket-mode': {
    kind: 'value',
    placeholder: 'MODE',
    description: 'permissions of the Unix socket, as in 660 (default: as the umask says)',
  },
  'socket-owner': {
    kind: 'value',
    placeholder: 'USER:GROUP',
    description: 'whom the Unix socket belongs to; either can be left out',
  },
  fd: {
    kind: 'value',
    placeholder: 'N',
    description: 'use an inherited descriptor: a socket that listens, or one client',
  },
} as const satisfies Record<string, OptionDefinition>;

const TLS_OPTIONS = {
  tls: {
    kind: 'value',
    placeholder: 'MODE',
    description: 'encrypted connections: off (the default), on (who wants), or require',
    choices: ['off', 'on', 'require'],
  },
  'tls-certificates': {
    kind: 'value',
    placeholder: 'DIR',
    description: 'server-cert.pem, server-key.pem and ca-cert.pem are there',
  },
  'tls-verify-peer': {
    kind: 'flag',
    description: 'take only clients with a certificate of that authority',
  },
  'tls-psk': {
    kind: 'value',
    placeholder: 'FILE',
    description: 'users and keys (psktool), in place of certificates',
  },
} as const satisfies Record<string, OptionDefinition>;

const SERVER_OPTIONS = {
  threads: {
    kind: 'value',
    placeholder: 'N',
    description: 'threads that serve (default: more than one while several clients are busy)',
  },
  'cache-size': CACHE_SIZE_OPTION,
  'max-clients': {
    kind: 'value',
    short: 'e',
    placeholder: 'N',
    description: 'clients at one time (default 64)',
  },
  'idle-timeout': {
    kind: 'value',
    placeholder: 'SECONDS',
    description: 'drop clients that ask for nothing for so long (default: never)',
  },
  persistent: {
    kind: 'flag',
    short: 't',
    description: 'go on when the last client has gone; this is the default',
  },
  'until-last-client': { kind: 'flag', description: 'end when the last client has gone' },
  fork: { kind: 'flag', description: 'go on in the background once clients can connect' },
  'pid-file': {
    kind: 'value',
    placeholder: 'FILE',
    description: 'write the process ID to a file once clients can connect',
  },
  verbose: { kind: 'flag', short: 'v', description: 'tell which clients come and go' },
  stats: {
    kind: 'flag',
    description: 'tell at the end, and on SIGUSR1, how requests, caches and layers did',
  },
  output: {
    kind: 'value',
    placeholder: 'FMT',
    description: 'print addresses and exports as text or as one line of JSON',
    choices: ['human', 'json'],
  },
} as const satisfies Record<string, OptionDefinition>;

/** All of them, as the help lists them. */
export const SERVE_OPTIONS = {
  ...IMAGE_OPTIONS,
  ...SOCKET_OPTIONS,
  ...TLS_OPTIONS,
  ...SERVER_OPTIONS,
};

/**
 * The value of an option that is a whole number.
 * @throws {Qcow2Error} `INVALID_OPTION`
 */
export function numberOption(
  args: ParsedArguments,
  name: string,
  { minimum, maximum }: { minimum: number; maximum: number },
): number | undefined {
  const text = args.value(name);
  if (text === undefined) return undefined;
  const value = /^\d{1,15}$/.test(text) ? Number(text) : -1;
  if (value < minimum || value > maximum) {
    throw usageError(`--${name} must be a number from ${minimum} to ${maximum}, not '${text}'`);
  }
  return value;
}

/**
 * What `--tls` and its companions ask for; undefined without TLS.
 * @throws {Qcow2Error} `INVALID_OPTION`
 */
export function tlsOptions(args: ParsedArguments): NbdTlsOptions | undefined {
  const [certificates, pskFile] = [args.value('tls-certificates'), args.value('tls-psk')];
  const isDescribed = certificates !== undefined || pskFile !== undefined;
  // Whoever names keys wants them to be used.
  const mode = args.choice('tls', ['off', 'on', 'require'], isDescribed ? 'require' : 'off');
  if (mode === 'off') {
    if (isDescribed)
      throw usageError('--tls=off goes with neither --tls-certificates nor --tls-psk');
    return undefined;
  }
  if (!isDescribed || (certificates !== undefined && pskFile !== undefined)) {
    throw usageError('TLS needs either --tls-certificates or --tls-psk');
  }
  return { mode, certificates, pskFile, verifyPeer: args.flag('tls-verify-peer') };
}
