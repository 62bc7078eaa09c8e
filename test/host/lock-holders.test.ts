import { closeSync, openSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { findLockHolders, holdsLock } from '../../src/host/lock-holders.ts';
import { lockFile, LockRequests } from '../../src/host/locks.ts';
import { itPeers } from '../support/peers.ts';
import { temporaryDirectory } from '../support/temp.ts';

describe('holdsLock', () => {
  const fdinfo = [
    'pos:\t0',
    'flags:\t0102002',
    'lock:\t1: OFDLCK ADVISORY  READ -1 fe:00:2163442 100 101',
    'lock:\t2: POSIX  ADVISORY  WRITE 77 fe:00:2163442 203 203',
    'lock:\t3: OFDLCK ADVISORY  WRITE -1 00:2b:5 300 EOF',
    '',
  ].join('\n');

  it.each([
    [2163442, 99, false],
    [2163442, 100, true],
    [2163442, 101, true],
    [2163442, 102, false],
    // A lock of another kind, which those of open files do not clash with.
    [2163442, 203, false],
    [163442, 100, false],
    [5, 299, false],
    [5, 12345, true],
  ])('of inode %i and byte %i: %s', (ino, byte, expected) => {
    expect(holdsLock(fdinfo, { ino, byte })).toBe(expected);
  });
});

itPeers(['koffi'], 'holders are found, unless the time is up', () => {
  const path = join(temporaryDirectory(), 'file');
  writeFileSync(path, '');
  const fd = openSync(path, 'r');
  const { ino } = statSync(path);
  expect(findLockHolders({ ino, byte: 100 })).toEqual([]);
  lockFile({ fd, path }, LockRequests.qcow2.read);
  expect(findLockHolders({ ino, byte: 100 })).toMatchObject([{ pid: process.pid }]);
  expect(findLockHolders({ ino, byte: 101 })).toEqual([]);
  expect(findLockHolders({ ino, byte: 100 }, -1)).toEqual([]);
  closeSync(fd);
});
