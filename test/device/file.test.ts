import { chmodSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it, vi } from 'vitest';
import { FileDevice } from '../../src/device/file.ts';
import { SpaceReserver } from '../../src/host/reserve-space.ts';
import { describePeers, itPeers } from '../support/peers.ts';
import { run, tryRun } from '../support/qemu.ts';
import { sharedTemporaryDirectory, temporaryDirectoryPerTest } from '../support/temp.ts';

const directory = temporaryDirectoryPerTest();

function file(content: Uint8Array | string): string {
  const path = join(directory(), 'file');
  writeFileSync(path, content);
  return path;
}

function bytes(length: number, value: number): Uint8Array {
  return new Uint8Array(length).fill(value);
}

function allocated(path: string): number {
  return statSync(path).blocks * 512;
}

describe('FileDevice, reading', () => {
  it('refuses all changes', () => {
    const path = file('content');
    using device = new FileDevice(path);
    const refused = { code: 'READ_ONLY' };
    expect(() => device.write(bytes(1, 1), 0)).toThrow(expect.objectContaining(refused));
    expect(() => device.writeParts([bytes(1, 1)], 0)).toThrow(expect.objectContaining(refused));
    expect(() => device.writeZeroes(0, 1)).toThrow(expect.objectContaining(refused));
    expect(() => device.discard(0, 1)).toThrow(expect.objectContaining(refused));
    expect(() => device.resize(0)).toThrow(`${path}: the file was opened for reading`);
    device.flush();
    expect(readFileSync(path, 'utf8')).toBe('content');
  });
});

describe('FileDevice, writing', () => {
  it('reserves space where the file is written, not the part of it', () => {
    const path = file(bytes(4096, 0));
    using device = new FileDevice(path, { writable: true, window: { offset: 1024, length: 2048 } });
    const reserver = new SpaceReserver(path);
    const prepare = vi.spyOn(reserver, 'prepare');
    device.reserver = reserver;
    device.write(bytes(512, 1), 512);
    device.writeParts([bytes(256, 1), bytes(256, 1)], 1024);
    expect(prepare.mock.calls).toMatchObject([
      [{ offset: 1536, length: 512 }],
      [{ offset: 2048, length: 512 }],
    ]);
  });

  it('keeps to the size of a file that is not growable', () => {
    const path = file('content');
    using device = new FileDevice(path, { writable: true });
    device.write(bytes(2, 65), 5);
    expect(() => device.write(bytes(2, 65), 6)).toThrow(
      'bytes 6 to 8 are outside the device of 7 bytes',
    );
    expect(() => device.writeParts([bytes(1, 65), bytes(1, 65)], 6)).toThrow(/outside/);
    expect(() => device.writeZeroes(6, 2)).toThrow(/outside/);
    expect(() => device.discard(6, 2)).toThrow(/outside/);
    expect(readFileSync(path, 'utf8')).toBe('conteAA');
  });

  it('grows a growable file, with zeroes before what is written', () => {
    const path = file('abc');
    using device = new FileDevice(path, { writable: true, growable: true });
    device.write(bytes(2, 68), 5);
    expect(device.size).toBe(7);
    expect(readFileSync(path, 'latin1')).toBe('abc\0\0DD');
    device.write(new Uint8Array(0), 100);
    expect(device.size).toBe(7);
    const target = bytes(7, 1);
    device.read(target, 0);
    expect(Buffer.from(target).toString('latin1')).toBe('abc\0\0DD');
  });

  it('stores the parts of a write one after the other', () => {
    const path = file('0123456789');
    using device = new FileDevice(path, { writable: true, growable: true });
    const parts = Array.from({ length: 3000 }, (_, i) => bytes(i % 3, 97 + (i % 26)));
    device.writeParts(parts, 4);
    device.writeParts([], 0);
    const expected = Buffer.concat([Buffer.from('0123'), ...parts]);
    expect(readFileSync(path).equals(expected)).toBe(true);
    expect(device.size).toBe(expected.length);
  });

  it('resizes', () => {
    const path = file('abcdef');
    using device = new FileDevice(path, { writable: true });
    device.resize(2);
    expect(device.size).toBe(2);
    device.resize(4);
    expect(readFileSync(path, 'latin1')).toBe('ab\0\0');
    expect(() => device.resize(-1)).toThrow(expect.objectContaining({ code: 'OUT_OF_RANGE' }));
    expect(() => device.resize(Number.MAX_SAFE_INTEGER)).toThrow(
      /cannot make the file 9007199254740991 bytes long: (the file would be larger|EINVAL)/,
    );
    expect(device.size).toBe(4);
  });

  it('says what to do about files that cannot be written', () => {
    const path = file('abc');
    chmodSync(path, 0o444);
    if (process.getuid?.() === 0) {
      run('chattr', ['+i', path]);
      try {
        expect(() => new FileDevice(path, { writable: true })).toThrow(
          `${path}: cannot open for writing: operation not permitted; ` +
            'it may be immutable (see chattr) or sealed',
        );
      } finally {
        run('chattr', ['-i', path]);
      }
    } else {
      expect(() => new FileDevice(path, { writable: true })).toThrow(
        `${path}: cannot open for writing: permission denied; give yourself the right`,
      );
    }
  });
});

describe('FileDevice, on a file that somebody else made shorter', () => {
  it.each([
    ['reading', (device: FileDevice) => device.read(bytes(10, 0), 0)],
    ['growing', (device: FileDevice) => device.write(bytes(10, 1), 10)],
    ['growing by parts', (device: FileDevice) => device.writeParts([bytes(10, 1)], 5)],
    ['growing by zeroes', (device: FileDevice) => device.writeZeroes(5, 10)],
    ['flushing', (device: FileDevice) => device.flush()],
  ])('%s finds it', (_name, act) => {
    const path = file(bytes(10, 7));
    using device = new FileDevice(path, { writable: true, growable: true });
    truncateSync(path, 4);
    expect(() => act(device)).toThrow(
      expect.objectContaining({
        code: 'TRUNCATED',
        message: expect.stringMatching(/the file became shorter while it was open/) as string,
      }),
    );
    expect(statSync(path).size).toBe(4);
  });
});

describe('FileDevice, zeroing and discarding', () => {
  const MiB = 1024 * 1024;

  itPeers(['koffi'], 'gives space back where it may, and keeps it where it may not', () => {
    const path = file(bytes(3 * MiB, 7));
    using device = new FileDevice(path, { writable: true });
    device.writeZeroes(MiB, MiB, { mayUnmap: true });
    expect(allocated(path)).toBeLessThanOrEqual(2 * MiB + 65536);
    device.writeZeroes(0, MiB);
    expect(allocated(path)).toBeGreaterThanOrEqual(2 * MiB);
    device.discard(2 * MiB, MiB);
    expect(allocated(path)).toBeLessThanOrEqual(MiB + 65536);
    expect(readFileSync(path).equals(Buffer.alloc(3 * MiB))).toBe(true);
  });

  it.each([true, false])(
    'zeroes just the range, and grows just to its end (unmap: %s)',
    (mayUnmap) => {
      const path = file(bytes(100_000, 7));
      using device = new FileDevice(path, { writable: true, growable: true });
      device.writeZeroes(0, 0, { mayUnmap });
      device.writeZeroes(200_000, 0, { mayUnmap });
      device.writeZeroes(10, 20_001, { mayUnmap });
      expect(device.size).toBe(100_000);
      device.writeZeroes(99_000, 5_003, { mayUnmap });
      device.writeZeroes(110_000, 70_000, { mayUnmap });
      expect(device.size).toBe(180_000);
      const expected = Buffer.alloc(180_000);
      expected.fill(7, 0, 10);
      expected.fill(7, 20_011, 99_000);
      expect(readFileSync(path).equals(expected)).toBe(true);
      if (!mayUnmap) expect(allocated(path)).toBeGreaterThanOrEqual(70_000);
    },
  );
});

describePeers(['root'], 'FileDevice, on a filesystem that is full or read-only', () => {
  const mountPoint = sharedTemporaryDirectory();
  let mounted = false;

  beforeAll(() => {
    run('mount', ['-t', 'tmpfs', '-o', 'size=1m', 'none', mountPoint]);
    mounted = true;
  });
  afterAll(() => {
    if (mounted) run('umount', [mountPoint]);
  });
  beforeEach(() => writeFileSync(join(mountPoint, 'full'), ''));

  it('tells that there is no space, and goes on when there is some', () => {
    const path = join(mountPoint, 'full');
    writeFileSync(join(mountPoint, 'ballast'), bytes(512 * 1024, 1));
    using device = new FileDevice(path, { writable: true, growable: true });
    const full = expect.objectContaining({
      code: 'HOST',
      message: `${path}: cannot write 1048576 bytes at offset 10: no space left on the device`,
    }) as Error;
    const data = bytes(1024 * 1024, 3);
    expect(() => device.write(data, 10)).toThrow(full);
    // The part that was stored counts, as it does in the file.
    expect(device.size).toBe(statSync(path).size);
    device.resize(0);
    expect(() => device.writeParts([data.subarray(5), data.subarray(0, 5)], 10)).toThrow(full);
    device.resize(0);
    expect(() => device.writeZeroes(10, data.length)).toThrow(/no space left on the device/);
    device.resize(0);
    writeFileSync(join(mountPoint, 'ballast'), '');
    device.write(data.subarray(10), 10);
    device.flush();
    expect(readFileSync(path).equals(Buffer.concat([bytes(10, 0), data.subarray(10)]))).toBe(true);
    device.resize(0);
  });

  it('says what to do on a read-only filesystem', () => {
    const path = join(mountPoint, 'full');
    run('mount', ['-o', 'remount,ro', mountPoint]);
    try {
      expect(() => new FileDevice(path, { writable: true })).toThrow(
        `${path}: cannot open for writing: the filesystem is read-only; mount the filesystem ` +
          'read-write or copy the image elsewhere, or open it for reading',
      );
    } finally {
      run('mount', ['-o', 'remount,rw', mountPoint]);
    }
  });
});

describePeers(['loop'], 'FileDevice, on a block device', () => {
  it('writes, zeroes and discards within it, and cannot make it grow', () => {
    const path = file(bytes(1024 * 1024, 7));
    const loop = run('losetup', ['--find', '--show', path]).trim();
    try {
      using device = new FileDevice(loop, { writable: true, growable: true });
      expect(device.size).toBe(1024 * 1024);
      device.write(bytes(512, 1), 1024 * 1024 - 512);
      device.writeZeroes(0, 4096);
      device.writeZeroes(8192, 10, { mayUnmap: true });
      device.discard(65536, 65536);
      device.resize(4096);
      device.flush();
      expect(device.size).toBe(1024 * 1024);
      const full =
        `${loop}: no space left: the block device has 1048576 bytes, not 1048577; ` +
        'make the device larger and open the image again';
      expect(() => device.write(bytes(2, 1), 1024 * 1024 - 1)).toThrow(full);
      expect(() => device.writeZeroes(1024 * 1024 - 1, 2)).toThrow(full);
      expect(() => device.resize(1024 * 1024 + 1)).toThrow(full);
      const start = bytes(8203, 1);
      device.read(start, 0);
      expect(start.subarray(0, 4096).every((byte) => byte === 0)).toBe(true);
      expect(start.subarray(4096, 8192).every((byte) => byte === 7)).toBe(true);
      expect(start.subarray(8192, 8202).every((byte) => byte === 0)).toBe(true);
      expect(start[8202]).toBe(7);
    } finally {
      tryRun('losetup', ['--detach', loop]);
    }
  });
});
