/** Kinds of images that QEMU makes, to be written to, and the files that they consist of. */

import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { PassDiscard } from '../../src/qcow2/allocator.ts';
import { resized } from './disk-model.ts';
import { run } from './qemu.ts';
import { stampedData } from './stamps.ts';

/** How an image is made. */
export interface ImageVariant {
  name: string;
  /** Bytes of the disk. */
  size: number;
  clusterSize: number;
  version: 2 | 3;
  refcountBits: number;
  extendedL2: boolean;
  lazyRefcounts: boolean;
  compression: 'zlib' | 'zstd';
  dataFile: 'none' | 'plain' | 'raw';
  backing: { format: 'qcow2' | 'raw'; size: number } | undefined;
  /** Bytes at the start of the disk that are written when it is made. */
  filled: number;
  /** A persistent dirty bitmap that is enabled, and one that is not. */
  hasBitmaps: boolean;
  preallocation: 'off' | 'metadata' | 'full';
  /** How it is opened: bytes for slices of tables; undefined for the default, which holds all. */
  cacheBytes: number | undefined;
  /** How it is opened: whether all freed clusters become holes, or none; undefined by default. */
  passesDiscards: boolean | undefined;
}

/** Names of the files in their directory; the image refers to the others by these. */
export const FILE_NAMES = {
  image: 'image.qcow2',
  data: 'image.data',
  backing: 'base.img',
} as const;

/** Which of the files of {@link FILE_NAMES}. */
export type FileRole = keyof typeof FILE_NAMES;

/** The bytes of an image's files, and what its backing file reads as. */
export interface VariantFiles {
  files: Partial<Record<FileRole, Buffer>>;
  backingContent: Buffer | undefined;
}

/** The sequence numbers of what a backing file holds, and of what an image holds at first. */
const BACKING_SEQUENCE = 0x6261_7365;
const FILL_SEQUENCE = 0x6669_6c6c;

/** A variant that differs from a plain one in what is given. */
export function imageVariant(
  name: string,
  differences: Partial<Omit<ImageVariant, 'name'>>,
): ImageVariant {
  return {
    name,
    size: 1024 * 1024,
    clusterSize: 65_536,
    version: 3,
    refcountBits: 16,
    extendedL2: false,
    lazyRefcounts: false,
    compression: 'zlib',
    dataFile: 'none',
    backing: undefined,
    filled: 0,
    hasBitmaps: false,
    preallocation: 'off',
    cacheBytes: undefined,
    passesDiscards: undefined,
    ...differences,
  };
}

/** How images of a variant are opened. */
export function openingOptions({ cacheBytes, passesDiscards }: ImageVariant): {
  metadataCacheBytes: number | undefined;
  passDiscard: PassDiscard | undefined;
} {
  const each = { request: passesDiscards, snapshot: passesDiscards, other: passesDiscards };
  return {
    metadataCacheBytes: cacheBytes,
    passDiscard: passesDiscards === undefined ? undefined : each,
  };
}

/** What can be done to images of a variant. */
export function variantTraits({ dataFile, refcountBits, version, hasBitmaps }: ImageVariant): {
  hasCompression: boolean;
  /** The most snapshots that refcounts can hold, and a test needs. */
  maxSnapshots: number;
  /** Bitmaps would not know what changes then. */
  canApplySnapshots: boolean;
  canResizeWithSnapshots: boolean;
} {
  return {
    hasCompression: dataFile === 'none',
    maxSnapshots: dataFile === 'none' ? Math.min(4, 2 ** refcountBits - 2) : 0,
    canApplySnapshots: !hasBitmaps,
    canResizeWithSnapshots: version === 3,
  };
}

/** What the disk of a new image reads as. */
export function initialContent(
  { size, filled }: ImageVariant,
  { backingContent }: VariantFiles,
): Buffer {
  const content = resized(backingContent ?? Buffer.alloc(0), size);
  contentOfFill(filled).copy(content);
  return content;
}

/** Has QEMU make an image and its other files in a directory, and reads them back. */
export function makeVariant(variant: ImageVariant, directory: string): VariantFiles {
  const { backing, dataFile } = variant;
  let backingContent: Buffer | undefined;
  if (backing !== undefined) {
    backingContent = contentOfBacking(backing.size);
    const path = join(directory, FILE_NAMES.backing);
    if (backing.format === 'raw') {
      writeFileSync(path, backingContent);
    } else {
      const raw = `${path}.raw`;
      writeFileSync(raw, backingContent);
      run('qemu-img', ['convert', '-O', 'qcow2', raw, path]);
      rmSync(raw);
    }
  }
  create(variant, directory);
  if (variant.filled > 0) fill(variant, directory);
  const read = (name: string): Buffer => readFileSync(join(directory, name));
  const files: VariantFiles['files'] = { image: read(FILE_NAMES.image) };
  if (dataFile !== 'none') files.data = read(FILE_NAMES.data);
  if (backing !== undefined) files.backing = read(FILE_NAMES.backing);
  return { files, backingContent };
}

function create(variant: ImageVariant, directory: string): void {
  const { version, dataFile, backing, size, clusterSize, hasBitmaps, preallocation } = variant;
  const options = [
    `cluster_size=${clusterSize}`,
    `compat=${version === 2 ? '0.10' : '1.1'}`,
    `preallocation=${preallocation}`,
  ];
  if (version === 3) {
    options.push(
      `refcount_bits=${variant.refcountBits}`,
      `lazy_refcounts=${variant.lazyRefcounts ? 'on' : 'off'}`,
      `extended_l2=${variant.extendedL2 ? 'on' : 'off'}`,
      `compression_type=${variant.compression}`,
    );
  }
  if (dataFile !== 'none') options.push(`data_file=${FILE_NAMES.data}`);
  if (dataFile === 'raw') options.push('data_file_raw=on');
  const chain = backing === undefined ? [] : ['-b', FILE_NAMES.backing, '-F', backing.format];
  const args = ['create', '-q', '-f', 'qcow2', ...chain, '-o', options.join()];
  run('qemu-img', [...args, FILE_NAMES.image, String(size)], { cwd: directory });
  if (!hasBitmaps) return;
  const granularity = ['-g', '4096'];
  for (const [name, flags] of [
    ['dirty', []],
    ['idle', ['--disable']],
  ] as const) {
    const bitmap = ['bitmap', '--add', ...flags, ...granularity, FILE_NAMES.image, name];
    run('qemu-img', bitmap, { cwd: directory });
  }
}

function fill({ filled }: ImageVariant, directory: string): void {
  const data = join(directory, 'fill.bin');
  writeFileSync(data, contentOfFill(filled));
  const input = `write -q -s fill.bin 0 ${filled}\nquit\n`;
  run('qemu-io', ['-f', 'qcow2', FILE_NAMES.image], { cwd: directory, input });
  rmSync(data);
}

function contentOfFill(filled: number): Buffer {
  return stampedData({ sequence: FILL_SEQUENCE, offset: 0, length: filled });
}

/** Stamped data with gaps of zeroes. */
function contentOfBacking(size: number): Buffer {
  const content = stampedData({ sequence: BACKING_SEQUENCE, offset: 0, length: size });
  const gap = Math.max(4096, Math.floor(size / 16 / 4096) * 4096);
  for (let at = 3 * gap; at < size; at += 5 * gap) content.fill(0, at, Math.min(at + gap, size));
  return content;
}
