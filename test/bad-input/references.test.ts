/** Backing chains that lead in circles, go too deep, or are just long. */

import { linkSync, mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import { Qcow2Error } from '../../src/errors.ts';
import { MAX_CHAIN_DEPTH } from '../../src/limits.ts';
import { buildImage } from '../support/image-builder.ts';
import { temporaryDirectory } from '../support/temp.ts';

/** Writes an image of 8 KiB that stores nothing and names its backing file. */
function writeOverlay(path: string, backing: string, format = 'qcow2'): void {
  const { bytes } = buildImage({
    ...{ clusterBits: 9, guestClusters: 16, withSnapshot: false, withBitmaps: false },
    backing: { name: backing, format },
  });
  writeFileSync(path, bytes);
}

/** Writes `depth` overlays, each on the one before, over a raw file; returns the last. */
function writeChain(directory: string, depth: number): string {
  writeFileSync(join(directory, '0'), Buffer.alloc(8192, 'the bottom '));
  for (let layer = 1; layer <= depth; layer++) {
    writeOverlay(join(directory, `${layer}`), `${layer - 1}`, layer === 1 ? 'raw' : 'qcow2');
  }
  return join(directory, `${depth}`);
}

function errorOf(path: string): Qcow2Error {
  try {
    openImage(path, { format: 'qcow2' }).close();
  } catch (error) {
    expect(error).toBeInstanceOf(Qcow2Error);
    return error as Qcow2Error;
  }
  throw new Error('it was opened');
}

describe('a backing chain that comes back to itself', () => {
  it('is named where an image is its own backing file', () => {
    const path = join(temporaryDirectory(), 'self');
    writeOverlay(path, 'self');
    expect(errorOf(path).code).toBe('CYCLE');
    expect(errorOf(path).message).toContain('self');
  });

  it('is named where it goes over another image', () => {
    const directory = temporaryDirectory();
    writeOverlay(join(directory, 'a'), 'b');
    writeOverlay(join(directory, 'b'), 'c');
    writeOverlay(join(directory, 'c'), 'a');
    expect(errorOf(join(directory, 'a')).code).toBe('CYCLE');
  });

  it.each([
    ['symbolic', symlinkSync],
    ['hard', linkSync],
  ])('is found behind a %s link', (_kind, link) => {
    const directory = temporaryDirectory();
    writeOverlay(join(directory, 'a'), 'other');
    link(join(directory, 'a'), join(directory, 'other'));
    expect(errorOf(join(directory, 'a')).code).toBe('CYCLE');
  });
});

describe('a long backing chain', () => {
  const [hole] = buildImage({ guestClusters: 16 }).unallocated;

  it('of 200 layers is read through', () => {
    const path = writeChain(temporaryDirectory(), 200);
    using image = openImage(path, { format: 'qcow2' });
    const bytes = Buffer.alloc(512);
    image.read(bytes, hole! * 512);
    expect(
      bytes.equals(Buffer.alloc(8192, 'the bottom ').subarray(hole! * 512, hole! * 512 + 512)),
    ).toBe(true);
  });

  it(`of more than ${MAX_CHAIN_DEPTH} layers is refused`, () => {
    const path = writeChain(temporaryDirectory(), MAX_CHAIN_DEPTH + 1);
    expect(errorOf(path).code).toBe('CYCLE');
  });
});

describe('a relative backing name', () => {
  it('is looked for beside the overlay, not in the working directory', () => {
    const directory = temporaryDirectory();
    mkdirSync(join(directory, 'images/bases'), { recursive: true });
    writeFileSync(join(directory, 'images/bases/base.raw'), Buffer.alloc(8192, 'beside'));
    const path = join(directory, 'images/overlay');
    writeOverlay(path, 'bases/base.raw', 'raw');
    using image = openImage(path, { format: 'qcow2' });
    expect(image.backing?.path).toBe(join(directory, 'images/bases/base.raw'));
  });

  it('that is a file of no such name is an error that names both', () => {
    const path = join(temporaryDirectory(), 'overlay');
    writeOverlay(path, 'gone.raw', 'raw');
    const { code, message } = errorOf(path);
    expect(code).toBe('HOST');
    expect(message).toContain('gone.raw');
    expect(message).not.toContain('\n');
  });
});
