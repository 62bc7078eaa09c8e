/** Images that were not closed: their refcounts may be stale, and are repaired before a change. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import { qemuImg, tryRun } from '../support/qemu.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';

describe('an image with lazy refcounts that was not closed', () => {
  const path = join(sharedTemporaryDirectory(), 'lazy.qcow2');

  function leaveDirty(): void {
    qemuImg('create', '-q', '-f', 'qcow2', '-o', 'lazy_refcounts=on', path, '8M');
    const commands = ['-c', 'write -P 5 0 1M', '-c', 'write -P 6 3M 64k', '-c', 'flush'];
    tryRun('qemu-io', [...commands, '-c', 'abort', path]);
    expect(tryRun('qemu-img', ['check', path]).exitCode).toBe(2);
  }

  it('is left as it is by opening and closing', () => {
    leaveDirty();
    const before = readFileSync(path);
    openImage(path, { writable: true }).close();
    expect(readFileSync(path).equals(before)).toBe(true);
  });

  it('is repaired before the first change, and keeps what it has', () => {
    leaveDirty();
    const image = openImage(path, { writable: true });
    // Reading first, so that tables are in memory that the repair changes.
    const bytes = new Uint8Array(4);
    image.read(bytes, 0);
    image.write(Uint8Array.of(7, 7, 7, 7), 0);
    image.write(Uint8Array.of(7, 7, 7, 7), 5 * 1024 * 1024);
    image.close();
    expect(bytes).toEqual(Uint8Array.of(5, 5, 5, 5));
    expect(qemuImg('check', path)).toContain('No errors');
    const reads = ['read -P 7 0 4', 'read -P 5 4 1048572', 'read -P 6 3M 64k', 'read -P 7 5M 4'];
    for (const command of reads) {
      expect(tryRun('qemu-io', ['-r', '-c', command, path]).stdout).not.toContain('failed');
    }
  });
});
