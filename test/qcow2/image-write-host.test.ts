/** Images on filesystems that are full, read-only or not ours, and files that others cut short. */

import {
  appendFileSync,
  chmodSync,
  mkdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
} from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, it } from 'vitest';
import { openImage, Qcow2Error, Qcow2Image } from '../../src/index.ts';
import { describePeers, itPeers } from '../support/peers.ts';
import { qemuImg, qemuImgJson, qemuIo, run } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';

const directory = temporaryDirectoryPerTest();
const CLUSTER = 65_536;
const NOBODY = 65_534;

let path: string;

function open(): Qcow2Image {
  const image = openImage(path, { writable: true });
  if (!(image instanceof Qcow2Image)) throw new Error('it is not qcow2');
  return image;
}

function errorOf(action: () => unknown): Qcow2Error {
  try {
    action();
  } catch (error) {
    if (error instanceof Qcow2Error) return error;
    throw error;
  }
  throw new Error('nothing was refused');
}

/** What QEMU finds wrong, also while the image is open here. */
function findings(): { leaks: number; corruptions: number } {
  const { leaks = 0, corruptions = 0 } = qemuImgJson('check', '-U', path) as Record<string, number>;
  return { leaks, corruptions };
}

/** A piece of data that tells which one it is. */
function piece(index: number): Buffer {
  return Buffer.alloc(CLUSTER, (index % 250) + 1);
}

/** Writes pieces with one cluster between them until one is refused; returns its index. */
function writeUntilFull(image: Qcow2Image, first = 0): { index: number; error: Qcow2Error } {
  for (let index = first; index < 1000; index++) {
    try {
      image.write(piece(index), index * 2 * CLUSTER);
    } catch (error) {
      if (error instanceof Qcow2Error) return { index, error };
      throw error;
    }
  }
  throw new Error('the disk was never full');
}

function expectPieces(image: Qcow2Image, count: number): void {
  const target = Buffer.alloc(2 * CLUSTER);
  for (let index = 0; index < count; index++) {
    image.read(target, index * 2 * CLUSTER);
    const expected = Buffer.concat([piece(index), Buffer.alloc(CLUSTER)]);
    expect(target.equals(expected), `piece ${index}`).toBe(true);
  }
}

describePeers(['root', 'mount', 'qemu-img', 'qemu-io', 'koffi'], 'a filesystem of 4 MiB', () => {
  let folder: string;

  beforeEach(() => {
    folder = join(directory(), 'small');
    mkdirSync(folder);
    run('mount', ['-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', folder]);
    path = join(folder, 'disk.qcow2');
  });
  afterEach(() => {
    run('umount', [folder]);
  });

  it.each(['', 'lazy_refcounts=on', 'extended_l2=on', 'refcount_bits=64', 'compat=0.10'])(
    'is told when it is full, and the same image goes on when it is larger (%s)',
    (options) => {
      qemuImg(
        'create',
        '-q',
        '-f',
        'qcow2',
        ...(options === '' ? [] : ['-o', options]),
        path,
        '1G',
      );
      using image = open();
      const { index: full, error } = writeUntilFull(image);
      expect(full).toBeGreaterThan(50);
      expect(error.code).toBe('HOST');
      expect(error.message).toMatch(
        new RegExp(
          `^${path}: cannot write \\d+ bytes at offset \\d+: no space left on the device$`,
        ),
      );
      expect((error.cause as NodeJS.ErrnoException).code).toBe('ENOSPC');
      // Again and again, and whatever it is.
      expect(errorOf(() => image.write(piece(full), full * 2 * CLUSTER)).code).toBe('HOST');
      expect(errorOf(() => image.createSnapshot('s')).code).toBe('HOST');
      expectPieces(image, full);
      if (!image.header.isDirty) expect(findings().corruptions).toBe(0);
      // What needs no space can be done.
      image.write(Buffer.alloc(CLUSTER, 0xff), 0);
      image.write(piece(0), 0);

      run('mount', ['-o', 'remount,size=64m', folder]);
      image.write(piece(full), full * 2 * CLUSTER);
      image.createSnapshot('s');
      for (let index = full + 1; index < 100; index++)
        image.write(piece(index), index * 2 * CLUSTER);
      expectPieces(image, 100);
      image.close();
      expect(findings()).toEqual({ leaks: 0, corruptions: 0 });
      qemuIo(path, [`read -P 1 0 64k`, `read -P ${(full % 250) + 1} ${full * 2 * CLUSTER} 64k`]);
    },
  );

  it('can be made room on by discarding', () => {
    qemuImg('create', '-q', '-f', 'qcow2', path, '1G');
    using image = open();
    const { index: full } = writeUntilFull(image);
    image.discard(0, 20 * CLUSTER);
    image.flush();
    const more = writeUntilFull(image, full);
    expect(more.index).toBeGreaterThan(full + 5);
    image.close();
    expect(findings()).toEqual({ leaks: 0, corruptions: 0 });
  });

  it('leaves a valid image if it is full when the image is closed', () => {
    qemuImg('create', '-q', '-f', 'qcow2', '-o', 'cluster_size=512', path, '64M');
    const image = open();
    const filler = join(folder, 'filler');
    for (let index = 0; index < 500; index++) image.write(Buffer.alloc(512, 1), index * 40_000);
    try {
      for (;;) appendFileSync(filler, Buffer.alloc(4096));
    } catch {
      // Full.
    }
    const problem = closeError(image);
    expect(findings().corruptions).toBe(0);
    rmSync(filler);
    if (problem !== undefined) {
      expect(problem.code).toBe('HOST');
      image.close();
    }
    expect(findings()).toEqual({ leaks: 0, corruptions: 0 });
    qemuIo(path, ['read -P 1 19960000 512', 'read -P 0 19960512 512']);
  });

  it('cannot be written if it is read-only', () => {
    qemuImg('create', '-q', '-f', 'qcow2', path, '4M');
    run('mount', ['-o', 'remount,ro', folder]);
    const error = errorOf(open);
    expect(error.code).toBe('HOST');
    expect(error.message).toBe(
      `${path}: cannot open for writing: the filesystem is read-only; mount the filesystem ` +
        'read-write or copy the image elsewhere, or open it for reading',
    );
    using image = openImage(path);
    expect(image.readOnly).toBe(true);
  });
});

function closeError(image: Qcow2Image): Qcow2Error | undefined {
  try {
    image.close();
    return undefined;
  } catch (error) {
    if (error instanceof Qcow2Error) return error;
    throw error;
  }
}

describePeers(['qemu-img', 'koffi'], 'an image file', () => {
  beforeEach(() => {
    path = join(directory(), 'disk.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', path, '4M');
  });

  itPeers(['other-user'], 'that one may only read can be read, and not written', () => {
    chmodSync(directory(), 0o755);
    chmodSync(path, 0o444);
    process.seteuid!(NOBODY);
    try {
      const error = errorOf(open);
      expect([error.code, (error.cause as NodeJS.ErrnoException).code]).toEqual(['HOST', 'EACCES']);
      expect(error.message).toMatch(/: cannot open for writing: permission denied/);
      openImage(path).close();
    } finally {
      process.seteuid!(0);
    }
  });

  it('that another makes shorter is told of, and loses no more', () => {
    const image = open();
    image.write(Buffer.alloc(10 * CLUSTER, 1), 0);
    image.flush();
    const { size } = statSync(path);
    truncateSync(path, size - 5 * CLUSTER);
    const told = `${path}: the file became shorter while it was open`;
    const before = readFileSync(path);
    expect(errorOf(() => image.read(Buffer.alloc(CLUSTER), 9 * CLUSTER)).message).toContain(
      'the file became shorter while it was open',
    );
    const growing = errorOf(() => image.write(Buffer.alloc(CLUSTER, 2), 20 * CLUSTER));
    expect([growing.code, growing.message.startsWith(told)]).toEqual(['TRUNCATED', true]);
    expect(errorOf(() => image.createSnapshot('s')).code).toBe('TRUNCATED');
    expect(closeError(image)?.code).toBe('TRUNCATED');
    expect(closeError(image)?.code).toBe('TRUNCATED');
    expect(errorOf(open).code).toBe('LOCKED');
    image.abandon();
    image.abandon();
    image.close();
    expect(errorOf(() => image.write(Buffer.alloc(1), 0)).code).toBe('CLOSED');
    open().close();
    expect(readFileSync(path).equals(before)).toBe(true);
  });
});
