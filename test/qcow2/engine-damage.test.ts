/** Damaged images: what an entry wrongly calls data is not given up and so not overwritten. */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import type { ChainedQcow2Image } from '../../src/chain/open.ts';
import { qemuImg, qemuIo } from '../support/qemu.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';

const path = join(sharedTemporaryDirectory(), 'image.qcow2');

/** Makes an image whose first L2 entry is what `entry` makes of its header. */
function damage(entry: (header: Buffer) => bigint): void {
  qemuImg('create', '-q', '-f', 'qcow2', path, '1M');
  qemuIo(path, ['write -P 1 0 128k']);
  const bytes = readFileSync(path);
  const l1 = Number(bytes.readBigUInt64BE(40));
  const l2 = Number(bytes.readBigUInt64BE(l1) & 0x00ff_ffff_ffff_fe00n);
  bytes.writeBigUInt64BE(entry(bytes), l2);
  writeFileSync(path, bytes);
}

const L1_TABLE = (header: Buffer): bigint => header.readBigUInt64BE(40);

it.each([
  ['discarded', 'the L1 table', L1_TABLE, (image: ChainedQcow2Image) => image.discard(0, 65536)],
  [
    'overwritten',
    'the refcount table',
    (header: Buffer) => header.readBigUInt64BE(48),
    (image: ChainedQcow2Image) => image.write(Buffer.alloc(65536), 0),
  ],
  [
    'overwritten compressed',
    'the L1 table',
    L1_TABLE,
    (image: ChainedQcow2Image) => image.writeCompressed(Buffer.alloc(65536), 0),
  ],
  [
    'discarded',
    'no cluster',
    () => 0x5_1200n,
    (image: ChainedQcow2Image) => image.discard(0, 65536),
  ],
] as const)('data that is %s and would be %s is not given up', (_what, _where, entry, change) => {
  damage(entry);
  const image = openImage(path, { writable: true }) as ChainedQcow2Image;
  expect(() => change(image)).toThrow(/would overlap|is not aligned/);
  expect(image.header.isCorrupt).toBe(true);
  expect(() => image.write(Buffer.alloc(512), 0)).toThrow(/would overlap|is not aligned/);
  image.close();
  // The other cluster can still be read.
  const again = openImage(path);
  const read = Buffer.alloc(65536);
  again.read(read, 65536);
  again.close();
  expect(read.equals(Buffer.alloc(65536, 1))).toBe(true);
});
