/** Amending images that a crash, or somebody else's error, has left with more than they need. */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import type { ChainedQcow2Image } from '../../src/chain/open.ts';
import { GrowableMemoryDevice } from '../../src/device/memory.ts';
import { amendImage } from '../../src/operations/amend.ts';
import { readHeader } from '../../src/qcow2/image.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo, tryRun } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';

const KiB = 1024;
const CLUSTER = 64 * KiB;

function open(path: string): ChainedQcow2Image {
  const image = openImage(path, { writable: true });
  if (image.format === 'qcow2') return image;
  throw new Error(`${path} is not a qcow2 image`);
}

function create(...options: string[]): string {
  const path = join(temporaryDirectory(), 'disk.qcow2');
  qemuImg('create', '-q', '-f', 'qcow2', ...options, path, '1M');
  return path;
}

/** Changes the bytes of an image in its file. */
function patch(path: string, change: (bytes: Buffer) => Buffer | void): void {
  const bytes = readFileSync(path);
  writeFileSync(path, change(bytes) ?? bytes);
}

/** Adds one to the count of a cluster, as a crash leaves it. */
function leak(bytes: Buffer, offset: number): void {
  const { refcountTableOffset } = readHeader(new GrowableMemoryDevice(bytes));
  const block = Number(bytes.readBigUInt64BE(refcountTableOffset));
  const at = block + (offset / CLUSTER) * 2;
  bytes.writeUInt16BE(bytes.readUInt16BE(at) + 1, at);
}

function l2Of(bytes: Buffer, l1TableOffset: number): number {
  return Number(bytes.readBigUInt64BE(l1TableOffset) & 0x00ff_ffff_ffff_fe00n);
}

describePeers(['qemu-img', 'qemu-io'], 'amending to version 2', () => {
  it('keeps what a snapshot holds where a crash has left an L2 table counted too often', () => {
    const path = create();
    qemuIo(path, [`write -q -P 1 0 64k`]);
    qemuImg('snapshot', '-c', 'data', path);
    // Both tables say zeroes of the cluster in which the snapshot's data is.
    qemuIo(path, ['write -q -z 0 64k']);
    qemuImg('snapshot', '-c', 'zero', path);
    qemuIo(path, ['write -q -P 2 64k 64k']);
    const table = (() => {
      using image = openImage(path) as ChainedQcow2Image;
      return image.snapshots[1]!.l1TableOffset;
    })();
    patch(path, (bytes) => leak(bytes, l2Of(bytes, table)));
    {
      using image = open(path);
      amendImage(image, { compat: '0.10' });
    }
    using image = openImage(path) as ChainedQcow2Image;
    expect(image.header.version).toBe(2);
    const read = (disk: { read(target: Buffer, offset: number): void }): Buffer => {
      const bytes = Buffer.alloc(CLUSTER);
      disk.read(bytes, 0);
      return bytes;
    };
    expect(read(image.openSnapshot('data')).every((byte) => byte === 1)).toBe(true);
    expect(read(image.openSnapshot('zero')).every((byte) => byte === 0)).toBe(true);
    expect(read(image).every((byte) => byte === 0)).toBe(true);
    // Nothing but the leak that was there.
    const { exitCode, stdout } = tryRun('qemu-img', ['check', '-f', 'qcow2', path]);
    expect(exitCode, stdout).toBe(3);
  });

  it.each(['reserved bits', 'the L1 table', 'one cluster twice'] as const)(
    'leaves alone what a damaged bitmap says of its place: %s',
    (damage) => {
      const path = create();
      qemuImg('bitmap', '--add', '-g', '512', path, 'a');
      qemuImg('bitmap', '--add', '-g', '512', path, 'b');
      qemuIo(path, ['write -q -P 1 0 128k']);
      const [first, second] = (() => {
        using image = openImage(path) as ChainedQcow2Image;
        return image.bitmaps.map(({ tableOffset }) => tableOffset);
      })();
      patch(path, (bytes) => {
        const { l1TableOffset } = readHeader(new GrowableMemoryDevice(bytes));
        const entries = {
          'reserved bits': 0xff00_0000_0000_0000n,
          'the L1 table': BigInt(l1TableOffset),
          'one cluster twice': bytes.readBigUInt64BE(second),
        };
        bytes.writeBigUInt64BE(entries[damage], first);
      });
      {
        using image = open(path);
        amendImage(image, { compat: '0.10' });
        expect(image.header.isCorrupt).toBe(false);
      }
      {
        using image = open(path);
        expect(image.header.version).toBe(2);
        image.write(Buffer.alloc(6 * CLUSTER, 3), 4 * CLUSTER);
      }
      // Leaks at most.
      qemuImg('check', '-q', '-r', 'leaks', '-f', 'qcow2', path);
      const { stdout } = tryRun('qemu-io', ['-c', 'read -P 1 0 128k', '-f', 'qcow2', path]);
      expect(stdout).not.toContain('failed');
    },
  );
});

describePeers(['qemu-img'], 'amending the width of refcounts', () => {
  it('does not begin where no refcount table could name all blocks', () => {
    const path = join(temporaryDirectory(), 'disk.qcow2');
    const layout = 'cluster_size=512,refcount_bits=1';
    qemuImg('create', '-q', '-f', 'qcow2', '-o', layout, path, '1M');
    // A cluster is counted at 32 GiB, by the last block of a longer table.
    const blockIndex = 16_384;
    patch(path, (small) => {
      const header = readHeader(new GrowableMemoryDevice(small));
      const tableClusters = Math.ceil(((blockIndex + 1) * 8) / 512);
      const first = Math.ceil(small.length / 512);
      const bytes = Buffer.alloc((first + tableClusters + 1) * 512);
      small.copy(bytes);
      const table = first * 512;
      const block = table + tableClusters * 512;
      small.copy(bytes, table, header.refcountTableOffset, header.refcountTableOffset + 512);
      bytes.writeBigUInt64BE(BigInt(block), table + blockIndex * 8);
      bytes[block] = 1;
      const firstBlock = Number(bytes.readBigUInt64BE(table));
      for (let cluster = first; cluster <= first + tableClusters; cluster++) {
        bytes[firstBlock + (cluster >>> 3)]! |= 1 << (cluster & 7);
      }
      bytes.writeBigUInt64BE(BigInt(table), 48);
      bytes.writeUInt32BE(tableClusters, 56);
      return bytes;
    });
    const before = readFileSync(path);
    const image = open(path);
    expect(() => amendImage(image, { refcountBits: 64, size: 2 * 1024 * KiB })).toThrow(
      /no refcount table holds so many refcounts of 64 bits/,
    );
    image.close();
    expect(readFileSync(path).equals(before)).toBe(true);
    {
      using wide = open(path);
      amendImage(wide, { refcountBits: 32, size: 2 * 1024 * KiB });
    }
    const { exitCode, stdout } = tryRun('qemu-img', ['check', '-f', 'qcow2', path]);
    expect(exitCode, stdout).toBe(3);
  });
});
