/** `qcow2 mount`: shows an image as files in a directory. */

import { randomBytes } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { defaultDirectory, prepareDirectory } from '../../worker/fuse-directory.ts';
import { checkFilesPossible } from '../../worker/fuse-channels.ts';
import { launchMount } from '../../worker/fuse-launch.ts';
import { filesRequest } from '../../worker/fuse-files.ts';
import { cleanStale, removeEmptyDirectory } from '../../worker/fuse-mounts.ts';
import { parseFuseOptions } from '../../worker/fuse-options.ts';
import type { MountRequest, MountSummary } from '../../worker/fuse-request.ts';
import { stateDirectory } from '../../worker/fuse-state.ts';
import { MAX_SERVING_THREADS } from '../../worker/thread-count.ts';
import { CACHE_SIZE_OPTION, cacheSize } from '../cache-size.ts';
import { nearestName, usageError } from '../command.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import {
  FORCE_SHARE_OPTION,
  formatOption,
  IMAGE_FORMATS,
  REFERENCE_OPTIONS,
  referenceOptions,
} from '../image-options.ts';
import { describeMount, describeMountJson } from '../mount-report.ts';

const CHANNELS = ['auto', 'kernel', 'fuse-native'] as const;

const DETAILS = `\
Returns when the mount can be used; a process in the background serves it until it is unmounted. \
Without DIR a directory is made in the current one, named after the image (disk.qcow2 on disk), and \
removed at the end; so is a DIR that is missing. The mount stays after logout; SIGTERM, which a \
system may send then to all processes of a user, unmounts it in good order. DIR holds:

  disk.raw                       the whole disk
  partitions/1-root.raw, …       one file a partition
  snapshots/ID-NAME/disk.raw, …  the same for each internal snapshot
  layers/0-NAME.raw, …           the disk as each layer of the chain saw it
  info.json, map.json            what info and map print
  stats, stats.json              requests, latencies, caches, reads of layers

With --snapshot or --partition, disk.raw is what they name; partitions within it are shown too, but \
no snapshots and layers.

Nothing is written to the image unless --rw is given. With it, or with --temp or --overlay, the \
disk and its partitions are files that accept writes, of a size that stays as it is. What was \
written is on the disk after fsync(2), and after the unmount, which waits for it; a crash loses no \
more than it would of a real disk. Snapshots and layers are for reading.

With --fs, DIR shows the files of the only partition that has a filesystem, of the one that \
--partition names, or of the whole disk where there are no partitions; with --all, DIR holds a \
directory for each. Root gets them from the drivers of the kernel; others from programs like \
fuse2fs, if they are installed. A filesystem whose journal would have to be replayed is shown as \
it is, and --temp replays it beside the image.

Mount options (-o): allow_other, nonempty, uid=N, gid=N, mode=OCTAL, umask=OCTAL, fsname=NAME, \
subtype=NAME, noexec, noatime, nodiratime, relatime, strictatime; direct_io reads past the kernel's \
cache, which is quicker for whole images read once and slower for small reads.

Records and logs of mounts are kept in /run/qcow2, $XDG_RUNTIME_DIR/qcow2 or /tmp/qcow2-UID, on \
macOS in ~/Library/Application Support/qcow2; QCOW2_STATE_DIR names another place.`;

export const command: CommandDefinition = {
  name: 'mount',
  summary: 'show an image as files in a directory',
  operands: 'IMAGE [DIR]',
  operandCount: [1, 2],
  details: DETAILS,
  examples: [
    'qcow2 mount disk.qcow2',
    'qcow2 mount --snapshot before-upgrade disk.qcow2 /mnt/before',
    'qcow2 mount --partition 2 -o allow_other disk.qcow2 /mnt/root-partition',
    'qcow2 mount --fs disk.qcow2 /mnt/disk',
    'qcow2 mount --fs --all --temp disk.qcow2 /mnt/disk',
    'qcow2 mount --foreground disk.qcow2 /mnt/disk',
    'qcow2 mount --rw disk.qcow2 /mnt/disk',
    'qcow2 mount --overlay changes.qcow2 disk.qcow2 /mnt/disk',
  ],
  options: {
    rw: { kind: 'flag', description: 'write to the image' },
    temp: {
      kind: 'flag',
      description: 'accept writes and forget them at the end; the image stays as it is',
    },
    overlay: {
      kind: 'value',
      placeholder: 'FILE',
      description: 'keep writes in FILE, an overlay of the image; made if missing',
    },
    snapshot: {
      kind: 'value',
      placeholder: 'ID',
      description: 'show an internal snapshot, by ID or name, as the disk',
    },
    partition: {
      kind: 'value',
      placeholder: 'N',
      description: 'show one partition as disk.raw, in place of the disk',
    },
    fs: { kind: 'flag', description: 'go on to the files of the only, or of one, partition' },
    all: { kind: 'flag', description: 'with --fs: each partition with files in a directory' },
    foreground: {
      kind: 'flag',
      description: 'stay, and unmount on Ctrl-C, SIGTERM and SIGHUP',
    },
    stats: {
      kind: 'flag',
      description: 'with --foreground: tell at the end, and on SIGUSR1, what the file stats holds',
    },
    options: {
      kind: 'list',
      short: 'o',
      placeholder: 'OPTIONS',
      description: 'mount options, separated by commas',
    },
    format: {
      kind: 'value',
      short: 'f',
      placeholder: 'FMT',
      description: 'format of the image; found out if not given',
      choices: IMAGE_FORMATS,
    },
    ...REFERENCE_OPTIONS,
    ...FORCE_SHARE_OPTION,
    'cache-size': CACHE_SIZE_OPTION,
    threads: {
      kind: 'value',
      placeholder: 'N',
      description: 'threads that serve (default: more than one while reads keep it busy)',
    },
    channel: {
      kind: 'value',
      placeholder: 'NAME',
      description: 'how to reach the kernel; kernel is preferred',
      choices: CHANNELS,
    },
    output: {
      kind: 'value',
      placeholder: 'FMT',
      description: 'print what was mounted as text or as one JSON document',
      choices: ['human', 'json'],
    },
    verbose: { kind: 'flag', short: 'v', description: 'tell the channel, the process and the log' },
  },
  run,
};

async function run(args: ParsedArguments, io: CommandIo): Promise<number> {
  const [imageArgument, directoryArgument] = args.operands;
  const shownDirectory = directoryArgument ?? defaultDirectory(imageArgument!);
  const access = accessOf(args);
  const writable = access.access !== 'ro';
  const options = parseFuseOptions(args.list('options'), nearestName, { writable });
  const channel = args.choice('channel', CHANNELS, 'auto');
  const output = outputOf(args);
  const partition = partitionOf(args);
  const threads = threadsOf(args, writable);
  const files = filesOf(args);
  const stats = args.flag('stats');
  if (stats && !args.flag('foreground')) {
    throw usageError(
      '--stats goes with --foreground; without it, read the file stats of the mount',
    );
  }
  // Before anything is made: there must be a place for records.
  stateDirectory();
  cleanStale();
  const prepared = prepareDirectory(shownDirectory, { nonempty: options.nonempty });
  const id = randomBytes(8).toString('hex');
  const request: MountRequest = {
    image: resolve(imageArgument!),
    ...access,
    ...formatOptions(args),
    ...(partition === undefined ? {} : { partition }),
    cacheBytes: cacheSize(args),
    ...(threads === undefined ? {} : { threads }),
    ...prepared,
    channel,
    options,
    id,
    ...(stats ? { stats: output } : {}),
    ...(files === undefined ? {} : filesRequest({ id, prepared, options, all: files.all })),
  };
  const tell = (summary: MountSummary): void => {
    const report = {
      summary,
      shownImage: imageArgument!,
      part: partOf(args.value('snapshot'), partition),
      shownDirectory,
      verbose: args.flag('verbose'),
    };
    io.stdout(output === 'json' ? describeMountJson(report) : describeMount(report));
    for (const warning of summary.warnings) io.stderr(`qcow2: ${summary.image}: ${warning}\n`);
  };
  try {
    if (args.flag('foreground')) await serveHere(request, tell);
    else tell(await launchMount(request));
  } catch (error) {
    if (request.madeDirectory) removeEmptyDirectory(request.directory);
    if (prepared.madeDirectory) removeEmptyDirectory(prepared.directory);
    throw error;
  }
  return 0;
}

/** Whether writes are accepted, and where they go. */
function accessOf(args: ParsedArguments): Pick<MountRequest, 'access' | 'overlay'> {
  const overlay = args.value('overlay');
  const given = [
    ...(args.flag('rw') ? ['--rw'] : []),
    ...(args.flag('temp') ? ['--temp'] : []),
    ...(overlay === undefined ? [] : ['--overlay']),
  ];
  const [way, another] = given;
  if (way === undefined) return { access: 'ro' };
  if (another !== undefined) throw usageError(`${way} and ${another} exclude each other`);
  if (args.value('snapshot') !== undefined) {
    throw usageError(`a snapshot is for reading only: not with ${way}`);
  }
  if (args.flag('force-share')) {
    throw usageError(
      `an image that is written, or under an overlay, must not change: not with ${way}`,
    );
  }
  if (overlay !== undefined) return { access: 'overlay', overlay: resolve(overlay) };
  return { access: args.flag('rw') ? 'rw' : 'temp' };
}

/** What is shown in place of the disk, in words. */
function partOf(snapshot: string | undefined, partition: number | undefined): string | undefined {
  const parts = [
    ...(partition === undefined ? [] : [`partition ${partition}`]),
    ...(snapshot === undefined ? [] : [`snapshot ${snapshot}`]),
  ];
  return parts.length === 0 ? undefined : parts.join(' of ');
}

/** Whether the files are asked for, and those of all partitions. */
function filesOf(args: ParsedArguments): { all: boolean } | undefined {
  const all = args.flag('all');
  if (!args.flag('fs')) {
    if (all) throw usageError('--all says of which partitions --fs mounts the files: give both');
    return undefined;
  }
  if (all && args.value('partition') !== undefined) {
    throw usageError('--all and --partition exclude each other');
  }
  checkFilesPossible();
  return { all };
}

type Output = 'human' | 'json';

function outputOf(args: ParsedArguments): Output {
  return args.choice('output', ['human', 'json'] as const, 'human');
}

function partitionOf(args: ParsedArguments): number | undefined {
  const text = args.value('partition');
  if (text === undefined) return undefined;
  const number = /^\d{1,6}$/.test(text) ? Number(text) : 0;
  if (number < 1) throw usageError(`--partition must be a number from 1, not '${text}'`);
  return number;
}

function threadsOf(args: ParsedArguments, writable: boolean): number | undefined {
  const text = args.value('threads');
  if (text === undefined) return undefined;
  const number = /^\d{1,3}$/.test(text) ? Number(text) : 0;
  if (number < 1 || number > MAX_SERVING_THREADS) {
    throw usageError(`--threads must be a number from 1 to ${MAX_SERVING_THREADS}, not '${text}'`);
  }
  if (!writable || number === 1) return number;
  throw usageError('--threads is for images that are only read: one thread writes');
}

function formatOptions(args: ParsedArguments): Partial<MountRequest> {
  const snapshot = args.value('snapshot');
  const { backingFormat, allowProtocolNames, forceShare } = referenceOptions(args);
  const request: Partial<MountRequest> = formatOption(args.value('format'));
  if (snapshot !== undefined) request.snapshot = snapshot;
  if (backingFormat !== undefined) request.backingFormat = backingFormat;
  if (allowProtocolNames === true) request.allowProtocolNames = true;
  if (forceShare === true) request.forceShare = true;
  return request;
}

/** Tells what the mount has counted so far, which it says itself. */
async function tellStats({ directory, stats }: MountRequest): Promise<void> {
  const file = stats === 'json' ? 'stats.json' : 'stats';
  try {
    const text = await readFile(join(directory, file), 'utf8');
    // One document a line.
    if (stats === 'json')
      process.stdout.write(`${JSON.stringify({ stats: JSON.parse(text) as unknown })}\n`);
    else process.stderr.write(text);
  } catch {
    // With --fs nobody gets there any more; through fuse-native there is no such file.
    process.stderr.write('qcow2: the statistics of this mount are told at its end\n');
  }
}

/** Serves the mount in this process until a signal, or somebody else, ends it. */
async function serveHere(
  request: MountRequest,
  tell: (summary: MountSummary) => void,
): Promise<void> {
  const { startMount } = await import('../../worker/fuse-mount.ts');
  if (request.stats !== undefined) process.on('SIGUSR1', () => void tellStats(request));
  let mayGoOn = true;
  let stop = (): void => {
    mayGoOn = false;
  };
  // The mount can be used before startMount returns: no signal may end the process from here on.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => stop());
  const mount = await startMount(request);
  stop = () => void mount.stop();
  if (mayGoOn) {
    mount.accept();
    tell(mount.summary);
  } else stop();
  await mount.ended;
}
