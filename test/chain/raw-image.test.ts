import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import { temporaryDirectoryPerTest } from '../support/temp.ts';

describe('a raw image whose format was not said', () => {
  const directory = temporaryDirectoryPerTest();
  const path = () => {
    const file = join(directory(), 'disk.raw');
    writeFileSync(file, Buffer.alloc(4096));
    return file;
  };
  const QCOW2 = Buffer.from('QFI\xfb\0\0\0\x03', 'latin1');

  it.each([
    ['at once', (write: (part: Uint8Array, at: number) => void) => write(QCOW2, 0)],
    [
      'in parts',
      (write: (part: Uint8Array, at: number) => void) => {
        write(QCOW2.subarray(2), 2);
        write(QCOW2.subarray(0, 1), 0);
        write(QCOW2.subarray(1, 2), 1);
      },
    ],
  ])('cannot be made one of another format by what is written to it %s', (_, write) => {
    const file = path();
    using image = openImage(file, { writable: true });
    expect(() => write((part, at) => image.write(part, at))).toThrow(
      expect.objectContaining({ code: 'REFUSED' }),
    );
    image.write(Buffer.from('a boot sector'), 0);
    image.write(QCOW2, 8);
    image.close();
    using again = openImage(file);
    expect(again.format).toBe('raw');
    expect(readFileSync(file).toString('latin1', 0, 8)).toBe('a boot s');
  });

  it('is written as it is meant if it was said', () => {
    const file = path();
    using image = openImage(file, { writable: true, format: 'raw' });
    image.write(QCOW2, 0);
    image.close();
    expect(readFileSync(file).subarray(0, 8).equals(QCOW2)).toBe(true);
  });
});
