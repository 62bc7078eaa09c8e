/** `qcow2 serve`: serves images over NBD, for reading, until it is told to stop. */

import { readFileSync, unlinkSync, writeFileSync } from 'node:fs';
import { basename, extname } from 'node:path';
import type { OpenImageOptions } from '../../chain/open.ts';
import { hostError } from '../../errors.ts';
import { imageExports } from '../../export/nbd/image-exports.ts';
import type { ImageExport, ImageExports } from '../../export/nbd/image-exports.ts';
import { NBD_DEFAULT_PORT } from '../../export/nbd/protocol.ts';
import { serveNbd } from '../../export/nbd/server.ts';
import type { NbdAddress, NbdServer } from '../../export/nbd/server.ts';
import { usageError } from '../command.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import { FORCE_SHARE_OPTION } from '../image-options.ts';
import { formatSizeWithBytes } from '../size.ts';

const FORMATS = ['qcow2', 'raw'] as const;
/** Exports that are listed when the server starts; `nbdinfo --list` shows all. */
const MAX_LISTED_EXPORTS = 20;
/** Descriptor of the first socket that is passed by socket activation (`sd_listen_fds(3)`). */
const SD_LISTEN_FDS_START = 3;

export const command: CommandDefinition = {
  name: 'serve',
  summary: 'serve disk images over NBD, read-only',
  operands: 'IMAGE…',
  operandCount: [1, 256],
  details: [
    'Stays in the foreground and prints the NBD URIs once clients can connect; Ctrl-C or SIGTERM',
    'ends it. The first image is the default export, which clients get that give no name. Exports',
    'are called after the image: NAME is the disk, NAME/1 its first partition, NAME@SNAPSHOT an',
    'internal snapshot. Without --socket and --port it listens on localhost, port',
    `${NBD_DEFAULT_PORT}. A socket that is passed in (LISTEN_FDS) is used in their place.`,
  ].join(' '),
  examples: [
    'qcow2 serve --socket /tmp/disk.sock disk.qcow2',
    'qcow2 serve --port 10809 --bind 0.0.0.0 disk.qcow2 other.qcow2',
    "nbdinfo --list 'nbd+unix:///?socket=/tmp/disk.sock'",
    'nbdinfo --size [ qcow2 serve disk.qcow2 ]',
  ],
  options: {
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
    format: {
      kind: 'value',
      short: 'f',
      placeholder: 'FMT',
      description: 'format of the images; found out if not given',
      choices: FORMATS,
    },
    'backing-format': {
      kind: 'value',
      placeholder: 'FMT',
      description: 'format of a backing file that the image does not tell',
      choices: FORMATS,
    },
    'allow-protocol-names': {
      kind: 'flag',
      description: 'take json: and PROTOCOL: names of backing files for file names',
    },
    ...FORCE_SHARE_OPTION,
    'max-clients': {
      kind: 'value',
      short: 'e',
      placeholder: 'N',
      description: 'clients at one time (default 64)',
    },
    'read-only': { kind: 'flag', short: 'r', description: 'refuse writes; this is the default' },
    'pid-file': {
      kind: 'value',
      placeholder: 'FILE',
      description: 'write the process ID to a file once clients can connect',
    },
    verbose: { kind: 'flag', short: 'v', description: 'tell which clients come and go' },
    output: {
      kind: 'value',
      placeholder: 'FMT',
      description: 'print addresses and exports as text or as one line of JSON',
      choices: ['human', 'json'],
    },
  },
  run,
};

async function run(args: ParsedArguments, io: CommandIo): Promise<number> {
  const asJson = args.choice('output', ['human', 'json'], 'human') === 'json';
  const maxClients = numberOption(args, 'max-clients', { minimum: 1, maximum: 10_000 }) ?? 64;
  const verbose = args.flag('verbose');
  const address = addressOf(args);
  const served = await openAll(args);
  try {
    const server = await serveNbd(served.exports, address, {
      maxClients,
      log: (message, level) => {
        if (verbose || level === 'warning') io.stderr(`qcow2: ${printable(message)}\n`);
      },
    });
    // From here on a signal ends the server in good order.
    const stopped = stopSignal();
    const pidFile = args.value('pid-file');
    try {
      if (pidFile !== undefined) writePidFile(pidFile);
      announce(server, served.exports, { asJson, isPassedIn: 'fd' in address }, io);
      await stopped;
    } finally {
      await server.close();
      if (pidFile !== undefined) removePidFile(pidFile);
    }
  } finally {
    served.close();
  }
  return 0;
}

function addressOf(args: ParsedArguments): NbdAddress {
  const socketPath = args.value('socket');
  const port = numberOption(args, 'port', { minimum: 0, maximum: 65_535 });
  const host = args.value('bind');
  if (socketPath !== undefined && (port !== undefined || host !== undefined)) {
    throw usageError('--socket cannot be used together with --port or --bind');
  }
  if (socketPath === '') throw usageError('--socket needs a path');
  const isGiven = socketPath !== undefined || port !== undefined || host !== undefined;
  if (isPassedASocket()) {
    if (isGiven) {
      throw usageError(
        'a socket was passed in (LISTEN_FDS): leave out --socket, --port and --bind',
      );
    }
    return { fd: SD_LISTEN_FDS_START };
  }
  if (socketPath !== undefined) return { socketPath };
  return { port: port ?? NBD_DEFAULT_PORT, ...(host === undefined ? {} : { host }) };
}

/** Whether a listening socket is there as `sd_listen_fds(3)` describes it. */
function isPassedASocket(): boolean {
  const { LISTEN_PID, LISTEN_FDS } = process.env;
  if (LISTEN_PID !== String(process.pid) || LISTEN_FDS === undefined) return false;
  if (LISTEN_FDS !== '1') {
    throw usageError(`one socket must be passed in, not ${LISTEN_FDS} (LISTEN_FDS)`);
  }
  return true;
}

async function openAll(args: ParsedArguments): Promise<ImageExports> {
  const paths = args.operands;
  const opened: ImageExports[] = [];
  const close = (): void => {
    for (const image of opened) image.close();
  };
  const partition = numberOption(args, 'partition', { minimum: 1, maximum: 65_535 });
  for (const option of ['name', 'description']) {
    if (args.value(option) !== undefined && paths.length > 1) {
      throw usageError(`--${option} can be given for one image only`);
    }
  }
  const names = exportNames(paths, args.value('name'));
  const options = {
    description: args.value('description'),
    snapshot: args.value('snapshot'),
    partition,
    open: openOptions(args),
  };
  try {
    for (const [index, path] of paths.entries()) {
      opened.push(await imageExports(path, { ...options, name: names[index]! }));
    }
  } catch (error) {
    close();
    throw error;
  }
  return { exports: opened.flatMap(({ exports }) => exports), close };
}

/** Names of the disks: the files' without extension, or with it where that tells them apart. */
function exportNames(paths: readonly string[], name: string | undefined): string[] {
  if (name !== undefined) return paths.map(() => name);
  const short = paths.map((path) => basename(path, extname(path)));
  if (new Set(short).size === paths.length) return short;
  const long = paths.map((path) => basename(path));
  if (new Set(long).size === paths.length) return long;
  throw usageError('two images have the same file name, by which their exports would be called');
}

function openOptions(args: ParsedArguments): OpenImageOptions {
  const options: OpenImageOptions = {};
  if (args.value('format') !== undefined) options.format = args.choice('format', FORMATS, 'raw');
  if (args.value('backing-format') !== undefined) {
    options.backingFormat = args.choice('backing-format', FORMATS, 'raw');
  }
  if (args.flag('allow-protocol-names')) options.allowProtocolNames = true;
  if (args.flag('force-share')) options.forceShare = true;
  return options;
}

function numberOption(
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

/** Settles at the first signal to stop; the next one ends the process as it would any other. */
function stopSignal(): Promise<void> {
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;
  return new Promise((resolve) => {
    const stop = (): void => {
      for (const signal of signals) process.off(signal, stop);
      resolve();
    };
    for (const signal of signals) process.on(signal, stop);
  });
}

/** Says where the exports are. */
function announce(
  server: NbdServer,
  exports: readonly ImageExport[],
  how: { asJson: boolean; isPassedIn: boolean },
  io: CommandIo,
): void {
  const [uri] = server.uris();
  if (how.asJson) {
    const list = exports.map(({ name, description = '', size }) => ({
      name,
      description,
      size,
      ...(uri === undefined ? {} : { uri: server.uris(name)[0] }),
    }));
    const start = uri === undefined ? {} : { uri };
    io.stdout(`${JSON.stringify({ ...start, pid: process.pid, exports: list })}\n`);
    return;
  }
  // Whoever passes the socket in is a program, and its output is not ours to write to.
  if (how.isPassedIn || uri === undefined) return;
  const lines = [`Serving for reading at ${uri}`];
  for (const { name, size } of exports.slice(0, MAX_LISTED_EXPORTS)) {
    lines.push(`  ${printable(name)}: ${formatSizeWithBytes(size)}, ${server.uris(name)[0] ?? ''}`);
  }
  const more = exports.length - MAX_LISTED_EXPORTS;
  if (more > 0) lines.push(`  and ${more} more, see: nbdinfo --list '${uri}'`);
  lines.push(`Connect with, for example: qemu-img info '${uri}'`, 'Stop with Ctrl-C.');
  io.stdout(`${lines.join('\n')}\n`);
}

/** Names come from images and clients: no control characters on the terminal. */
function printable(text: string): string {
  return text.replace(/\p{Cc}|\p{Cf}/gu, '?');
}

function writePidFile(path: string): void {
  try {
    writeFileSync(path, `${process.pid}\n`);
  } catch (error) {
    throw hostError('cannot write the process ID', path, error);
  }
}

/** Removes the file unless another process has written its own since. */
function removePidFile(path: string): void {
  try {
    if (readFileSync(path, 'utf8') === `${process.pid}\n`) unlinkSync(path);
  } catch {
    // It is gone already, or was never written.
  }
}
