/** `qcow2 serve`: serves images over NBD until it is told to stop. */

import { readFileSync, unlinkSync, writeFileSync } from 'node:fs';
import { hostError } from '../../errors.ts';
import type { ImageExport, WriteTarget } from '../../export/nbd/image-exports.ts';
import { NBD_DEFAULT_PORT } from '../../export/nbd/protocol.ts';
import { serveNbd } from '../../export/nbd/server.ts';
import type { NbdAddress, NbdServer } from '../../export/nbd/server.ts';
import { usageError } from '../command.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import { openImages, writeTarget } from '../serve-images.ts';
import { numberOption, SERVE_OPTIONS, tlsOptions } from '../serve-options.ts';
import { formatSizeWithBytes } from '../size.ts';

/** Exports that are listed when the server starts; `nbdinfo --list` shows all. */
const MAX_LISTED_EXPORTS = 20;
/** Descriptor of the first socket that is passed by socket activation (`sd_listen_fds(3)`). */
const SD_LISTEN_FDS_START = 3;

export const command: CommandDefinition = {
  name: 'serve',
  summary: 'serve disk images over NBD',
  operands: 'IMAGE…',
  operandCount: [1, 256],
  details: [
    'Stays in the foreground and prints the NBD URIs once clients can connect; Ctrl-C or SIGTERM',
    'ends it. The first image is the default export, which clients get that give no name. Exports',
    'are called after the image: NAME is the disk, NAME/1 its first partition, NAME@SNAPSHOT an',
    'internal snapshot, NAME~0 the lowest layer of its backing chain. Clients can only read unless',
    '--rw, --temp or --overlay says where their writes go. Without --socket and --port it listens',
    `on localhost, port ${NBD_DEFAULT_PORT}. A socket that is passed in (LISTEN_FDS) is used in their place.`,
  ].join(' '),
  examples: [
    'qcow2 serve --socket /tmp/disk.sock disk.qcow2',
    'qcow2 serve --port 10809 --bind 0.0.0.0 disk.qcow2 other.qcow2',
    "nbdinfo --list 'nbd+unix:///?socket=/tmp/disk.sock'",
    'nbdinfo --size [ qcow2 serve disk.qcow2 ]',
  ],
  options: SERVE_OPTIONS,
  run,
};

async function run(args: ParsedArguments, io: CommandIo): Promise<number> {
  const asJson = args.choice('output', ['human', 'json'], 'human') === 'json';
  const maxClients = numberOption(args, 'max-clients', { minimum: 1, maximum: 10_000 }) ?? 64;
  const verbose = args.flag('verbose');
  const address = addressOf(args);
  const written = writeTarget(args);
  const tls = tlsOptions(args);
  const served = await openImages(args);
  try {
    const server = await serveNbd(served.exports, address, {
      maxClients,
      tls,
      log: (message, level) => {
        if (verbose || level === 'warning') io.stderr(`qcow2: ${printable(message)}\n`);
      },
    });
    // From here on a signal ends the server in good order.
    const stopped = stopSignal();
    const pidFile = args.value('pid-file');
    try {
      if (pidFile !== undefined) writePidFile(pidFile);
      announce(server, served.exports, { asJson, isPassedIn: 'fd' in address, written }, io);
      await stopped;
    } finally {
      await server.close();
      if (pidFile !== undefined) removePidFile(pidFile);
    }
  } finally {
    served.close();
  }
  const isKept = written !== 'nowhere' && written !== 'temporary';
  if (isKept && !asJson && !('fd' in address)) io.stdout('All that was written is on the disk.\n');
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
  how: { asJson: boolean; isPassedIn: boolean; written: WriteTarget },
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
  const lines = [`Serving for ${describeAccess(how.written)} at ${uri}`];
  for (const { name, size } of exports.slice(0, MAX_LISTED_EXPORTS)) {
    lines.push(`  ${printable(name)}: ${formatSizeWithBytes(size)}, ${server.uris(name)[0] ?? ''}`);
  }
  const more = exports.length - MAX_LISTED_EXPORTS;
  if (more > 0) lines.push(`  and ${more} more, see: nbdinfo --list '${uri}'`);
  lines.push(`Connect with, for example: qemu-img info '${uri}'`, 'Stop with Ctrl-C.');
  io.stdout(`${lines.join('\n')}\n`);
}

function describeAccess(written: WriteTarget): string {
  if (written === 'nowhere') return 'reading';
  if (written === 'image') return 'reading and writing';
  if (written === 'temporary') return 'reading and writing, which is forgotten at the end,';
  return `reading and writing, which goes to ${printable(written.overlay)},`;
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
