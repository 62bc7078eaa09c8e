/** The images that the calls of the tables are about. */

import { readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { qemuImg, qemuIo } from '../../support/qemu.ts';

/** The images that read each of these. */
export const OVERLAYS: Readonly<Record<string, readonly string[]>> = {
  'base.qcow2': ['middle.qcow2', 'top.qcow2'],
  'middle.qcow2': ['top.qcow2'],
  'small.qcow2': ['longer.qcow2'],
};

/** Fills a directory with small images of all kinds. Names among them are relative. */
export function makeImages(directory: string): void {
  const at = (name: string): string => join(directory, name);
  const create = (name: string, size: string, ...options: string[]): void => {
    qemuImg('create', '-q', '-f', 'qcow2', ...options, at(name), size);
  };

  create('disk.qcow2', '4M');
  qemuIo(at('disk.qcow2'), ['write -P 1 0 200k', 'write -P 2 1M 64k', 'write -z 2M 128k']);
  qemuImg('snapshot', '-c', 'first', at('disk.qcow2'));
  qemuIo(at('disk.qcow2'), ['write -P 3 64k 64k', 'write -P 4 3M 10k']);

  create('plain.qcow2', '4M');
  qemuIo(at('plain.qcow2'), ['write -P 1 0 200k', 'write -P 5 1M 64k', 'write -z 2M 128k']);
  create('empty.qcow2', '4M');
  create('large.qcow2', '6M');
  create('small.qcow2', '1M');
  create('old.qcow2', '4M', '-o', 'compat=0.10');
  qemuIo(at('old.qcow2'), ['write -P 1 0 200k']);
  create('packed.qcow2', '4M');
  qemuIo(at('packed.qcow2'), ['write -c -P 1 0 64k', 'write -c -P 7 64k 64k', 'write -P 1 1M 4k']);

  create('base.qcow2', '4M');
  qemuIo(at('base.qcow2'), ['write -P 6 0 1M', 'write -P 7 3M 64k']);
  create('middle.qcow2', '4M', '-b', 'base.qcow2', '-F', 'qcow2');
  qemuIo(at('middle.qcow2'), ['write -P 8 512k 128k']);
  create('top.qcow2', '4M', '-b', 'middle.qcow2', '-F', 'qcow2');
  qemuIo(at('top.qcow2'), ['write -P 9 600k 100k', 'write -z 3M 64k']);
  create('other.qcow2', '4M');
  qemuIo(at('other.qcow2'), ['write -P 6 0 960k', 'write -P 2 3M 64k']);
  qemuIo(at('small.qcow2'), ['write -P 4 512k 64k']);
  create('longer.qcow2', '4M', '-b', 'small.qcow2', '-F', 'qcow2');
  qemuIo(at('longer.qcow2'), ['write -P 9 2M 64k']);
  qemuImg('create', '-q', '-f', 'qcow2', '-u', '-b', 'gone', '-F', 'raw', at('orphan.qcow2'), '4M');

  create('marked.qcow2', '4M');
  qemuImg('bitmap', '--add', at('marked.qcow2'), 'changes');
  qemuImg('bitmap', '--add', '-g', '4k', '--disable', at('marked.qcow2'), 'stopped');
  qemuIo(at('marked.qcow2'), ['write -P 1 1M 100k']);
  writeFileSync(at('broken.qcow2'), withBitmapInUse(readFileSync(at('marked.qcow2'))));

  writeFileSync(at('leaky.qcow2'), withRefcount(readFileSync(at('plain.qcow2')), { free: 1 }));
  writeFileSync(at('corrupt.qcow2'), withRefcount(readFileSync(at('plain.qcow2')), { used: 0 }));

  writeFileSync(at('disk.raw'), Buffer.concat([Buffer.alloc(100_000, 3), Buffer.alloc(64, 0)]));
  truncateSync(at('disk.raw'), 3 * 1024 * 1024);
  writeFileSync(at('short.raw'), Buffer.alloc(1000, 3));
  writeFileSync(at('space.raw'), Buffer.alloc(0));
  truncateSync(at('space.raw'), 4 * 1024 * 1024);
}

const CLUSTER_BYTES = 65_536;

/** The refcount of a cluster at the end of the file, or of the one before it, made wrong. */
function withRefcount(image: Buffer, wrong: { free: number } | { used: number }): Buffer {
  const bytes = Buffer.from(image);
  const clusters = Math.ceil(bytes.length / CLUSTER_BYTES);
  const block = Number(bytes.readBigUInt64BE(Number(bytes.readBigUInt64BE(48))));
  if ('used' in wrong) {
    bytes.writeUInt16BE(wrong.used, block + 2 * (clusters - 1));
    return bytes;
  }
  bytes.writeUInt16BE(wrong.free, block + 2 * clusters);
  return Buffer.concat([bytes, Buffer.alloc((clusters + 1) * CLUSTER_BYTES - bytes.length)]);
}

const BITMAPS_EXTENSION = 0x23852875;
const IN_USE = 1;

/** The first bitmap marked as one that was not saved. */
function withBitmapInUse(image: Buffer): Buffer {
  const bytes = Buffer.from(image);
  for (let at = bytes.readUInt32BE(100); ;) {
    const [type, length] = [bytes.readUInt32BE(at), bytes.readUInt32BE(at + 4)];
    if (type === BITMAPS_EXTENSION) {
      const entry = Number(bytes.readBigUInt64BE(at + 24));
      bytes.writeUInt32BE(bytes.readUInt32BE(entry + 12) | IN_USE, entry + 12);
      return bytes;
    }
    if (type === 0) throw new Error('the image has no bitmaps');
    at += 8 + Math.ceil(length / 8) * 8;
  }
}
