/** `qcow2 serve`: serves images over NBD until it is told to stop. */

import { readFileSync, unlinkSync, writeFileSync } from 'node:fs';
import { shareClusterCache } from '../../chain/cluster-cache.ts';
import { hostError } from '../../errors.ts';
import type { ImageExport, WriteTarget } from '../../export/nbd/image-exports.ts';
import { openImageSet } from '../../export/nbd/image-set.ts';
import { NBD_DEFAULT_PORT } from '../../export/nbd/protocol.ts';
import { serveNbd } from '../../export/nbd/server.ts';
import type { NbdAddress, NbdServer, NbdServerOptions } from '../../export/nbd/server.ts';
import { DecompressionThreads } from '../../worker/decompression.ts';
import { NbdThreads } from '../../worker/nbd-threads.ts';
import { defaultServingThreads, MAX_SERVING_THREADS } from '../../worker/thread-count.ts';
import { cacheSize } from '../cache-size.ts';
import { usageError } from '../command.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import { printable } from '../report.ts';
import { addressOf } from '../serve-address.ts';
import { BackgroundIo, isBackgroundServer, startInBackground } from '../serve-background.ts';
import { guessedRawImages, imageSpecs, writeTarget } from '../serve-images.ts';
import { numberOption, SERVE_OPTIONS, tlsOptions } from '../serve-options.ts';
import { ServeStats } from '../serve-stats.ts';
import { formatSizeWithBytes } from '../size.ts';

/** Exports that are listed when the server starts; `nbdinfo --list` shows all. */
const MAX_LISTED_EXPORTS = 20;

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
  const options = serverOptions(args);
  const { addresses, isPassedIn } = addressOf(args);
  const written = writeTarget(args);
  const threads = threadsOf(args, written);
  const plan: ServePlan = { io, options, addresses, isPassedIn, written, threads };
  if (!args.flag('fork')) return serve(args, plan);
  if (isPassedIn) throw usageError('--fork cannot be used with a socket that is passed in');
  if (args.flag('stats')) throw usageError('--fork leaves nobody to tell the --stats to');
  if (!isBackgroundServer()) return startInBackground(process.argv.slice(2), io);
  const background = new BackgroundIo(io);
  const ready = (): void => background.ready();
  return serve(args, { ...plan, io: background, ready });
}

/** How many threads serve at most, and whether that was asked for. */
function threadsOf(args: ParsedArguments, written: WriteTarget): ServePlan['threads'] {
  const maximum = MAX_SERVING_THREADS;
  const asked = numberOption(args, 'threads', { minimum: 1, maximum });
  if (written === 'nowhere') {
    return { most: asked ?? defaultServingThreads(), areAsked: asked !== undefined };
  }
  // Writes are made by one, so that nobody sees another's half done.
  if (asked === undefined || asked === 1) return { most: 1, areAsked: false };
  throw usageError('--threads is for images that are only read: one thread writes');
}

/** What the options say of the server, apart from where it listens. */
function serverOptions(args: ParsedArguments): NbdServerOptions {
  const idleSeconds = numberOption(args, 'idle-timeout', { minimum: 1, maximum: 1_000_000 });
  if (args.flag('persistent') && args.flag('until-last-client')) {
    throw usageError('--persistent and --until-last-client cannot be used together');
  }
  return {
    maxClients: numberOption(args, 'max-clients', { minimum: 1, maximum: 10_000 }) ?? 64,
    idleTimeoutMs: idleSeconds === undefined ? undefined : idleSeconds * 1000,
    tls: tlsOptions(args),
  };
}

/** All that a server needs besides its images. */
interface ServePlan {
  io: CommandIo;
  options: NbdServerOptions;
  addresses: readonly NbdAddress[];
  isPassedIn: boolean;
  written: WriteTarget;
  threads: { most: number; areAsked: boolean };
  /** Called once clients can connect. */
  ready?: () => void;
}

async function serve(args: ParsedArguments, plan: ServePlan): Promise<number> {
  const { io, addresses, isPassedIn, written } = plan;
  const asJson = args.choice('output', ['human', 'json'], 'human') === 'json';
  const cacheBytes = cacheSize(args);
  const specs = imageSpecs(args);
  const served = await openImageSet(specs);
  for (const path of guessedRawImages(args, served)) {
    const problem = 'no format was given, and it was taken for raw; say -f raw if it is';
    io.stderr(`qcow2: warning: ${path}: ${problem}\n`);
  }
  let decompression: DecompressionThreads | undefined;
  try {
    let onLastClient = (): void => undefined;
    const clientsGone = new Promise<void>((resolve) => (onLastClient = resolve));
    const { most, areAsked } = plan.threads;
    const { fingerprint } = served;
    const clusterCache = shareClusterCache(served.images, cacheBytes);
    const how = { threads: most, asJson, io };
    const stats = args.flag('stats') ? new ServeStats(served.images, how) : undefined;
    decompression = new DecompressionThreads(clusterCache, undefined, stats?.decompressionRows);
    const shared = { images: specs, fingerprint, clusterCache, stats: stats?.memory };
    const threads = most > 1 ? new NbdThreads({ threads: most, ...shared }) : undefined;
    const server = await serveNbd(served.exports, addresses, {
      ...plan.options,
      threads,
      stats: stats?.requests,
      onLastClient,
      log: (message, level) => {
        const isTold = args.flag('verbose') || level === 'warning';
        if (isTold) io.stderr(`qcow2: ${printable(message)}\n`);
      },
    });
    // From here on a signal ends the server in good order.
    const stopped = stopSignal();
    stats?.heedSignal();
    const pidFile = args.value('pid-file');
    try {
      if (areAsked) await threads?.startAll();
      if (pidFile !== undefined) writePidFile(pidFile);
      announce(server, served.exports, { asJson, isPassedIn, written }, io);
      plan.ready?.();
      const endsByItself = args.flag('until-last-client') || !server.acceptsClients;
      await (endsByItself ? Promise.race([stopped, clientsGone]) : stopped);
    } finally {
      await server.close();
      stats?.end();
      if (pidFile !== undefined) removePidFile(pidFile);
    }
  } finally {
    served.close();
    await decompression?.close();
  }
  const isKept = written !== 'nowhere' && written !== 'temporary';
  if (isKept && !asJson && !isPassedIn) io.stdout('All that was written is on the disk.\n');
  return 0;
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
  how: { asJson: boolean } & Pick<ServePlan, 'isPassedIn' | 'written'>,
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
