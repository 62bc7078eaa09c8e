/** Kinds of images that QEMU makes, to be written to, and the files that they consist of. */

import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
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
  /** A persistent dirty bitmap that is enabled, and one that is not. */
  hasBitmaps: boolean;
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

/** The sequence number of what a backing file holds. */
const BACKING_SEQUENCE = 0x6261_7365;

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
    hasBitmaps: false,
    ...differences,
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
export function initialContent({ size }: ImageVariant, { backingContent }: VariantFiles): Buffer {
  return resized(backingContent ?? Buffer.alloc(0), size);
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
  const read = (name: string): Buffer => readFileSync(join(directory, name));
  const files: VariantFiles['files'] = { image: read(FILE_NAMES.image) };
  if (dataFile !== 'none') files.data = read(FILE_NAMES.data);
  if (backing !== undefined) files.backing = read(FILE_NAMES.backing);
  return { files, backingContent };
}

function create(variant: ImageVariant, directory: string): void {
  const { version, dataFile, backing, size, clusterSize, hasBitmaps } = variant;
  const options = [`cluster_size=${clusterSize}`, `compat=${version === 2 ? '0.10' : '1.1'}`];
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

/** Stamped data with gaps of zeroes. */
function contentOfBacking(size: number): Buffer {
  const content = stampedData({ sequence: BACKING_SEQUENCE, offset: 0, length: size });
  const gap = Math.max(4096, Math.floor(size / 16 / 4096) * 4096);
  for (let at = 3 * gap; at < size; at += 5 * gap) content.fill(0, at, Math.min(at + gap, size));
  return content;
}
