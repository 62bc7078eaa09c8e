/** What was not written because the host refused is written when it is asked to again. */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { GrowableMemoryDevice } from '../../src/device/memory.ts';
import { hostError } from '../../src/errors.ts';
import { Qcow2Image, readHeader } from '../../src/qcow2/image.ts';
import { qemuImg } from '../support/qemu.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';

const directory = sharedTemporaryDirectory();
const path = join(directory, 'image.qcow2');

/** A file of which one flush fails. */
class FlushFault extends GrowableMemoryDevice {
  flushes = 0;
  failing = -1;

  override flush(): void {
    if (this.flushes++ !== this.failing) return;
    throw hostError('cannot flush', 'memory', Object.assign(new Error(), { code: 'EIO' }));
  }
}

function openFault(bytes: Uint8Array): { file: FlushFault; image: Qcow2Image } {
  const file = new FlushFault(bytes);
  const header = readHeader(file);
  return { file, image: new Qcow2Image({ path: 'memory', file, header, writable: true }) };
}

/** What `qemu-img` finds wrong with an image, and the content of its disk. */
function judge(file: FlushFault): Buffer {
  writeFileSync(path, file.bytes);
  expect(qemuImg('check', '-f', 'qcow2', path)).toContain('No errors');
  qemuImg('convert', '-f', 'qcow2', '-O', 'raw', path, `${path}.raw`);
  return readFileSync(`${path}.raw`);
}

function create(size: string, ...options: string[]): Uint8Array {
  qemuImg('create', '-q', '-f', 'qcow2', ...options, path, size);
  return readFileSync(path);
}

/** Does something, though a flush may fail in it. */
function attempt(action: () => void): void {
  try {
    action();
  } catch (error) {
    expect(error).toMatchObject({ code: 'HOST' });
  }
}

it('what changes between a failed flush and the next is not taken for written', () => {
  const empty = create('1M', '-o', 'cluster_size=4k');
  for (let failing = 0; failing < 12; failing++) {
    const { file, image } = openFault(empty);
    const disk = Buffer.alloc(1024 * 1024);
    file.failing = failing;
    for (let round = 0; round < 6; round++) {
      for (let at = round * 4096; at < disk.length; at += 6 * 16 * 4096) {
        disk.fill(round + 1, at, at + 4096);
        attempt(() => image.write(disk.subarray(at, at + 4096), at));
      }
      attempt(() => image.flush());
    }
    image.close();
    expect(judge(file).equals(disk), `flush ${failing}`).toBe(true);
  }
});

it('a refcount table that moved is not given up when the flush after that fails', () => {
  const empty = create('4M', '-o', 'cluster_size=512,refcount_bits=64');
  const disk = Buffer.alloc(3 * 1024 * 1024, 'refcounts of 64 bits');
  const { file, image } = openFault(empty);
  image.write(disk.subarray(0, 1024 * 1024), 0);
  image.flush();
  const { refcountTableOffset } = image.header;
  const before = file.flushes;
  image.write(disk.subarray(1024 * 1024), 1024 * 1024);
  image.flush();
  expect(image.header.refcountTableOffset).not.toBe(refcountTableOffset);
  const flushes = file.flushes - before;
  for (let index = 0; index < flushes; index++) {
    const again = openFault(empty);
    again.image.write(disk.subarray(0, 1024 * 1024), 0);
    again.image.flush();
    again.file.failing = again.file.flushes + index;
    attempt(() => again.image.write(disk.subarray(1024 * 1024), 1024 * 1024));
    attempt(() => again.image.flush());
    again.image.write(disk.subarray(0, 64 * 1024), 3 * 1024 * 1024);
    again.image.write(disk.subarray(1024 * 1024), 1024 * 1024);
    again.image.close();
    const content = judge(again.file);
    expect(content.subarray(0, disk.length).equals(disk), `flush ${index}`).toBe(true);
  }
});

it('a snapshot whose last flush failed is listed, and so not made twice', () => {
  const empty = create('1M');
  const { file, image } = openFault(empty);
  image.write(Buffer.alloc(65536, 1), 0);
  expect(image.snapshots).toHaveLength(0);
  image.flush();
  // The one after the header says so.
  file.failing = file.flushes + 2;
  attempt(() => image.createSnapshot('first'));
  expect(image.header.snapshotCount).toBe(image.snapshots.length);
  image.close();
  judge(file);
});
