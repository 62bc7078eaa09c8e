/** `qcow2 mount`: shows an image as files in a directory. */

import { randomBytes } from 'node:crypto';
import { resolve } from 'node:path';
import { defaultDirectory, prepareDirectory } from '../../worker/fuse-directory.ts';
import { launchMount } from '../../worker/fuse-launch.ts';
import { cleanStale, removeEmptyDirectory } from '../../worker/fuse-mounts.ts';
import { parseFuseOptions } from '../../worker/fuse-options.ts';
import type { MountRequest, MountSummary } from '../../worker/fuse-request.ts';
import { nearestName, usageError } from '../command.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import { FORCE_SHARE_OPTION } from '../image-options.ts';
import { formatSize } from '../size.ts';

const FORMATS = ['qcow2', 'raw'] as const;
const CHANNELS = ['auto', 'kernel', 'fuse-native'] as const;
/** Snapshots and layers that are listed; the directory shows all. */
const MAX_LISTED = 10;

const DETAILS = `\
Returns when the mount can be used; a process in the background serves it until it is unmounted. \
Without DIR a directory is made in the current one, named after the image (disk.qcow2 on disk), and \
removed at the end; so is a DIR that is missing. DIR holds:

  disk.raw                       the whole disk
  partitions/1-root.raw, …       one file a partition
  snapshots/ID-NAME/disk.raw, …  the same for each internal snapshot
  layers/0-NAME.raw, …           the disk as each layer of the chain saw it
  info.json, map.json            what info and map print

With --snapshot or --partition, disk.raw is what they name; its partitions, where it has any, are \
shown too, but no snapshots and layers.

Nothing is written to the image unless --rw is given. With it, or with --temp or --overlay, the \
disk and its partitions are files that accept writes, of a size that stays as it is. What was \
written is on the disk after fsync(2), and after the unmount, which waits for it; a crash loses no \
more than it would of a real disk. Snapshots and layers are for reading.

Mount options (-o): allow_other, nonempty, uid=N, gid=N, mode=OCTAL, umask=OCTAL, fsname=NAME, \
subtype=NAME, noexec, noatime, nodiratime, relatime, strictatime; direct_io reads past the kernel's \
cache, which is quicker for whole images read once and slower for small reads.

Records and logs of mounts are kept in /run/qcow2, $XDG_RUNTIME_DIR/qcow2 or /tmp/qcow2-UID; \
QCOW2_STATE_DIR names another place.`;

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
    foreground: {
      kind: 'flag',
      description: 'stay, and unmount on Ctrl-C, SIGTERM and SIGHUP',
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
  cleanStale();
  const prepared = prepareDirectory(shownDirectory, { nonempty: options.nonempty });
  const request: MountRequest = {
    image: resolve(imageArgument!),
    ...access,
    ...formatOptions(args),
    ...(partition === undefined ? {} : { partition }),
    ...prepared,
    channel,
    options,
    id: randomBytes(8).toString('hex'),
  };
  const tell = (summary: MountSummary): void => {
    const report = { summary, shownDirectory, verbose: args.flag('verbose'), output };
    io.stdout(output === 'json' ? describeJson(report) : describe(report));
    for (const warning of summary.warnings) io.stderr(`qcow2: ${summary.image}: ${warning}\n`);
  };
  try {
    if (args.flag('foreground')) await serveHere(request, tell);
    else tell(await launchMount(request));
  } catch (error) {
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

function formatOptions(args: ParsedArguments): Partial<MountRequest> {
  const snapshot = args.value('snapshot');
  const request: Partial<MountRequest> = {};
  if (snapshot !== undefined) request.snapshot = snapshot;
  if (args.value('format') !== undefined) request.format = args.choice('format', FORMATS, 'raw');
  if (args.value('backing-format') !== undefined) {
    request.backingFormat = args.choice('backing-format', FORMATS, 'raw');
  }
  if (args.flag('allow-protocol-names')) request.allowProtocolNames = true;
  if (args.flag('force-share')) request.forceShare = true;
  return request;
}

/** Serves the mount in this process until a signal, or somebody else, ends it. */
async function serveHere(
  request: MountRequest,
  tell: (summary: MountSummary) => void,
): Promise<void> {
  const { startMount } = await import('../../worker/fuse-mount.ts');
  let mayGoOn = true;
  let stop = (): void => {
    mayGoOn = false;
  };
  // The mount can be used before startMount returns: no signal may end the process from here on.
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => stop());
  const mount = await startMount(request);
  stop = () => void mount.stop();
  if (mayGoOn) tell(mount.summary);
  else stop();
  await mount.ended;
}

interface Report {
  summary: MountSummary;
  /** The directory as the user would name it. */
  shownDirectory: string;
  verbose: boolean;
}

function describeJson({ summary, shownDirectory }: Report): string {
  const unmount = unmountCommand(shownDirectory);
  return `${JSON.stringify({ ...summary, unmount }, undefined, 4)}\n`;
}

function describe({ summary, shownDirectory, verbose }: Report): string {
  const { image, disk, partitions, snapshots, layers } = summary;
  const way = printable(describeAccess(summary));
  const lines = [`${printable(image)} is mounted on ${printable(summary.directory)}${way}`];
  const rows = [
    [disk.file, formatSize(disk.size), summary.format],
    ...partitions.map(({ file, size, typeName, name }) => [
      file,
      formatSize(size),
      name === '' ? typeName : `${typeName}, ${name}`,
    ]),
    ...snapshots.slice(0, MAX_LISTED).map(({ directory, name }) => [directory, '', name]),
    ...layers.slice(0, MAX_LISTED).map(({ file, size }) => [file, formatSize(size), 'layer']),
  ];
  lines.push(...table(rows));
  const hidden =
    Math.max(0, snapshots.length - MAX_LISTED) + Math.max(0, layers.length - MAX_LISTED);
  if (hidden > 0) lines.push(`  and ${hidden} more snapshots and layers`);
  if (verbose) {
    const reason = summary.fallbackReason === undefined ? '' : ` (${summary.fallbackReason})`;
    lines.push(`channel: ${summary.channel}${reason}`, `process: ${summary.pid}`);
  }
  lines.push(`unmount with: ${unmountCommand(shownDirectory)}`);
  return `${lines.join('\n')}\n`;
}

function describeAccess({ access, overlay }: MountSummary): string {
  switch (access) {
    case 'ro':
      return '';
    case 'rw':
      return ', for writing too';
    case 'temp':
      return '; what is written is forgotten at the end';
    case 'overlay':
      return `; what is written goes to ${overlay}`;
  }
}

function table(rows: readonly (readonly string[])[]): string[] {
  const safe = rows.map((row) => row.map(printable));
  const widths = [0, 1].map((column) => Math.max(...safe.map((row) => row[column]!.length)));
  return safe.map(([file, size, text]) =>
    `  ${file!.padEnd(widths[0]!)}  ${size!.padStart(widths[1]!)}  ${text!}`.trimEnd(),
  );
}

/** Names come from the image: control characters must not reach the terminal. */
function printable(text: string): string {
  return text.replace(/\p{Cc}|\p{Cf}/gu, '?');
}

function unmountCommand(directory: string): string {
  const isPlain = /^[\w./+:@%-]+$/.test(directory) && !directory.startsWith('-');
  return `qcow2 unmount ${isPlain ? directory : `'${directory.replaceAll("'", `'\\''`)}'`}`;
}
