/** Lazy refcounts: their blocks wait in memory, but not without bound. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { GrowableMemoryDevice } from '../../src/device/memory.ts';
import { Qcow2Image, readHeader } from '../../src/qcow2/image.ts';
import { qemuImg } from '../support/qemu.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';

const path = join(sharedTemporaryDirectory(), 'image.qcow2');

class CountingFile extends GrowableMemoryDevice {
  flushes = 0;

  override flush(): void {
    this.flushes++;
  }
}

it('refcount blocks that fill the cache do not make every write flush', () => {
  const options = 'cluster_size=512,lazy_refcounts=on,refcount_bits=64';
  qemuImg('create', '-q', '-f', 'qcow2', '-o', options, path, '4M');
  const file = new CountingFile(readFileSync(path));
  const header = readHeader(file);
  const metadataCacheBytes = 32 * 512;
  const image = new Qcow2Image({ path, file, header, writable: true, metadataCacheBytes });
  // 128 refcount blocks, of which the cache holds 32.
  for (let at = 0; at < image.size; at += 512) image.write(Buffer.alloc(512, 1), at);
  image.close();
  // A flush of half the cache at a time, which takes a few steps.
  expect(file.flushes).toBeLessThan(200);
});
