/** What `qcow2 mount` prints of a mount: as text for people, or as one JSON document. */

import type { Filesystem } from '../format/filesystem/index.ts';
import type { MountSummary, ShownDisk, ShownPartition } from '../worker/fuse-request.ts';
import { printable } from './report.ts';
import { shellWord } from './shell.ts';
import { formatSize } from './size.ts';

/** Snapshots and layers that are listed; the directory shows all. */
const MAX_LISTED = 10;

/** What is to be told. */
export interface MountReport {
  summary: MountSummary;
  /** The image as the user named it. */
  shownImage: string;
  /** What is shown in place of the disk, as in `partition 2`; undefined if nothing is. */
  part: string | undefined;
  /** The directory as the user would name it. */
  shownDirectory: string;
  verbose: boolean;
}

/** The summary as one JSON document, with the command that ends the mount. */
export function describeMountJson({ summary, shownDirectory }: MountReport): string {
  const { disk, partitions } = summary;
  const document = {
    ...summary,
    disk: withFilesystem(disk),
    partitions: partitions.map(withFilesystem),
    unmount: `qcow2 unmount ${shellWord(shownDirectory)}`,
  };
  return `${JSON.stringify(document, undefined, 4)}\n`;
}

/** What counts most of what was recognised, and the names of what else was. */
function withFilesystem<T extends ShownDisk>({ filesystems, ...rest }: T): object {
  const [first, ...others] = filesystems;
  return {
    ...rest,
    filesystem: first ?? null,
    ...(others.length === 0 ? {} : { otherSignatures: others.map(({ type }) => type) }),
  };
}

/** The lines for people: where what is, a table of the partitions, and what to type next. */
export function describeMount(report: MountReport): string {
  const { summary, shownDirectory, verbose } = report;
  const { image, directory, files } = summary;
  const subject = files === undefined ? `${image} is` : `the files of ${image} are`;
  const lines = [`${subject} mounted on ${directory}${describeAccess(summary)}`];
  lines.push(...(files === undefined ? imageLines(report) : filesLines(report)));
  if (verbose) {
    const reason = summary.fallbackReason === undefined ? '' : ` (${summary.fallbackReason})`;
    lines.push(`channel: ${summary.channel}${reason}`, `process: ${summary.pid}`);
    for (const one of files ?? []) lines.push(`driver: ${one.driver} on ${one.directory}`);
  }
  const next = nextCommand(report);
  if (next !== undefined) lines.push(`see its files with: ${next}`);
  lines.push(`unmount with: qcow2 unmount ${shellWord(shownDirectory)}`);
  return `${lines.map(printable).join('\n')}\n`;
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

const HEADINGS = ['Number', 'Size', 'Type', 'Label', 'Filesystem'];

function imageLines(report: MountReport): string[] {
  const { disk, partitions, snapshots, layers } = report.summary;
  const rows = [
    [...diskCells(report), disk.file],
    ...partitions.map((partition) => [...partitionCells(partition), partition.file]),
    ...snapshots
      .slice(0, MAX_LISTED)
      .map(({ directory, name }) => ['', '', 'snapshot', name, '', directory]),
    ...layers
      .slice(0, MAX_LISTED)
      .map(({ file, size }) => ['', formatSize(size), 'layer', '', '', file]),
  ];
  const lines = table([[...HEADINGS, 'File'], ...rows]);
  const hidden =
    Math.max(0, snapshots.length - MAX_LISTED) + Math.max(0, layers.length - MAX_LISTED);
  if (hidden > 0) lines.push(`  and ${hidden} more snapshots and layers`);
  return lines;
}

function filesLines(report: MountReport): string[] {
  const { disk, partitions, files = [] } = report.summary;
  const whereOf = ({ file }: ShownDisk): string =>
    files.find((one) => one.file === file)?.directory ?? '-';
  return table([
    [...HEADINGS, 'Directory'],
    ...(whereOf(disk) === '-' ? [] : [[...diskCells(report), whereOf(disk)]]),
    ...partitions.map((partition) => [...partitionCells(partition), whereOf(partition)]),
  ]);
}

function diskCells({ summary: { disk, format }, part }: MountReport): string[] {
  return ['', formatSize(disk.size), part ?? `disk (${format})`, '', filesystemOf(disk)];
}

function partitionCells(partition: ShownPartition): string[] {
  const { number, size, typeName, name } = partition;
  return [String(number), formatSize(size), typeName, name, filesystemOf(partition, name)];
}

/** Type and label, unless that is told already, and what else has its signature there. */
function filesystemOf({ filesystems }: ShownDisk, told = ''): string {
  return filesystems
    .map(({ type, label }) => (label === told || label === '' ? type : `${type} '${label}'`))
    .join(' or ');
}

/** Columns as wide as they have to be; those that are empty are left out. */
function table(rows: readonly (readonly string[])[]): string[] {
  const safe = rows.map((row) => row.map(printable));
  const used = safe[0]!.map((_, column) => safe.slice(1).some((row) => row[column] !== ''));
  const shown = safe.map((row) => row.filter((_, column) => used[column]));
  const widths = shown[0]!.map((_, column) => Math.max(...shown.map((row) => row[column]!.length)));
  return shown.map((row) =>
    `  ${row.map((cell, column) => align(cell, widths[column]!)).join('  ')}`.trimEnd(),
  );
}

/** Sizes stand under each other by their units. */
function align(cell: string, width: number): string {
  return /^[\d.]+ [KMGTPE]?i?B$/.test(cell) ? cell.padStart(width) : cell.padEnd(width);
}

/** How to go on to the files, if there are any; not where the image is locked by this mount. */
function nextCommand({ summary, shownImage, part }: MountReport): string | undefined {
  const { files, access, disk, partitions } = summary;
  if (files !== undefined || access !== 'ro' || part !== undefined) return undefined;
  const holding = partitions.filter(({ filesystems }) => holdsFiles(filesystems));
  if (holding.length === 0 && !holdsFiles(disk.filesystems)) return undefined;
  // Of several, the largest: it is seldom the one that is started from.
  const [largest] = holding.toSorted((a, b) => b.size - a.size);
  const choice = holding.length > 1 ? ` --partition ${largest!.number}` : '';
  return `qcow2 mount --fs${choice} ${shellWord(shownImage)} DIR`;
}

function holdsFiles(filesystems: readonly Filesystem[]): boolean {
  return filesystems[0]?.usage === 'filesystem';
}
