import { appendFileSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, it } from 'vitest';
import { openDevice, openImage, RawImage } from '../../src/index.ts';
import { lockedBytes } from '../support/lock-holder.ts';
import { describePeers, hasPeer } from '../support/peers.ts';
import { qemuImg, qemuIo } from '../support/qemu.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';

const directory = temporaryDirectoryPerTest();
/** Without koffi, only images that need no lock can be written. */
const WRITABLE = { writable: true, lock: hasPeer('koffi') };
const MiB = 1024 * 1024;

let raw: string;
let image: string;

function patch(path: string, offset: number, byte: number): void {
  const bytes = readFileSync(path);
  bytes[offset] = byte;
  writeFileSync(path, bytes);
}

beforeEach(() => {
  raw = join(directory(), 'disk.raw');
  writeFileSync(raw, Buffer.alloc(10_000, 1));
});

describe('a raw image that is opened for writing', () => {
  it('is written, keeps its size, and can be resized', () => {
    const disk = openImage(raw, { ...WRITABLE, format: 'raw' });
    expect(disk.readOnly).toBe(false);
    disk.write(Buffer.alloc(5, 2), 9995);
    expect(() => disk.write(Buffer.alloc(5, 2), 9996)).toThrow(/outside the device/);
    expect(() => disk.writeZeroes(9996, 5)).toThrow(/outside the device/);
    disk.writeZeroes(0, 100);
    if (!(disk instanceof RawImage)) throw new Error('it is not raw');
    disk.resize(10_001);
    disk.flush();
    disk.close();
    const expected = Buffer.alloc(10_001, 1);
    expected.fill(2, 9995, 10_000).fill(0, 10_000).fill(0, 0, 100);
    expect(readFileSync(raw).equals(expected)).toBe(true);
  });

  it('is written through openDevice', () => {
    {
      using disk = openDevice(raw, WRITABLE);
      disk.write(Buffer.from('hello'), 3);
    }
    expect(readFileSync(raw, 'latin1').slice(3, 8)).toBe('hello');
  });

  it('is not written unless that was asked for', () => {
    using disk = openImage(raw);
    expect(disk.readOnly).toBe(true);
    expect(() => disk.write(Buffer.alloc(1), 0)).toThrow(
      expect.objectContaining({ code: 'READ_ONLY' }),
    );
  });
});

describePeers(['qemu-img', 'qemu-io', 'koffi'], 'a qcow2 image that is opened for writing', () => {
  beforeEach(() => {
    image = join(directory(), 'disk.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', '-b', raw, '-F', 'raw', image, '1M');
  });

  it('has a file that grows, above a backing file that is only read', () => {
    using disk = openImage(image, { writable: true });
    expect(disk.file.readOnly).toBe(false);
    expect(disk.backing?.readOnly).toBe(true);
    const { size } = statSync(image);
    disk.file.write(Buffer.alloc(10), size + 1000);
    expect(statSync(image).size).toBe(size + 1010);
  });

  it('has a backing file that is written if that was asked for, and no other', () => {
    const top = join(directory(), 'top.qcow2');
    qemuImg('create', '-q', '-f', 'qcow2', '-b', image, '-F', 'qcow2', top);
    {
      using disk = openImage(top, { writable: true, writableBacking: true });
      expect([disk.backing?.readOnly, disk.backing?.backing?.readOnly]).toEqual([false, true]);
      expect(lockedBytes('self', image)).toEqual([100, 101, 103, 201, 203]);
      expect(lockedBytes('self', raw)).toEqual([100]);
    }
    using disk = openImage(image, { writable: true, writableBacking: true });
    disk.backing?.write(Buffer.from('base'), 0);
    const target = Buffer.alloc(4);
    disk.read(target, 0);
    expect(target.toString()).toBe('base');
    using reading = openImage(raw, { writableBacking: true });
    expect(reading.readOnly).toBe(true);
  });

  it('is written for QEMU to read, and gives back what is discarded', () => {
    qemuImg('create', '-q', '-f', 'qcow2', image, '1M');
    for (const isGivenBack of [false, true]) {
      {
        using disk = openDevice(image, { writable: true, passDiscard: { request: isGivenBack } });
        disk.write(Buffer.alloc(512 * 1024, 0x5a), 4096);
      }
      qemuIo(image, ['read -P 0x5a 4k 512k', 'read -P 0 516k 4k']);
      const before = statSync(image).blocks * 512;
      {
        using disk = openDevice(image, { writable: true, passDiscard: { request: isGivenBack } });
        disk.discard(0, MiB);
      }
      const freed = before - statSync(image).blocks * 512;
      if (isGivenBack) expect(freed).toBeGreaterThan(400 * 1024);
      else expect(freed).toBe(0);
    }
  });

  it('has a data file that is written', () => {
    const data = join(directory(), 'data.raw');
    qemuImg('create', '-q', '-f', 'qcow2', '-o', `data_file=${data}`, image, '1M');
    using disk = openImage(image, { writable: true });
    if (disk.format !== 'qcow2') throw new Error('it is not qcow2');
    expect(disk.dataFile?.device.readOnly).toBe(false);
  });

  it('is refused if it is marked corrupt, except for its repair', () => {
    patch(image, 79, 2);
    expect(() => openImage(image, { writable: true })).toThrow(
      expect.objectContaining({
        code: 'CORRUPT',
        message:
          `${image}: header (at offset 72): it is marked corrupt, and can only be read; ` +
          'repair it with: qcow2 check -r all',
      }),
    );
    expect(lockedBytes('self', image)).toEqual([]);
    openImage(image).close();
    openImage(image, { writable: true, forRepair: true }).close();
  });

  it('is refused if it is encrypted', () => {
    patch(image, 35, 1);
    expect(() => openImage(image, { writable: true })).toThrow(
      expect.objectContaining({
        code: 'UNSUPPORTED',
        message: expect.stringMatching(/encrypted \(AES\)/) as string,
      }),
    );
    expect(lockedBytes('self', image)).toEqual([]);
  });

  it('is refused if it is its own data file', () => {
    qemuImg('create', '-q', '-f', 'qcow2', '-o', `data_file=${directory()}/d`, image, '1M');
    const bytes = readFileSync(image);
    const name = Buffer.from(`${directory()}/d`);
    const start = bytes.indexOf(name);
    // A name of the same length that leads to the image itself.
    const other = join(directory(), 'i');
    writeFileSync(other, '');
    bytes.set(Buffer.from(other), start);
    writeFileSync(other, bytes);
    expect(() => openImage(other, { writable: true })).toThrow(
      expect.objectContaining({
        code: 'CYCLE',
        message: `${other}: it is its own external data file`,
      }),
    );
    expect(lockedBytes('self', other)).toEqual([]);
  });

  it('is not left locked if its backing file cannot be opened', () => {
    rmSync(raw);
    expect(() => openImage(image, { writable: true })).toThrow(/no such file/);
    expect(lockedBytes('self', image)).toEqual([]);
  });

  it('has the size that it has once it is locked', () => {
    const file = new RawImage(image);
    appendFileSync(image, Buffer.alloc(MiB));
    file.updateSize();
    expect(file.size).toBe(statSync(image).size);
    file.close();
  });
});
