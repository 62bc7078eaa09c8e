import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { prepareZstd, unzstdCluster, unzstdWithFzstd } from '../../src/compression/zstd.ts';
import { zstdFrameLength } from '../../src/compression/zstd-frame.ts';
import { openImage } from '../../src/index.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg, qemuIo } from '../support/qemu.ts';
import { temporaryDirectory } from '../support/temp.ts';

const MAGIC = [0x28, 0xb5, 0x2f, 0xfd];

/** A frame of one raw block, or of one that repeats a byte. */
function rawFrame(content: string): number[] {
  const bytes = [...Buffer.from(content)];
  return [...MAGIC, 0x20, bytes.length, (bytes.length << 3) | 1, 0, 0, ...bytes];
}

function repeatFrame(byte: number, length: number): number[] {
  const block = (length << 3) | 3;
  return [...MAGIC, 0x00, 0x58, block & 255, (block >> 8) & 255, block >> 16, byte];
}

describe.each([
  ['the fastest decoder', unzstdCluster],
  ['fzstd', unzstdWithFzstd],
])('zstd through %s', (_, unzstd) => {
  it('reads one frame and ignores what follows', () => {
    const output = new Uint8Array(5);
    expect(unzstd(Uint8Array.from([...rawFrame('qcow2'), 9, 9, 9, 9]), output)).toBe(true);
    expect(Buffer.from(output).toString()).toBe('qcow2');
  });

  it('puts several frames together', () => {
    const output = new Uint8Array(8);
    const frames = Uint8Array.from([...rawFrame('abc'), ...rawFrame('defgh'), ...rawFrame('x')]);
    expect(unzstd(frames, output)).toBe(true);
    expect(Buffer.from(output).toString()).toBe('abcdefgh');
  });

  it('refuses what is too short, cut short or no frame', () => {
    const output = new Uint8Array(512);
    expect(unzstd(Uint8Array.from(rawFrame('abc')), output)).toBe(false);
    expect(unzstd(Uint8Array.from(rawFrame('abc').slice(0, -1)), output)).toBe(false);
    expect(unzstd(new Uint8Array(64), output)).toBe(false);
    expect(unzstd(Uint8Array.from([...rawFrame('')]), output)).toBe(false);
    expect(unzstd(Uint8Array.from(repeatFrame(7, 512)), output)).toBe(true);
    expect(output.every((byte) => byte === 7)).toBe(true);
  });
});

it('can be prepared before the first cluster', async () => {
  await prepareZstd();
  const output = new Uint8Array(5);
  expect(unzstdCluster(Uint8Array.from(rawFrame('qcow2')), output)).toBe(true);
});

it('measures frames, and refuses windows above 128 MiB', () => {
  const frame = Uint8Array.from(rawFrame('abc'));
  expect(zstdFrameLength(frame, 0)).toBe(frame.length);
  const hugeWindow = Uint8Array.from([...MAGIC, 0x00, 0xff, 1, 0, 0]);
  expect(zstdFrameLength(hugeWindow, 0)).toBeUndefined();
});

describePeers(['qemu-img', 'qemu-io'], 'zstd images of QEMU', () => {
  it.each(['64k', '2M'])('read the same with clusters of %s', (clusterSize) => {
    const directory = temporaryDirectory();
    const [source, image] = ['source.raw', 'zstd.qcow2'].map((name) => join(directory, name));
    qemuImg('create', '-q', '-f', 'raw', source!, '8M');
    qemuIo(source!, ['write -q -P 1 0 3M', 'write -q -P 2 5M 100k'], 'raw');
    const options = `compression_type=zstd,cluster_size=${clusterSize}`;
    qemuImg('convert', '-c', '-O', 'qcow2', '-o', options, source!, image!);
    const disk = openImage(image!);
    try {
      expect([...disk.extents(0, disk.size)].some(({ kind }) => kind === 'compressed')).toBe(true);
      const bytes = Buffer.alloc(disk.size);
      disk.read(bytes, 0);
      expect(bytes.equals(readFileSync(source!))).toBe(true);
    } finally {
      disk.close();
    }
  });
});
