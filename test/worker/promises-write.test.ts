import { appendFileSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { beforeEach, expect, it } from 'vitest';
import { FileDevice, openImage as openImageSync } from '../../src/index.ts';
import { openImage } from '../../src/promises.ts';
import type { AsyncDevice, AsyncOpenImageOptions } from '../../src/promises.ts';
import { describePeers, itPeers } from '../support/peers.ts';
import { qemuImg, qemuImgJson, qemuIo, run } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';

const directory = temporaryDirectoryPerTest();
const MiB = 1024 * 1024;
const WRITABLE: AsyncOpenImageOptions = { writable: true };
const PROMISES = pathToFileURL(join(import.meta.dirname, '../../dist/promises.js')).href;

let path: string;

async function readFrom(device: AsyncDevice, offset: number, length: number): Promise<Buffer> {
  const target = Buffer.alloc(length);
  await device.read(target, offset);
  return target;
}

/** Bytes in memory that threads can share. */
function shared(length: number, value: number): Uint8Array {
  return new Uint8Array(new SharedArrayBuffer(length)).fill(value);
}

/** Runs a test with an image on a filesystem of 2 MiB. */
async function onSmallDisk(test: (folder: string) => Promise<void>): Promise<void> {
  const folder = directory();
  run('mount', ['-t', 'tmpfs', '-o', 'size=2m', 'tmpfs', folder]);
  try {
    path = join(folder, 'disk.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', path, '64M');
    await test(folder);
  } finally {
    run('umount', [folder]);
  }
}

/** Writes a file that takes all the space that is left. */
function fillDisk(filler: string): void {
  const piece = Buffer.alloc(4096);
  for (;;) {
    try {
      appendFileSync(filler, piece);
    } catch {
      return;
    }
  }
}

function checkIsClean(file = path): void {
  const { leaks = 0, corruptions = 0 } = qemuImgJson('check', file) as Record<string, number>;
  expect({ leaks, corruptions }).toEqual({ leaks: 0, corruptions: 0 });
}

describePeers(['qemu-img', 'qemu-io', 'koffi'], 'an image opened for writing with promises', () => {
  beforeEach(() => {
    path = join(directory(), 'disk.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', path, '4M');
  });

  it('stores what is written, zeroed, discarded and compressed', async () => {
    const image = await openImage(path, WRITABLE);
    expect([image.readOnly, image.size, image.format]).toEqual([false, 4 * MiB, 'qcow2']);
    await image.write(new Uint8Array(MiB).fill(0x11), 1000);
    await image.write(shared(MiB, 0x22), 2 * MiB);
    await image.writeZeroes(65_536, 65_536);
    await image.discard(131_072, 65_536);
    await image.writeCompressed(Buffer.alloc(65_536, 0x33), 3 * MiB);
    await image.writeCompressed(shared(65_536, 0x44), 3 * MiB + 65_536);
    expect(await readFrom(image, 999, 2)).toEqual(Buffer.from([0, 0x11]));
    const kinds = (await image.extents(0, image.size)).map(({ kind }) => kind);
    expect(kinds).toEqual(['data', 'zero', 'zero', 'data', 'hole', 'data', 'compressed', 'hole']);
    await image.flush();
    await image.close();
    checkIsClean();
    qemuIo(path, [
      'read -P 0x11 1000 64536',
      'read -P 0 65536 131072',
      'read -P 0x11 196608 100000',
      'read -P 0x22 2M 1M',
      'read -P 0x33 3M 64k',
      'read -P 0x44 3137k 63k',
    ]);
  });

  it("leaves the caller's bytes alone, and stores what they were", async () => {
    const image = await openImage(path, WRITABLE);
    const pool = Buffer.from(new ArrayBuffer(4 * 4096));
    const source = pool.subarray(4096, 2 * 4096).fill(0x5a);
    const written = image.write(source, 512);
    expect(source.length).toBe(4096);
    source.fill(0x77);
    await written;
    expect(pool.buffer.byteLength).toBe(4 * 4096);
    expect((await readFrom(image, 512, 4096)).equals(Buffer.alloc(4096, 0x5a))).toBe(true);
    const bytes = new Uint8Array(8);
    await image.read(bytes.subarray(2, 4), 512);
    expect([...bytes]).toEqual([0, 0, 0x5a, 0x5a, 0, 0, 0, 0]);
    await image.close();
  });

  it('executes calls in the order in which they are made', async () => {
    const image = await openImage(path, WRITABLE);
    const target = new Uint8Array(9 * MiB);
    const large = new Uint8Array(9 * MiB).fill(1);
    const results = await Promise.allSettled([
      image.resize(12 * MiB),
      image.write(large, 3 * MiB),
      image.read(target, 3 * MiB),
      image.write(new Uint8Array(9 * MiB).fill(2), 3 * MiB),
      image.createSnapshot('twos'),
      image.resize(4 * MiB, { shrink: true }),
      image.write(new Uint8Array(1), 4 * MiB),
      image.applySnapshot('twos'),
      image.write(new Uint8Array(512).fill(3), 12 * MiB - 512),
    ]);
    const failed = results.flatMap(({ status }, index) => (status === 'rejected' ? [index] : []));
    expect(failed).toEqual([6]);
    expect(image.size).toBe(12 * MiB);
    expect(target.every((byte) => byte === 1)).toBe(true);
    const end = await readFrom(image, 12 * MiB - 1024, 1024);
    expect([end[511], end[512]]).toEqual([2, 3]);
    await image.close();
    checkIsClean();
  });

  it('has a size that follows resizing and snapshots', async () => {
    const image = await openImage(path, WRITABLE);
    const snapshot = await image.createSnapshot('small');
    expect(snapshot).toMatchObject({ id: '1', name: 'small', diskSize: 4 * MiB });
    await image.resize(8 * MiB);
    expect(image.size).toBe(8 * MiB);
    await image.preallocate(4 * MiB, 4 * MiB, 'metadata');
    const [, end] = await image.extents(0, image.size);
    expect(end).toMatchObject({ offset: 4 * MiB, length: 4 * MiB, kind: 'data' });
    await expect(image.resize(MiB)).rejects.toMatchObject({ code: 'INVALID_OPTION' });
    expect(image.size).toBe(8 * MiB);
    await image.applySnapshot('1');
    expect(image.size).toBe(4 * MiB);
    await image.close();
    checkIsClean();
  });

  it('makes, reads, applies and deletes snapshots', async () => {
    const image = await openImage(path, WRITABLE);
    await image.write(Buffer.alloc(100_000, 1), 0);
    await image.createSnapshot('first');
    await image.write(Buffer.alloc(50_000, 2), 0);
    await image.createSnapshot('second');
    await using first = await image.openSnapshot('first');
    await using second = await image.openSnapshot('second');
    expect([first.readOnly, first.size]).toEqual([true, 4 * MiB]);
    expect((await readFrom(first, 49_999, 2)).toString('hex')).toBe('0101');
    expect((await readFrom(second, 49_999, 2)).toString('hex')).toBe('0201');
    await expect(first.write(Buffer.alloc(1), 0)).rejects.toMatchObject({ code: 'READ_ONLY' });
    await image.deleteSnapshot('first');
    await expect(readFrom(first, 0, 1)).rejects.toMatchObject({ code: 'CLOSED' });
    expect((await readFrom(second, 49_999, 2)).toString('hex')).toBe('0201');
    expect((await image.snapshots()).map(({ name }) => name)).toEqual(['second']);
    await image.write(Buffer.alloc(50_000, 3), 0);
    await image.applySnapshot('second');
    expect((await readFrom(image, 49_999, 2)).toString('hex')).toBe('0201');
    await expect(image.deleteSnapshot('first')).rejects.toMatchObject({ code: 'NOT_FOUND' });
    await image.close();
    checkIsClean();
  });

  it('is emptied, and committed to its backing file', async () => {
    const overlay = join(directory(), 'overlay.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', '-b', path, '-F', 'qcow2', overlay);
    {
      await using image = await openImage(overlay, WRITABLE);
      await image.write(Buffer.alloc(10, 9), 0);
      await image.makeEmpty();
      expect(await readFrom(image, 0, 1)).toEqual(Buffer.from([0]));
      await image.write(Buffer.alloc(65_536, 7), MiB);
      await expect(image.commit()).rejects.toMatchObject({ code: 'READ_ONLY' });
    }
    {
      await using image = await openImage(overlay, { ...WRITABLE, writableBacking: true });
      await image.commit();
      const extents = await image.extents(0, image.size);
      expect(extents.every(({ depth }) => depth === 1)).toBe(true);
      await expect(openImage(path)).rejects.toMatchObject({ code: 'LOCKED' });
    }
    qemuIo(path, ['read -P 7 1M 64k', 'read -P 0 0 1M']);
    checkIsClean(overlay);
    checkIsClean();
  });

  it('is amended', async () => {
    {
      await using image = await openImage(path, WRITABLE);
      await expect(image.amend({ refcountBits: 3 })).rejects.toMatchObject({
        code: 'INVALID_OPTION',
        file: path,
      });
      await image.amend({ refcountBits: 64, lazyRefcounts: true });
    }
    const { 'format-specific': specific } = JSON.parse(qemuImg('info', '--output=json', path)) as {
      'format-specific': { data: Record<string, unknown> };
    };
    expect(specific.data).toMatchObject({ 'refcount-bits': 64, 'lazy-refcounts': true });
    checkIsClean();
  });

  it('rejects what the engine refuses, with its error', async () => {
    const reading = await openImage(path);
    expect(reading.readOnly).toBe(true);
    const source = Buffer.alloc(512);
    for (const change of [
      () => reading.write(source, 0),
      () => reading.writeZeroes(0, 512),
      () => reading.discard(0, 512),
      () => reading.writeCompressed(source, 0),
      () => reading.resize(8 * MiB),
      () => reading.createSnapshot('s'),
      () => reading.makeEmpty(),
    ]) {
      await expect(change()).rejects.toMatchObject({
        name: 'Qcow2Error',
        code: 'READ_ONLY',
        file: path,
      });
    }
    await reading.flush();
    await reading.close();
    await using image = await openImage(path, WRITABLE);
    await expect(image.write(source, 4 * MiB)).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
    await expect(image.read(source, 4 * MiB)).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
    await expect(image.extents(4 * MiB, 1)).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
    await expect(image.writeCompressed(source, 0)).rejects.toMatchObject({ code: 'OUT_OF_RANGE' });
    await expect(image.resize(1)).rejects.toMatchObject({ code: 'INVALID_OPTION' });
    await expect(image.applySnapshot('none')).rejects.toMatchObject({ code: 'NOT_FOUND' });
    await expect(image.commit()).rejects.toMatchObject({ code: 'INVALID_OPTION' });
  });

  it('is opened for writing once in a process', async () => {
    const message = expect.stringContaining('this process itself') as string;
    const image = await openImage(path, WRITABLE);
    await expect(openImage(path, WRITABLE)).rejects.toMatchObject({ code: 'LOCKED', message });
    await expect(openImage(path)).rejects.toMatchObject({ code: 'LOCKED', message });
    expect(() => openImageSync(path, { writable: true })).toThrow(/this process itself writes/);
    await image.close();
    await using next = await openImage(path, WRITABLE);
    await next.write(Buffer.alloc(1), 0);
  });

  it('is flushed and let go of when it is closed, more than once too', async () => {
    const image = await openImage(path, WRITABLE);
    const written = image.write(Buffer.alloc(100_000, 8), 0);
    await Promise.all([image.close(), image.close()]);
    await written;
    await image.close();
    await expect(image.write(Buffer.alloc(1), 0)).rejects.toMatchObject({ code: 'CLOSED' });
    await expect(image.flush()).rejects.toMatchObject({ code: 'CLOSED' });
    qemuIo(path, ['read -P 8 0 100000']);
    checkIsClean();
  });

  it('can have no policy that is a function', async () => {
    const options = { references: () => true } as unknown as AsyncOpenImageOptions;
    await expect(openImage(path, options)).rejects.toThrow(/could not be cloned/);
  });

  it('stays valid if the process ends without closing it, and does not keep it alive', () => {
    const script = `
      import { openImage } from ${JSON.stringify(PROMISES)};
      const image = await openImage(process.argv[1], { writable: true });
      await image.write(new Uint8Array(1024 * 1024).fill(1), 0);
      await image.flush();
      image.write(new Uint8Array(1024 * 1024).fill(2), 2 * 1024 * 1024).then(() => console.log('written'));
    `;
    const args = ['--input-type=module', '-e', script, '--', path];
    const started = performance.now();
    expect(run(process.execPath, args)).toBe('written\n');
    expect(performance.now() - started).toBeLessThan(10_000);
    const { corruptions = 0 } = qemuImgJson('check', path) as Record<string, number>;
    expect(corruptions).toBe(0);
    qemuIo(path, ['read -P 1 0 1M']);
  });

  itPeers(['root'], 'reports a full disk, and goes on once there is room', async () => {
    await onSmallDisk(async (folder) => {
      const image = await openImage(path, WRITABLE);
      const piece = Buffer.alloc(65_536, 5);
      const filler = join(folder, 'filler');
      await image.write(piece, 0);
      fillDisk(filler);
      const message = `${path}: cannot write 65536 bytes at offset`;
      await expect(image.write(piece, MiB)).rejects.toMatchObject({
        code: 'HOST',
        message: expect.stringContaining(message) as string,
        cause: { code: 'ENOSPC' },
      });
      rmSync(filler);
      await image.write(piece, MiB);
      await image.close();
      checkIsClean();
      qemuIo(path, ['read -P 5 0 64k', 'read -P 0 64k 960k', 'read -P 5 1M 64k']);
    });
  });

  it('is let go of without being flushed when it is abandoned', async () => {
    const image = await openImage(path, WRITABLE);
    await image.write(Buffer.alloc(MiB, 1), 0);
    await image.flush();
    await image.write(Buffer.alloc(MiB, 2), 2 * MiB);
    await image.abandon();
    await image.abandon();
    await image.close();
    await expect(image.flush()).rejects.toMatchObject({ code: 'CLOSED' });
    qemuIo(path, ['read -P 1 0 1M', 'read -P 0 2M 1M']);
    const { corruptions = 0 } = qemuImgJson('check', path) as Record<string, number>;
    expect(corruptions).toBe(0);
  });

  itPeers(['root'], 'stays open if closing fails, and is closed later', async () => {
    await onSmallDisk(async (folder) => {
      const l1Offset = readFileSync(path).readUIntBE(42, 6);
      {
        // The same zeroes, but for them there is no space yet.
        using file = new FileDevice(path, { writable: true });
        file.resize(l1Offset + 65_536);
        file.discard(l1Offset, 65_536);
      }
      const image = await openImage(path, WRITABLE);
      await image.write(Buffer.alloc(65_536, 6), 0);
      const filler = join(folder, 'filler');
      fillDisk(filler);
      const closing = image.close();
      await expect(closing).rejects.toMatchObject({ code: 'HOST', cause: { code: 'ENOSPC' } });
      await expect(image.close()).rejects.toMatchObject({ code: 'HOST' });
      expect(await readFrom(image, 0, 1)).toEqual(Buffer.from([6]));
      await expect(openImage(path)).rejects.toMatchObject({ code: 'LOCKED' });
      rmSync(filler);
      await image.close();
      checkIsClean();
      qemuIo(path, ['read -P 6 0 64k']);
    });
  });
});

it('has raw images too, without what these cannot do', async () => {
  const raw = join(directory(), 'disk.raw');
  writeFileSync(raw, Buffer.alloc(8192, 1));
  const image = await openImage(raw, { ...WRITABLE, format: 'raw', lock: false });
  await image.write(Buffer.from('hello'), 100);
  await image.resize(16_384);
  expect(image.size).toBe(16_384);
  await expect(image.resize(512)).rejects.toMatchObject({ code: 'INVALID_OPTION' });
  await image.resize(4096, { shrink: true });
  for (const call of [
    () => image.createSnapshot('s'),
    () => image.writeCompressed(Buffer.alloc(4096), 0),
    () => image.makeEmpty(),
    () => image.commit(),
    () => image.amend({}),
  ]) {
    await expect(call()).rejects.toMatchObject({ code: 'UNSUPPORTED', file: raw });
  }
  await image.close();
  expect(statSync(raw).size).toBe(4096);
  expect(readFileSync(raw, 'latin1').slice(99, 106)).toBe('\x01hello\x01');
});
