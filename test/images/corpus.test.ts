/** Every image of the corpus reads, or is refused, as its sidecar says. */

import { createHash } from 'node:crypto';
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import type { BlockDevice } from '../../src/device/block-device.ts';
import { Qcow2Error } from '../../src/errors.ts';
import { checkImage, openForCheck } from '../../src/operations/check.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { corpusImages, strayFiles, unpackImage } from './corpus.ts';
import type { ExpectedSnapshot, Sidecar } from './corpus.ts';

/** QEMU needs a key, or the backing file, even to check; neither says anything about the tables. */
const CHECKED_ALL_THE_SAME = ['encryption', 'backing-file'];

const CHUNK = 1024 * 1024;

function hashRange(device: BlockDevice, offset: number, length: number): string {
  const hash = createHash('sha256');
  const buffer = Buffer.alloc(Math.min(CHUNK, length));
  for (let done = 0; done < length; done += CHUNK) {
    const piece = buffer.subarray(0, Math.min(CHUNK, length - done));
    device.read(piece, offset + done);
    hash.update(piece);
  }
  return hash.digest('hex');
}

/** QEMU's disks are whole sectors. */
function sizeForQemu(device: BlockDevice): number {
  return device.size - (device.size % 512);
}

/** What an attempt came to: a hash, or an error. */
type Attempt = { sha256: string } | { error: Qcow2Error };

/** @throws whatever is not a `Qcow2Error` */
function attempt(read: () => string): Attempt {
  try {
    return { sha256: read() };
  } catch (error) {
    if (!(error instanceof Qcow2Error)) throw error;
    expect(error.message).not.toContain('\n');
    return { error };
  }
}

/** Reads a whole image and its chain. */
function readDisk(path: string): Attempt {
  return attempt(() => {
    using image = openImage(path, { format: 'qcow2' });
    return hashRange(image, 0, sizeForQemu(image));
  });
}

/** The same, after listing snapshots and bitmaps, which QEMU does when it opens an image. */
function readAll(path: string): Attempt {
  return attempt(() => {
    using image = openImage(path, { format: 'qcow2' });
    if (image.format === 'qcow2') expect([image.snapshots, image.bitmaps]).toHaveLength(2);
    return hashRange(image, 0, sizeForQemu(image));
  });
}

function readSnapshot(path: string, { id, size }: ExpectedSnapshot): Attempt {
  return attempt(() => {
    using image = openImage(path, { format: 'qcow2' });
    if (image.format !== 'qcow2') throw new Error('it was opened as qcow2');
    using device = image.openSnapshot(id);
    if (size !== undefined) expect(device.size).toBe(size);
    return hashRange(device, 0, device.size);
  });
}

/** Errors that the sidecar lets pass, as patterns of {@link Attempt}. */
function allowedErrors({ leniency }: Sidecar): string[] {
  return leniency?.codes ?? [];
}

function expectContent(actual: Attempt, sha256: string, sidecar: Sidecar): void {
  if ('error' in actual && allowedErrors(sidecar).includes(actual.error.code)) return;
  expect(actual).toEqual({ sha256 });
}

function expectRefusal(actual: Attempt, { deviation, expect: { soundSha256 } }: Sidecar): void {
  if ('sha256' in actual && soundSha256 !== undefined) {
    expect(actual.sha256).toBe(soundSha256);
    return;
  }
  const { error } = actual as { error: Qcow2Error | undefined };
  expect(error).toBeInstanceOf(Qcow2Error);
  if (deviation !== undefined) expect(error?.code).toBe(deviation.code);
}

function checkFile(path: string): unknown {
  using image = openForCheck(path, { format: 'qcow2' });
  if (image.format !== 'qcow2') throw new Error('it was opened as qcow2');
  return checkImage(image);
}

const scratch = sharedTemporaryDirectory();

describe('the corpus', () => {
  it('has a sidecar for each file, and a file for each sidecar', () => {
    expect(strayFiles()).toEqual([]);
    expect(corpusImages().length).toBeGreaterThan(200);
  });
});

describe.each(corpusImages().map((image) => [image.name, image] as const))('%s', (name, image) => {
  const { sidecar } = image;
  const directory = join(scratch, name);
  const previousDirectory = process.cwd();
  let path = '';
  beforeAll(() => {
    path = unpackImage(image, directory);
    process.chdir(directory);
  });
  afterAll(() => {
    process.chdir(previousDirectory);
    rmSync(directory, { recursive: true });
  });

  const { sha256, ranges, snapshots = [], check } = sidecar.expect;
  if (sha256 === null || sidecar.deviation !== undefined) {
    it(`is refused: ${sidecar.deviation?.reason ?? sidecar.expect.refusal ?? ''}`, () => {
      expectRefusal(readAll(path), sidecar);
    });
  } else if (sha256 !== undefined) {
    it('reads as QEMU reads it', () => {
      expectContent(readDisk(path), sha256, sidecar);
    });
  }

  if (ranges !== undefined) {
    it('reads as QEMU reads it, in places', () => {
      using device = openImage(path, { format: 'qcow2' });
      for (const { offset, length, ...range } of ranges) {
        expect(hashRange(device, offset, length), `at ${offset}`).toBe(range.sha256);
      }
    });
  }

  it.each(snapshots)('snapshot $id is as QEMU goes back to it', (snapshot) => {
    const actual = readSnapshot(path, snapshot);
    if (snapshot.sha256 !== null) expectContent(actual, snapshot.sha256, sidecar);
    else expectRefusal(actual, sidecar);
  });

  if (check !== undefined) {
    it('is checked as QEMU checks it', () => {
      const counts: Partial<typeof check> = { ...check };
      delete counts.exitCode;
      const couldBeChecked = 'check-errors' in counts;
      let error: Qcow2Error | undefined;
      try {
        expect(checkFile(path)).toMatchObject(couldBeChecked ? counts : {});
      } catch (thrown) {
        if (!(thrown instanceof Qcow2Error)) throw thrown;
        error = thrown;
      }
      if (sidecar.deviation !== undefined && error !== undefined) {
        expect(error.code).toBe(sidecar.deviation.code);
      } else if (couldBeChecked) {
        expect(error).toBeUndefined();
      } else if (!CHECKED_ALL_THE_SAME.some((feature) => sidecar.features.includes(feature))) {
        expect(error).toBeInstanceOf(Qcow2Error);
      }
    });
  }
});
