/** An image's description as text for people, as `qemu-img info` lays it out. */

import type { ImageInfo, SnapshotDocument } from './info.ts';

/** Writes a number of bytes, as in `1.5 GiB`. */
export type SizeFormat = (bytes: number) => string;

/** The lines of one image, each with its end. */
export function formatInfo(info: ImageInfo, size: SizeFormat): string {
  const lines = [
    `image: ${info.filename}`,
    `file format: ${info.format}`,
    `virtual size: ${size(info['virtual-size'])} (${info['virtual-size']} bytes)`,
    `disk size: ${size(info['actual-size'])}`,
  ];
  if (info.encrypted === true) lines.push('encrypted: yes');
  const clusterSize = info['cluster-size'];
  if (clusterSize !== undefined) lines.push(`cluster_size: ${clusterSize}`);
  if (info['dirty-flag']) lines.push('cleanly shut down: no');
  lines.push(...backingLines(info));
  if (info.snapshots !== undefined) {
    lines.push('Snapshot list:', ...snapshotLines(info.snapshots, size));
  }
  const specific = info['format-specific'];
  if (specific !== undefined) {
    lines.push('Format specific information:', ...treeLines(specific.data, 1));
  }
  return `${lines.join('\n')}\n`;
}

function backingLines(info: ImageInfo): string[] {
  const name = info['backing-filename'];
  const fullName = info['full-backing-filename'];
  if (name === undefined) return [];
  const actual = fullName === name ? '' : ` (actual path: ${fullName})`;
  const format = info['backing-filename-format'];
  const lines = [`backing file: ${name}${actual}`];
  if (format !== undefined) lines.push(`backing file format: ${format}`);
  return lines;
}

/** The table of snapshots, its head first. */
export function snapshotLines(snapshots: readonly SnapshotDocument[], size: SizeFormat): string[] {
  const rows = snapshots.map((snapshot) =>
    snapshotRow([
      snapshot.id,
      snapshot.name,
      size(snapshot['vm-state-size']),
      localTime(snapshot['date-sec']),
      clock(snapshot['vm-clock-sec'], snapshot['vm-clock-nsec']),
      snapshot.icount === undefined ? '' : String(snapshot.icount),
    ]),
  );
  return [snapshotRow(['ID', 'TAG', 'VM SIZE', 'DATE', 'VM CLOCK', 'ICOUNT']), ...rows];
}

function snapshotRow(cells: readonly [string, string, string, string, string, string]): string {
  const [id, tag, size, date, vmClock, icount] = cells;
  const left = `${padBytes(id, 9)} ${padBytes(tag, 16)} ${size.padStart(8)}`;
  return `${left}${date.padStart(20)}${vmClock.padStart(13)}${icount.padStart(11)}`;
}

/** As C's `%-16s`, which counts bytes. */
function padBytes(text: string, width: number): string {
  return text + ' '.repeat(Math.max(0, width - Buffer.byteLength(text)));
}

function localTime(seconds: number): string {
  const date = new Date(seconds * 1000);
  const day = [date.getFullYear(), two(date.getMonth() + 1), two(date.getDate())].join('-');
  return `${day} ${[date.getHours(), date.getMinutes(), date.getSeconds()].map(two).join(':')}`;
}

function clock(seconds: number, nanoseconds: number): string {
  const hours = Math.floor(seconds / 3600);
  const parts = [hours, Math.floor(seconds / 60) % 60, seconds % 60].map(two).join(':');
  return `${parts}.${String(Math.floor(nanoseconds / 1e6)).padStart(3, '0')}`;
}

function two(number: number): string {
  return String(number).padStart(2, '0');
}

/** Keys and values as an indented tree. */
function treeLines(value: object, depth: number): string[] {
  const isList = Array.isArray(value);
  return Object.entries(value).flatMap(([key, member]: [string, unknown]) => {
    const label = `${' '.repeat(4 * depth)}${isList ? `[${key}]` : key.replaceAll('-', ' ')}:`;
    if (typeof member !== 'object' || member === null) return [`${label} ${String(member)}`];
    return [label, ...treeLines(member, depth + 1)];
  });
}
