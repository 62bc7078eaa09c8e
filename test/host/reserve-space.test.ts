import { closeSync, fstatSync, openSync, statfsSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { loadLibc } from '../../src/host/libc.ts';
import { SpaceReserver } from '../../src/host/reserve-space.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';

const directory = sharedTemporaryDirectory();
const MiB = 2 ** 20;
const isWorthwhile =
  process.platform === 'linux' && loadLibc() !== undefined && statfsSync(tmpdir()).type === 0xef53;

/** Bytes and allocated bytes of a new file after `use`. */
function measure(use: (reserver: SpaceReserver, fd: number, path: string) => void): number[] {
  const path = join(directory, `file-${Math.random()}`);
  const fd = openSync(path, 'wx');
  try {
    use(new SpaceReserver(path), fd, path);
    const { size, blocks } = fstatSync(fd);
    return [size, blocks * 512];
  } finally {
    closeSync(fd);
  }
}

test('space is reserved for long writes, on ext4 only', () => {
  const reserved = measure((reserver, fd, path) => {
    reserver.prepare({ fd, offset: MiB, length: MiB, path });
  });
  expect(reserved).toEqual(isWorthwhile ? [2 * MiB, MiB] : [0, 0]);
});

test('nothing is done for short writes', () => {
  const reserved = measure((reserver, fd, path) => {
    reserver.prepare({ fd, offset: 0, length: 128 * 1024, path });
  });
  expect(reserved).toEqual([0, 0]);
});

test('what goes wrong is left to the write, and nothing is tried again', () => {
  const reserved = measure((reserver, fd, path) => {
    const readOnly = openSync(path, 'r');
    reserver.prepare({ fd: readOnly, offset: 0, length: MiB, path });
    closeSync(readOnly);
    reserver.prepare({ fd, offset: 0, length: MiB, path });
  });
  expect(reserved).toEqual([0, 0]);
});

test('a file that is not there is not looked at', () => {
  expect(() => new SpaceReserver(join(directory, 'missing'))).not.toThrow();
});
