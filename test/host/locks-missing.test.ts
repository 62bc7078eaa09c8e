/** What is done where there is nothing to lock with. */

import { closeSync, openSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it, vi } from 'vitest';
import { lockFile, LockRequests } from '../../src/host/locks.ts';
import { openImage } from '../../src/index.ts';
import { temporaryDirectory } from '../support/temp.ts';

vi.mock('../../src/host/libc.ts', () => ({ loadLibc: () => undefined }));

it.runIf(process.platform === 'linux')('without koffi, files are read and not written', () => {
  const path = join(temporaryDirectory(), 'disk.raw');
  writeFileSync(path, 'abc');
  const fd = openSync(path, 'r+');
  lockFile({ fd, path }, LockRequests.qcow2.read);
  expect(() => lockFile({ fd, path }, LockRequests.qcow2.write)).toThrow(
    expect.objectContaining({
      code: 'MISSING_DEPENDENCY',
      message:
        `${path}: locking it needs the optional package koffi; install it with: ` +
        'npm install koffi; or switch locking off if nothing else uses the image',
    }),
  );
  closeSync(fd);
  openImage(path, { format: 'raw' }).close();
  expect(() => openImage(path, { format: 'raw', writable: true })).toThrow(/needs .* koffi/);
  using image = openImage(path, { format: 'raw', writable: true, lock: false });
  expect(image.readOnly).toBe(false);
});
