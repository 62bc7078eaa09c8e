/** Making images where there is nothing to lock or to reserve space with. */

import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it, vi } from 'vitest';
import { createImage } from '../../src/operations/create.ts';
import { qemuImg } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';

vi.mock('../../src/host/libc.ts', () => ({ loadLibc: () => undefined }));

const MiB = 1024 * 1024;

it.runIf(process.platform === 'linux')(
  'new files are made, existing ones are not overwritten',
  () => {
    const path = join(temporaryDirectory(), 'disk');
    const existing = join(temporaryDirectory(), 'existing');
    writeFileSync(existing, 'precious');
    createImage(path, { size: MiB, dataFile: `${path}.data` });
    expect(qemuImg('check', path)).toContain('No errors were found');
    expect(() => createImage(existing, { size: MiB })).toThrow(/locking it needs .* koffi/);
    expect(readFileSync(existing, 'latin1')).toBe('precious');
    createImage(existing, { size: MiB, lock: false });
    expect(qemuImg('check', existing)).toContain('No errors were found');
  },
);

it('space is reserved by writing zeroes', () => {
  const path = join(temporaryDirectory(), 'disk');
  createImage(path, { size: 3 * MiB, preallocation: 'falloc', lock: false });
  expect(statSync(path).blocks * 512).toBeGreaterThan(3 * MiB);
  expect(qemuImg('check', path)).toContain('48/48 = 100.00% allocated');
});
