/** Small images with metadata of every kind, and where that metadata is. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { qemuImg, qemuIo, run } from '../support/qemu.ts';

/** Metadata of one kind: words of 8 bytes that can be damaged. */
export interface Region {
  kind: string;
  /** Host offset in bytes. */
  offset: number;
  /** Bytes. */
  length: number;
}

/** An image to be damaged. */
export interface CheckSubject {
  name: string;
  bytes: Buffer;
  clusterSize: number;
  regions: Region[];
}

const KINDS: readonly (readonly [name: string, options: string])[] = [
  ['plain', 'cluster_size=4k'],
  ['small clusters', 'cluster_size=512'],
  ['default', 'cluster_size=64k'],
  ['version 2', 'compat=0.10,cluster_size=4k'],
  ...[1, 2, 4, 8, 32, 64].map(
    (bits) => [`refcounts of ${bits} bits`, `refcount_bits=${bits},cluster_size=4k`] as const,
  ),
  ['extended L2', 'extended_l2=on,cluster_size=16k'],
  ['zstd', 'compression_type=zstd,cluster_size=4k'],
  ['external data', 'cluster_size=4k,data_file'],
  ['external data with extended L2', 'cluster_size=16k,data_file,extended_l2=on'],
  ['lazy refcounts', 'lazy_refcounts=on,cluster_size=4k'],
  ['unsaved bitmaps', 'cluster_size=4k'],
];

const hasBitmapsOf = (options: string): boolean => !options.includes('0.10');
const hasSnapshotsOf = (options: string): boolean => !/data_file|refcount_bits=1,/.test(options);

/** What images hold besides their disk. */
export type Extras = 'snapshots' | 'bitmaps';

/**
 * Makes all images in a directory, with the extras that their kind can have.
 * @param extras those that are wanted; QEMU's repair loses the snapshots of images with bitmaps
 */
export function makeCheckSubjects(
  directory: string,
  extras: readonly Extras[] = ['snapshots', 'bitmaps'],
): CheckSubject[] {
  return KINDS.map(([name, options]) => makeSubject(directory, name, { options, extras }));
}

function makeSubject(
  directory: string,
  name: string,
  { options, extras }: { options: string; extras: readonly Extras[] },
): CheckSubject {
  const path = join(directory, `${name.replaceAll(' ', '-')}.qcow2`);
  const target = options.replace('data_file', `data_file=${path}.data`);
  qemuImg('create', '-q', '-f', 'qcow2', '-o', target, path, '3M');
  qemuIo(path, ['write -q -P 1 0 60k', 'write -q -z 200k 70k', 'write -q -P 2 2M 20k']);
  // Narrow counts would overflow where compressed clusters share a host cluster.
  if (!/data_file|refcount_bits=[124],/.test(options)) {
    qemuIo(path, ['write -q -c -P 3 1M 64k', 'write -q -c -P 4 1152k 64k']);
  }
  if (extras.includes('bitmaps') && hasBitmapsOf(options)) {
    qemuImg('bitmap', '--add', '-g', '512', path, 'fine');
    qemuImg('bitmap', '--add', path, 'coarse');
    qemuIo(path, ['write -q -P 6 2560k 8k']);
  }
  if (extras.includes('snapshots') && hasSnapshotsOf(options)) {
    qemuImg('snapshot', '-c', 'first', path);
    qemuIo(path, ['write -q -P 5 16k 8k']);
    qemuImg('snapshot', '-c', 'second', path);
    qemuIo(path, ['write -q -P 7 32k 8k', 'discard -q 2M 8k']);
  }
  run('qemu-img', ['check', '-q', path]);
  const bytes = readFileSync(path);
  if (name.includes('unsaved')) markBitmapsInUse(bytes);
  return { name, bytes, clusterSize: 2 ** bytes.readUInt32BE(20), regions: regionsOf(bytes) };
}

const OFFSET = 0x00ff_ffff_ffff_fe00n;

function regionsOf(bytes: Buffer): Region[] {
  const clusterSize = 2 ** bytes.readUInt32BE(20);
  const u64 = (at: number): number => Number(bytes.readBigUInt64BE(at));
  const regions: Region[] = [{ kind: 'header', offset: 24, length: 80 }];
  const pointers = (offset: number, entries: number): number[] =>
    Array.from({ length: entries }, (_, index) =>
      Number(bytes.readBigUInt64BE(offset + 8 * index) & OFFSET),
    ).filter((pointer) => pointer !== 0);
  const addTables = (offset: number, entries: number, isActive: boolean): void => {
    const kind = isActive ? 'active' : 'snapshot';
    regions.push({ kind: `${kind} L1`, offset, length: 8 * entries });
    for (const l2 of pointers(offset, entries)) {
      regions.push({ kind: `${kind} L2`, offset: l2, length: clusterSize });
    }
  };
  addTables(u64(40), bytes.readUInt32BE(36), true);
  const refcountTable = u64(48);
  const tableBytes = bytes.readUInt32BE(56) * clusterSize;
  regions.push({ kind: 'refcount table', offset: refcountTable, length: tableBytes });
  for (const block of pointers(refcountTable, tableBytes / 8)) {
    regions.push({ kind: 'refcount block', offset: block, length: clusterSize });
  }
  let at = u64(64);
  for (let index = 0; index < bytes.readUInt32BE(60); index++) {
    const texts = bytes.readUInt16BE(at + 12) + bytes.readUInt16BE(at + 14);
    const length = 40 + bytes.readUInt32BE(at + 36) + texts;
    regions.push({ kind: 'snapshot table', offset: at, length: length & ~7 });
    addTables(u64(at), bytes.readUInt32BE(at + 8), false);
    at += Math.ceil(length / 8) * 8;
  }
  regions.push(...bitmapRegions(bytes, clusterSize));
  return regions;
}

/** Sets the flag of bitmaps that were not saved: those are not loaded when the image is opened. */
function markBitmapsInUse(bytes: Buffer): void {
  for (const { kind, offset, length } of regionsOf(bytes)) {
    if (kind !== 'bitmap directory') continue;
    for (const entry of bitmapEntries(bytes, offset, length)) bytes[entry + 15]! |= 1;
  }
}

/** Host offsets of the entries of a bitmap directory. */
function bitmapEntries(bytes: Buffer, directory: number, length: number): number[] {
  const entries: number[] = [];
  for (let at = directory; at < directory + length;) {
    entries.push(at);
    at += Math.ceil((24 + bytes.readUInt16BE(at + 18) + bytes.readUInt32BE(at + 20)) / 8) * 8;
  }
  return entries;
}

function bitmapRegions(bytes: Buffer, clusterSize: number): Region[] {
  const extension = bytes.subarray(0, clusterSize).indexOf('23852875', 0, 'hex');
  if (bytes.readUInt32BE(4) < 3 || extension < 0) return [];
  const length = Number(bytes.readBigUInt64BE(extension + 16));
  const directory = Number(bytes.readBigUInt64BE(extension + 24));
  const regions: Region[] = [
    { kind: 'bitmap extension', offset: extension + 8, length: 24 },
    { kind: 'bitmap directory', offset: directory, length },
  ];
  for (const at of bitmapEntries(bytes, directory, length)) {
    const tableLength = 8 * bytes.readUInt32BE(at + 8);
    const offset = Number(bytes.readBigUInt64BE(at));
    regions.push({ kind: 'bitmap table', offset, length: tableLength });
  }
  return regions;
}
