/** Images with bitmaps, and what is asked of them, for the tests of changing bitmaps. */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import type { HostFile } from '../../src/device/block-device.ts';
import { GrowableMemoryDevice } from '../../src/device/memory.ts';
import { checkImage } from '../../src/operations/check.ts';
import type { DirtyRange } from '../../src/qcow2/bitmaps.ts';
import { Qcow2Image, readHeader } from '../../src/qcow2/image.ts';
import { qemuImg, qemuIo, tryRun } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';

export const KiB = 1024;
/** Bytes of the disk that {@link makeImage} makes. */
export const DISK_BYTES = 640 * KiB;

/** An image with a bitmap of small and one of large grains, and one that records nothing. */
export function makeImage(layout: string, size = DISK_BYTES): Uint8Array {
  const path = join(temporaryDirectory(), 'image.qcow2');
  qemuImg('create', '-q', '-f', 'qcow2', '-o', layout, path, `${size}`);
  qemuImg('bitmap', '--add', '-g', '512', path, 'fine');
  qemuImg('bitmap', '--add', '-g', '4k', path, 'coarse');
  qemuImg('bitmap', '--add', '-g', '4k', '--disable', path, 'still');
  qemuIo(path, ['write -q -P 1 10k 70k', 'write -q -P 2 600k 1k']);
  return readFileSync(path);
}

/** An image in memory, open for writing. */
export function open(file: HostFile, writable = true): Qcow2Image {
  return new Qcow2Image({ path: 'image', file, header: readHeader(file), writable });
}

/** An image that is only read. */
export function openBytes(bytes: Uint8Array): Qcow2Image {
  return open(new GrowableMemoryDevice(bytes), false);
}

/** What an image says of a bitmap. */
export interface BitmapState {
  isEnabled: boolean;
  granularity: number;
  dirty: DirtyRange[] | 'lost';
}

/** The bitmaps by their names. */
export function stateOf(image: Qcow2Image): Record<string, BitmapState> {
  const states = image.bitmaps.map(({ name, granularity, isEnabled, isInconsistent }) => {
    const dirty = isInconsistent ? ('lost' as const) : [...image.dirtyRanges(name)];
    return [name, { isEnabled, granularity, dirty }] as const;
  });
  return Object.fromEntries(states);
}

/** All bytes of the disk. */
export function contentOf(image: Qcow2Image): Buffer {
  const content = Buffer.alloc(image.size);
  image.read(content, 0);
  return content;
}

/** A byte for each sector of the disk; 1 for those in the ranges. */
export function sectorsOf(ranges: Iterable<DirtyRange>, diskBytes = DISK_BYTES): Uint8Array {
  const sectors = new Uint8Array(diskBytes / 512);
  for (const { offset, length } of ranges) sectors.fill(1, offset / 512, (offset + length) / 512);
  return sectors;
}

/**
 * Nothing may be wrong but for clusters that are counted and not used. Of an image that says so, the
 * counts may be anything.
 */
export function expectValid(image: Qcow2Image): void {
  if (image.header.isDirty) return;
  const { corruptions = 0, 'check-errors': errors } = checkImage(image);
  expect({ corruptions, errors }).toEqual({ corruptions: 0, errors: 0 });
}

/** Expects qemu-img to find nothing wrong, not even a leak. */
export function expectClean(bytes: Uint8Array): void {
  const path = join(temporaryDirectory(), 'closed.qcow2');
  writeFileSync(path, bytes);
  const { exitCode, stdout, stderr } = tryRun('qemu-img', ['check', '-f', 'qcow2', path]);
  expect(exitCode, stdout + stderr).toBe(0);
}
