import { existsSync, mkdtempSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import { createImage } from '../../src/operations/create.ts';
import { openKeptOverlay, openTemporaryOverlay } from '../../src/operations/overlay.ts';
import type { OverlayOptions } from '../../src/operations/overlay.ts';
import { describePeers } from '../support/peers.ts';
import { run, scratch } from './scratch.ts';

const SIZE = 4 * 1024 * 1024;
/** Numbers the overlays, which must not be there before. */
let overlayNumber = 0;
const newOverlay = (): string => scratch(`overlay-${++overlayNumber}.qcow2`);

let image: string;
let before: Buffer;

beforeEach(() => {
  image = scratch('disk.qcow2');
  createImage(image, { size: SIZE });
  using disk = openImage(image, { writable: true });
  disk.write(Buffer.alloc(100_000, 0x11), 200_000);
  disk.close();
  before = readFileSync(image);
});

/** Bytes at an offset. */
function bytesAt(path: string, offset: number): number[] {
  using disk = openImage(path);
  const target = Buffer.alloc(2);
  disk.read(target, offset);
  return [...target];
}

describe('an overlay that is forgotten', () => {
  let temporary: string;
  const outer = process.env.TMPDIR;
  beforeEach(() => {
    temporary = mkdtempSync(scratch('tmp-'));
    process.env.TMPDIR = temporary;
  });
  afterEach(() => {
    if (outer === undefined) delete process.env.TMPDIR;
    else process.env.TMPDIR = outer;
  });

  it('takes writes, leaves the image as it is, and has no name', () => {
    using overlay = openTemporaryOverlay(image);
    expect(readdirSync(temporary)).toEqual([]);
    expect(overlay.size).toBe(SIZE);
    overlay.write(Buffer.alloc(10, 0x22), 200_001);
    overlay.flush();
    const target = Buffer.alloc(3);
    overlay.read(target, 200_000);
    expect([...target]).toEqual([0x11, 0x22, 0x22]);
    overlay.close();
    expect(readFileSync(image).equals(before)).toBe(true);
  });

  it('is over an image of a format that was said', () => {
    using overlay = openTemporaryOverlay(image, { format: 'raw' });
    expect(overlay.size).toBe(Math.ceil(before.length / 512) * 512);
    expect(overlay.backing?.format).toBe('raw');
  });

  it('needs a place', () => {
    process.env.TMPDIR = join(temporary, 'missing');
    expect(() => openTemporaryOverlay(image)).toThrow(/no temporary file can be made in .*missing/);
  });

  it('leaves nothing behind where the image cannot be opened', () => {
    expect(() => openTemporaryOverlay(scratch('none'))).toThrow(/none/);
    expect(readdirSync(temporary)).toEqual([]);
  });
});

describe('an overlay that is kept', () => {
  it('is made, and goes on to be used', () => {
    const path = newOverlay();
    for (const value of [0x22, 0x33]) {
      using overlay = openKeptOverlay(image, path);
      const target = Buffer.alloc(1);
      overlay.read(target, 4096);
      expect(target[0]).toBe(value === 0x22 ? 0 : 0x22);
      overlay.write(Buffer.of(value), 4096);
    }
    expect(bytesAt(path, 4096)).toEqual([0x33, 0]);
    expect(bytesAt(path, 200_000)).toEqual([0x11, 0x11]);
    expect(readFileSync(image).equals(before)).toBe(true);
  });

  it('is never a file that is something else', () => {
    const other = scratch('other.qcow2');
    createImage(other, { size: SIZE });
    const text = scratch('letter.txt');
    writeFileSync(text, 'Dear Ada,'.repeat(100));
    const otherOverlay = scratch('other-overlay.qcow2');
    createImage(otherOverlay, { backingFile: other, backingFormat: 'qcow2' });
    for (const [file, reason] of [
      [other, /not an overlay of/],
      [text, /not an overlay of/],
      [otherOverlay, /is an overlay of '.*other\.qcow2', not of '.*disk\.qcow2'/],
      [image, /not an overlay of/],
    ] as const) {
      const content = readFileSync(file);
      expect(() => openKeptOverlay(image, file)).toThrow(reason);
      expect(readFileSync(file).equals(content)).toBe(true);
    }
  });

  it('is not made where the image cannot be opened', () => {
    const path = newOverlay();
    expect(() => openKeptOverlay(scratch('none'), path)).toThrow(/none/);
    expect(existsSync(path)).toBe(false);
  });
});

describe('what an image refers to', () => {
  const overlays = [
    ['forgotten', (path: string, options: OverlayOptions) => openTemporaryOverlay(path, options)],
    [
      'kept',
      (path: string, options: OverlayOptions) => openKeptOverlay(path, newOverlay(), options),
    ],
  ] as const;

  it.each(overlays)('is a matter of the policy, and the image itself is not: %s', (_, open) => {
    open(image, { references: 'refuse' }).close();
    const directory = mkdtempSync(scratch('top-'));
    const top = join(directory, 'top.qcow2');
    createImage(top, { backingFile: image, backingFormat: 'qcow2' });
    for (const references of ['refuse', 'same-directory'] as const) {
      expect(() => open(top, { references })).toThrow(/opening '.*disk.qcow2' is not allowed/);
    }
    // The overlay is in the directory above, or in another.
    const same = join(directory, 'same.qcow2');
    createImage(same, { backingFile: 'top.qcow2', backingFormat: 'qcow2' });
    const seen: string[] = [];
    open(same, { references: ({ path }) => seen.push(path) > 0 }).close();
    expect(new Set(seen)).toEqual(new Set([top, image]));
    createImage(top, { size: SIZE });
    open(same, { references: 'same-directory' }).close();
  });

  it.each(overlays)('is opened as the options say: %s', (_, open) => {
    const top = scratch('undeclared.qcow2');
    createImage(top, { backingFile: image, backingFormat: 'qcow2' });
    using writable = openImage(top, { writable: true });
    if (writable.format === 'qcow2') writable.setBacking({ file: image, format: null });
    writable.close();
    expect(() => open(top, {})).toThrow(/format of .* is not declared/);
    open(top, { backingFormat: 'qcow2' }).close();
  });
});

describePeers(['qemu-img', 'qemu-io'], 'kept overlays and QEMU', () => {
  it('QEMU reads and checks what was written', () => {
    const path = newOverlay();
    {
      using overlay = openKeptOverlay(image, path);
      overlay.write(Buffer.alloc(70_000, 0x44), 150_000);
    }
    expect(run('qemu-img', ['check', path]).status).toBe(0);
    const read = ['-r', '-c', 'read -P 0x44 150000 70000', '-c', 'read -P 0x11 220000 80000', path];
    expect(run('qemu-io', read).stdout).not.toMatch(/failed|verification/i);
  });
});
