import { closeSync, openSync, readFileSync, readSync, writeFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { expect } from 'vitest';
import { attachLoop, isAttached } from '../../src/host/loop.ts';
import { Qcow2Error } from '../../src/errors.ts';
import { describePeers, itPeers } from '../support/peers.ts';
import { temporaryDirectory } from '../support/temp.ts';

const MiB = 1024 * 1024;

describePeers(['root', 'loop', 'koffi'], 'a loop device', () => {
  function makeFile(): string {
    const path = join(temporaryDirectory(), 'disk.raw');
    writeFileSync(path, Buffer.alloc(MiB, 'loop'));
    return path;
  }

  function attribute(device: string, name: string): string {
    return readFileSync(device.replace('/dev', '/sys/block') + `/${name}`, 'utf8').trim();
  }

  itPeers([], 'shows a file, read only if asked, and clears itself', async () => {
    const file = makeFile();
    const loop = attachLoop({ file, name: 'a disk', readOnly: true, directIo: false });
    expect(attribute(loop.path, 'loop/backing_file')).toBe(file);
    expect(attribute(loop.path, 'loop/autoclear')).toBe('1');
    expect(attribute(loop.path, 'loop/dio')).toBe('0');
    expect(attribute(loop.path, 'ro')).toBe('1');
    expect(attribute(loop.path, 'size')).toBe(String(MiB / 512));
    const fd = openSync(loop.path, 'r');
    loop.release();
    const bytes = Buffer.alloc(8);
    readSync(fd, bytes, 0, 8, 4096);
    expect(bytes.toString()).toBe('looploop');
    closeSync(fd);
    await expect.poll(() => isAttached(loop.path)).toBe(false);
  });

  itPeers([], 'writes to the file, also with direct access', async () => {
    const file = makeFile();
    const loop = attachLoop({ file, name: file, readOnly: false, directIo: true });
    const fd = openSync(loop.path, 'r+');
    writeSync(fd, Buffer.alloc(4096, 'new!'), 0, 4096, 8192);
    closeSync(fd);
    loop.release();
    await expect.poll(() => isAttached(loop.path)).toBe(false);
    expect(readFileSync(file).toString('latin1', 8190, 8196)).toBe('opnew!');
  });

  itPeers([], 'takes a file with a name of any length, and many at once', async () => {
    const files = Array.from({ length: 12 }, makeFile);
    const loops = files.map((file) =>
      attachLoop({ file, name: 'x'.repeat(300), readOnly: true, directIo: true }),
    );
    expect(new Set(loops.map(({ path }) => path)).size).toBe(12);
    for (const loop of loops) loop.release();
    for (const { path } of loops) await expect.poll(() => isAttached(path)).toBe(false);
  });

  itPeers([], 'of nothing is an error that names it', () => {
    const request = { file: '/nonexistent/disk.raw', name: '', readOnly: true, directIo: true };
    expect(() => attachLoop(request)).toThrow(Qcow2Error);
    expect(() => attachLoop(request)).toThrow(
      /cannot open: no such file.*\/nonexistent|\/nonexistent\/disk\.raw: cannot open/,
    );
  });
});
