/** What the library promises of an image that is open for writing. */

import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { beforeEach, describe, expect, it } from 'vitest';
import { openImage, Qcow2Error, Qcow2Image } from '../../src/index.ts';
import type { ErrorCode, OpenImageOptions } from '../../src/index.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuImgJson, qemuIo, run, tryRun } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';

const directory = temporaryDirectoryPerTest();
const MiB = 1024 * 1024;
const CLUSTER = 65_536;
const LIBRARY = pathToFileURL(join(import.meta.dirname, '../../dist/index.js')).href;

let path: string;

function create(options: string, size = '4M'): void {
  qemuImg('create', '-q', '-f', 'qcow2', ...(options === '' ? [] : ['-o', options]), path, size);
}

function open(options: OpenImageOptions = { writable: true }): Qcow2Image {
  const image = openImage(path, options);
  if (!(image instanceof Qcow2Image)) throw new Error('it is not qcow2');
  return image;
}

/** The code of the error that an action throws. */
function codeOf(action: () => unknown): ErrorCode | undefined {
  try {
    action();
    return undefined;
  } catch (error) {
    if (error instanceof Qcow2Error) return error.code;
    throw error;
  }
}

/** Has QEMU check the image, also while it is open here. */
function checkIsClean(): void {
  const { leaks = 0, corruptions = 0 } = qemuImgJson('check', '-U', path) as Record<string, number>;
  expect({ leaks, corruptions }).toEqual({ leaks: 0, corruptions: 0 });
}

beforeEach(() => {
  path = join(directory(), 'disk.qcow2');
});

describePeers(['qemu-img', 'qemu-io', 'koffi'], 'an image open for writing', () => {
  it('refuses everything that changes it if it was opened for reading', () => {
    create('');
    using image = open({});
    const source = Buffer.alloc(512);
    expect(image.readOnly).toBe(true);
    for (const change of [
      () => image.write(source, 0),
      () => image.writeZeroes(0, 512),
      () => image.discard(0, 512),
      () => image.writeCompressed(source, 0),
      () => image.resize(8 * MiB),
      () => image.createSnapshot('s'),
      () => image.applySnapshot('s'),
      () => image.deleteSnapshot('s'),
      () => image.makeEmpty(),
    ]) {
      expect(codeOf(change)).toBe('READ_ONLY');
    }
    image.flush();
  });

  it('refuses what cannot be, and stays byte for byte as it was', () => {
    create('');
    qemuIo(path, ['write -P 1 0 1M']);
    qemuImg('snapshot', '-c', 'one', path);
    const before = readFileSync(path);
    using image = open();
    const source = Buffer.alloc(CLUSTER);
    const refused: [ErrorCode, () => unknown][] = [
      ['OUT_OF_RANGE', () => image.write(source, 4 * MiB - 1)],
      ['OUT_OF_RANGE', () => image.write(source, -1)],
      ['OUT_OF_RANGE', () => image.write(source, 0.5)],
      ['OUT_OF_RANGE', () => image.write(source, Number.NaN)],
      ['OUT_OF_RANGE', () => image.writeZeroes(0, 4 * MiB + 1)],
      ['OUT_OF_RANGE', () => image.writeZeroes(4096, -1)],
      ['OUT_OF_RANGE', () => image.discard(4 * MiB, 512)],
      ['OUT_OF_RANGE', () => image.writeCompressed(source.subarray(512), 0)],
      ['OUT_OF_RANGE', () => image.writeCompressed(source, 512)],
      ['INVALID_OPTION', () => image.resize(MiB)],
      ['INVALID_OPTION', () => image.resize(5 * MiB + 1)],
      ['INVALID_OPTION', () => image.resize(Number.NaN, { shrink: true })],
      ['INVALID_OPTION', () => image.resize(-512, { shrink: true })],
      ['TOO_LARGE', () => image.resize(2 ** 53 - 512)],
      ['INVALID_OPTION', () => image.createSnapshot('')],
      ['INVALID_OPTION', () => image.createSnapshot('x'.repeat(256))],
      ['NOT_FOUND', () => image.applySnapshot('none')],
      ['NOT_FOUND', () => image.deleteSnapshot('none')],
    ];
    expect(refused.map(([, action]) => codeOf(action))).toEqual(refused.map(([code]) => code));
    image.close();
    expect(readFileSync(path).equals(before)).toBe(true);
  });

  it.each([
    ['', 'an image of version 3'],
    ['compat=0.10', 'an image of version 2'],
    ['lazy_refcounts=on', 'lazy refcounts'],
    ['extended_l2=on,cluster_size=16k', 'subclusters'],
  ])('stays byte for byte as it was if nothing is changed (%s)', (options) => {
    create(options);
    qemuIo(path, ['write -P 1 100k 1M']);
    if (options !== 'compat=0.10') qemuImg('bitmap', '--add', path, 'b');
    const before = readFileSync(path);
    {
      using image = open();
      image.read(Buffer.alloc(MiB), 0);
      image.write(Buffer.alloc(0), 100);
      image.writeZeroes(100, 0);
      image.discard(4 * MiB, 0);
      image.flush();
      expect(image.snapshots).toEqual([]);
      expect([...image.extents(0, image.size)].length).toBeGreaterThan(2);
    }
    expect(readFileSync(path).equals(before)).toBe(true);
  });

  it('has all that was written in the file once `using` is over', () => {
    create('');
    {
      using image = open();
      image.write(Buffer.alloc(100_000, 1), 50_000);
      image.writeZeroes(60_000, 10_000);
      image.writeCompressed(Buffer.alloc(CLUSTER, 2), MiB);
    }
    checkIsClean();
    qemuIo(path, [
      'read -P 0 0 50000',
      'read -P 1 50000 10000',
      'read -P 0 60000 10000',
      'read -P 1 70000 80000',
      'read -P 2 1M 64k',
    ]);
  });

  it('cannot be used after it was closed, which can be done again', () => {
    create('');
    const image = open();
    image.write(Buffer.alloc(1), 0);
    image.close();
    image.close();
    expect(codeOf(() => image.write(Buffer.alloc(1), 0))).toBe('CLOSED');
    expect(codeOf(() => image.read(Buffer.alloc(1), 0))).toBe('CLOSED');
    checkIsClean();
  });

  it('is refused to a second writer, who is told of the first', () => {
    create('');
    using image = open();
    image.write(Buffer.alloc(1), 0);
    expect(() => open()).toThrow(
      expect.objectContaining({
        code: 'LOCKED',
        message: expect.stringMatching(
          /: it is in use: this process itself writes to it/,
        ) as string,
      }),
    );
    expect(() => qemuIo(path, ['write 0 64k'])).toThrow(/Failed to get "write" lock/);
    image.write(Buffer.alloc(1, 5), 1);
    image.close();
    qemuIo(path, ['read -P 5 1 1', 'write -P 6 0 64k']);
  });
});

describePeers(['qemu-img', 'qemu-io', 'koffi'], 'snapshots that cannot be made', () => {
  it('are refused with refcounts of one bit, and leave the file as it was', () => {
    create('refcount_bits=1');
    {
      using image = open();
      image.write(Buffer.alloc(200_000, 1), 0);
      // Not even two compressed clusters can share a cluster.
      image.writeCompressed(Buffer.alloc(2 * CLUSTER, 2), MiB);
    }
    checkIsClean();
    const before = readFileSync(path);
    {
      using image = open();
      expect(codeOf(() => image.createSnapshot('s'))).toBe('UNSUPPORTED');
      expect(image.snapshots).toEqual([]);
    }
    expect(readFileSync(path).equals(before)).toBe(true);
    qemuIo(path, ['read -P 1 0 200000', 'read -P 2 1M 128k']);
  });

  it('are refused when refcounts of two bits are used up, and the image goes on', () => {
    create('refcount_bits=2');
    using image = open();
    image.write(Buffer.alloc(CLUSTER, 1), 0);
    image.createSnapshot('one');
    image.createSnapshot('two');
    image.flush();
    const header = readFileSync(path).subarray(0, CLUSTER);
    expect(codeOf(() => image.createSnapshot('three'))).toBe('UNSUPPORTED');
    image.flush();
    expect(readFileSync(path).subarray(0, CLUSTER).equals(header)).toBe(true);
    expect(image.snapshots.map(({ name }) => name)).toEqual(['one', 'two']);
    checkIsClean();
    image.write(Buffer.alloc(CLUSTER, 2), 0);
    image.createSnapshot('three');
    expect(image.snapshots.map(({ name }) => name)).toEqual(['one', 'two', 'three']);
    image.close();
    checkIsClean();
  });

  it('are refused for an image with an external data file', () => {
    create(`data_file=${join(directory(), 'disk.data')}`);
    using image = open();
    image.write(Buffer.alloc(CLUSTER, 1), 0);
    image.flush();
    const before = readFileSync(path);
    expect(() => image.createSnapshot('s')).toThrow(
      expect.objectContaining({
        code: 'UNSUPPORTED',
        message:
          `${path}: an image with an external data file cannot have snapshots; ` +
          'make an overlay instead: qemu-img create -b',
      }),
    );
    expect(codeOf(() => image.writeCompressed(Buffer.alloc(CLUSTER), 0))).toBe('UNSUPPORTED');
    image.close();
    expect(readFileSync(path).equals(before)).toBe(true);
  });
});

/** Sets a 64-bit field of the header. */
function setHeaderField(offset: number, value: bigint): void {
  const bytes = readFileSync(path);
  bytes.writeBigUInt64BE(value, offset);
  writeFileSync(path, bytes);
}

describePeers(['qemu-img', 'qemu-io', 'koffi'], 'what an image says that is not known here', () => {
  const UNKNOWN_TYPE = 0x1234_5678;

  /** Puts an extension of an unknown type before the others. */
  function addExtension(data: Buffer): void {
    const bytes = readFileSync(path);
    const start = bytes.readUInt32BE(100);
    const extension = Buffer.alloc(8 + Math.ceil(data.length / 8) * 8);
    extension.writeUInt32BE(UNKNOWN_TYPE, 0);
    extension.writeUInt32BE(data.length, 4);
    data.copy(extension, 8);
    bytes.copyWithin(start + extension.length, start, 4096);
    extension.copy(bytes, start);
    writeFileSync(path, bytes);
  }

  it('is left in the header: extensions and compatible features', () => {
    create('');
    const data = Buffer.from('thirteen byte');
    addExtension(data);
    setHeaderField(80, 1n << 40n);
    {
      using image = open();
      image.write(Buffer.alloc(CLUSTER, 1), 0);
      image.createSnapshot('s');
      image.write(Buffer.alloc(CLUSTER, 2), 0);
      image.resize(8 * MiB);
      image.deleteSnapshot('s');
    }
    const bytes = readFileSync(path);
    expect(bytes.readBigUInt64BE(80)).toBe(1n << 40n);
    const start = bytes.readUInt32BE(100);
    expect(bytes.readUInt32BE(start)).toBe(UNKNOWN_TYPE);
    expect(bytes.subarray(start + 8, start + 8 + data.length)).toEqual(data);
    checkIsClean();
  });

  it('loses its autoclear bits on the first change, and not before', () => {
    create('');
    qemuImg('bitmap', '--add', path, 'b');
    setHeaderField(88, (1n << 40n) | 1n);
    const before = readFileSync(path);
    {
      using image = open();
      image.read(Buffer.alloc(512), 0);
      image.flush();
      expect(codeOf(() => image.resize(512))).toBe('INVALID_OPTION');
    }
    expect(readFileSync(path).equals(before)).toBe(true);
    using image = open();
    image.write(Buffer.alloc(1), 0);
    expect(readFileSync(path).readBigUInt64BE(88)).toBe(1n);
    image.close();
    expect(readFileSync(path).readBigUInt64BE(88)).toBe(1n);
    const [bitmap] = open({}).bitmaps;
    expect(bitmap).toMatchObject({ name: 'b', isInconsistent: false });
  });
});

describe('a process that ends without closing the image', () => {
  const SCRIPT = `
    import { openImage } from ${JSON.stringify(LIBRARY)};
    const [path, ending] = process.argv.slice(1);
    const image = openImage(path, { writable: true });
    const MiB = 1024 * 1024;
    const data = (value, length) => new Uint8Array(length).fill(value);
    image.write(data(1, 3 * MiB), MiB);
    image.createSnapshot('before');
    image.write(data(2, MiB), 2 * MiB);
    image.writeCompressed(data(3, 2 * 65536), 6 * MiB);
    image.flush();
    for (let at = 0; at < 60; at++) {
      image.write(data(4, 5000), 8 * MiB + at * 70000);
      image.discard(MiB + at * 4096, 65536);
      image.writeZeroes(2 * MiB + at * 9000, 10000, { mayUnmap: true });
    }
    if (ending === 'exit') process.exit(0);
    if (ending === 'kill') process.kill(process.pid, 'SIGKILL');
    if (ending === 'throw') throw new Error('unexpected');
  `;

  const OPTIONS = ['cluster_size=64k', 'cluster_size=4k,refcount_bits=64', 'lazy_refcounts=on'];
  const CASES = ['exit', 'kill', 'throw', 'return'].flatMap((ending) =>
    OPTIONS.map((options) => ({ ending, options })),
  );

  describePeers(['qemu-img', 'qemu-io', 'koffi'], 'leaves a valid one', () => {
    it.each(CASES)('with $options, by $ending', ({ ending, options }) => {
      create(options, '16M');
      const args = ['--input-type=module', '-e', SCRIPT, '--', path, ending];
      const { status, signal } = spawnSync(process.execPath, args);
      const expected = { kill: [null, 'SIGKILL'], throw: [1, null] }[ending] ?? [0, null];
      expect([status, signal]).toEqual(expected);
      // Lazy refcounts are made anew by whoever opens the image next.
      if (options.startsWith('lazy')) tryRun('qemu-img', ['check', '-q', '-r', 'all', path]);
      const { corruptions = 0, 'check-errors': errors } = qemuImgJson('check', path) as Record<
        string,
        number
      >;
      expect([corruptions, errors]).toEqual([0, 0]);
      qemuIo(path, ['read -P 2 2936012 200000', 'read -P 1 3M 1M', 'read -P 3 6M 128k']);
      const snapshot = join(directory(), 'snapshot.raw');
      run('qemu-img', ['convert', '-l', 'before', '-O', 'raw', path, snapshot]);
      expect(
        readFileSync(snapshot)
          .subarray(MiB, 4 * MiB)
          .every((byte) => byte === 1),
      ).toBe(true);
    });
  });
});
