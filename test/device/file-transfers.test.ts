/** What the host does not do at once, and what it does not do at all. */

import type * as FileSystem from 'node:fs';
import { join } from 'node:path';
import { beforeEach, describe, expect, it, vi } from 'vitest';
import { FileDevice } from '../../src/device/file.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';

/** How many bytes a write stores at most, and what goes wrong. */
const host = vi.hoisted(() => ({
  bytesPerWrite: Infinity,
  writeError: undefined as string | undefined,
  flushError: undefined as string | undefined,
  writes: 0,
}));

vi.mock('node:fs', async (importOriginal) => {
  const fs = await importOriginal<typeof FileSystem>();
  const failIf = (code: string | undefined): void => {
    if (code !== undefined) throw Object.assign(new Error(code), { code });
  };
  return {
    ...fs,
    writeSync: (fd: number, from: Uint8Array, start: number, length: number, at: number) => {
      failIf(host.writeError);
      host.writes++;
      return fs.writeSync(fd, from, start, Math.min(length, host.bytesPerWrite), at);
    },
    writevSync: (fd: number, parts: Uint8Array[], at: number) => {
      failIf(host.writeError);
      host.writes++;
      const all = Buffer.concat(parts);
      return fs.writeSync(fd, all, 0, Math.min(all.length, host.bytesPerWrite), at);
    },
    fdatasyncSync: (fd: number) => {
      failIf(host.flushError);
      fs.fdatasyncSync(fd);
    },
  };
});

const { readFileSync, writeFileSync } = await vi.importActual<typeof FileSystem>('node:fs');
const directory = temporaryDirectoryPerTest();
let path: string;

beforeEach(() => {
  path = join(directory(), 'file');
  writeFileSync(path, '0123456789');
  Object.assign(host, {
    bytesPerWrite: Infinity,
    writeError: undefined,
    flushError: undefined,
    writes: 0,
  });
});

describe('short writes', () => {
  it('are continued', () => {
    using device = new FileDevice(path, { writable: true, growable: true });
    host.bytesPerWrite = 3;
    device.write(Buffer.from('abcdefgh'), 1);
    expect(host.writes).toBe(3);
    expect(readFileSync(path, 'latin1')).toBe('0abcdefgh9');
  });

  it.each([1, 2, 3, 4, 5, 7])('of several buffers are continued after %i bytes', (count) => {
    using device = new FileDevice(path, { writable: true, growable: true });
    host.bytesPerWrite = count;
    const parts = ['ab', '', 'c', 'defgh', '', 'ij', 'k'].map((part) => Buffer.from(part));
    device.writeParts(parts, 4);
    expect(host.writes).toBe(Math.ceil(11 / count));
    expect(readFileSync(path, 'latin1')).toBe('0123abcdefghijk');
    expect(device.size).toBe(15);
  });

  it('of nothing are an error', () => {
    using device = new FileDevice(path, { writable: true });
    host.bytesPerWrite = 0;
    const refused = `${path}: cannot write 2 bytes at offset 4: input/output error`;
    expect(() => device.write(Buffer.from('ab'), 4)).toThrow(refused);
    expect(() => device.writeParts([Buffer.from('ab')], 4)).toThrow(refused);
  });
});

describe('errors of the host', () => {
  it.each([
    ['EIO', 'input/output error'],
    ['ENOSPC', 'no space left on the device'],
    ['EDQUOT', 'the disk quota is used up'],
    ['EFBIG', 'the file would be larger than the filesystem allows'],
  ])('%s is told, and writing can be tried again', (code, reason) => {
    using device = new FileDevice(path, { writable: true, growable: true });
    host.writeError = code;
    const failed = expect.objectContaining({
      code: 'HOST',
      message: `${path}: cannot write 2 bytes at offset 9: ${reason}`,
    }) as Error;
    expect(() => device.write(Buffer.from('ab'), 9)).toThrow(failed);
    expect(() => device.writeParts([Buffer.from('ab')], 9)).toThrow(failed);
    expect(device.size).toBe(10);
    host.writeError = undefined;
    device.write(Buffer.from('ab'), 9);
    expect(readFileSync(path, 'latin1')).toBe('012345678ab');
  });

  it('of a flush are told by every flush after it', () => {
    using device = new FileDevice(path, { writable: true });
    device.flush();
    host.flushError = 'EIO';
    expect(() => device.flush()).toThrow(`${path}: cannot flush: input/output error`);
    host.flushError = undefined;
    const again = expect.objectContaining({
      code: 'HOST',
      message:
        `${path}: an earlier flush failed, and what was written may be lost; ` +
        'close the image, check the disk and its cable, then check the image',
    }) as Error;
    expect(() => device.flush()).toThrow(again);
    expect(() => device.flush()).toThrow(again);
  });
});
