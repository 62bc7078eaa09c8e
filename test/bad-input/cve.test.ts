/**
 * What attackers did to other readers of disk images, by the numbers that it was given.
 *
 * Each is read in a process of its own: no crash, within a second and 100 MiB, one typed error.
 */

import { mkdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import { Qcow2Error } from '../../src/errors.ts';
import { buildImage } from '../support/image-builder.ts';
import type { BuildOptions } from '../support/image-builder.ts';
import { withFields, writeSparse } from '../support/image-patch.ts';
import { run } from '../support/qemu.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { judgeConduct } from './judge.ts';
import type { PartReport } from './reader-child.ts';
import { ReaderProcess } from './reader-process.ts';

const SECRET = 'a file of the host that no image may show';
const plain = buildImage();

const directory = sharedTemporaryDirectory();
const path = join(directory, 'hostile.qcow2');
const secretPath = join(directory, 'secret');
let reader: ReaderProcess;

beforeAll(async () => {
  writeFileSync(secretPath, SECRET.padEnd(512));
  reader = await ReaderProcess.create();
});
afterAll(() => reader.close());

/** Has the image of some bytes read; returns what became of its parts. */
async function partsOf(bytes: Uint8Array): Promise<PartReport[]> {
  writeFileSync(path, bytes);
  const outcome = await reader.read(path);
  expect(judgeConduct(outcome)).toEqual([]);
  if ('died' in outcome) throw new Error(outcome.died);
  return outcome.parts;
}

/** Errors of reading the parts of an image, `check` apart. */
async function errorsOf(bytes: Uint8Array): Promise<string[]> {
  const parts = await partsOf(bytes);
  return parts
    .filter(({ part, error }) => error !== undefined && part !== 'check')
    .map(({ part, error }) => `${part}: ${error?.code}: ${error?.message}`);
}

/** A header of version 1, as qcow had it: disk size at 24, cluster and L2 bits at 32. */
function versionOne({ size, l2Bits }: { size: bigint; l2Bits: number }): Buffer {
  const header = Buffer.alloc(512);
  header.writeUInt32BE(0x5146_49fb, 0);
  header.writeUInt32BE(1, 4);
  header.writeBigUInt64BE(size, 24);
  header.set([12, l2Bits], 32);
  header.writeBigUInt64BE(48n, 40);
  return header;
}

const overflows: [cve: string, what: string, bytes: () => Buffer, expected: RegExp][] = [
  [
    'CVE-2014-0142',
    'fields that divide or shift: cluster_bits 0 and 255',
    () => withFields(plain, { cluster_bits: 0 }),
    /cluster_bits/,
  ],
  [
    'CVE-2014-0143',
    'an L1 size whose product with 8 wraps in 32 bits',
    () => withFields(plain, { l1_size: 0x2000_0001 }),
    /L1 table/,
  ],
  [
    'CVE-2014-0143',
    'a refcount table whose bytes wrap in 32 bits',
    () => withFields(plain, { refcount_table_clusters: 0x0080_0001 }),
    /refcount table/,
  ],
  [
    'CVE-2014-0144',
    'a header length of 2^32 - 8',
    () => withFields(plain, { header_length: 0xffff_fff8 }),
    /header_length/,
  ],
  [
    'CVE-2014-0144',
    'a header extension of 2^32 - 1 bytes',
    () => withFields(plain, { 'unknown extension length': 0xffff_ffff }),
    /extension/,
  ],
  [
    'CVE-2014-0144',
    'a backing file name of 2^32 - 1 bytes',
    () => withFields(plain, { backing_file_offset: 400, backing_file_size: 0xffff_ffff }),
    /backing file name/,
  ],
  [
    'CVE-2014-0145',
    'a snapshot table whose bytes wrap in 32 bits',
    () => withFields(plain, { nb_snapshots: 0x0666_6667 }),
    /snapshots/,
  ],
  [
    'CVE-2014-0145',
    'a snapshot with an L1 table that is larger than the active one may be',
    () => withFields(plain, { 'snapshot l1_size': 0x0800_0000 }),
    /snapshot/i,
  ],
  [
    'CVE-2014-0146',
    'snapshots at an offset that is not aligned, after which others freed what they had not made',
    () => withFields(plain, { snapshots_offset: 0xffff_ffff_ffff_fff8n }),
    /snapshots_offset/,
  ],
  [
    'CVE-2014-0147',
    'a refcount table at the end of the offset range',
    () => withFields(plain, { refcount_table_offset: 0xffff_ffff_ffff_fe00n }),
    /refcount_table_offset/,
  ],
  [
    'CVE-2014-0222',
    'version 1 with L2 tables of 2^63 entries',
    () => versionOne({ size: 1n << 20n, l2Bits: 63 }),
    /version 1/,
  ],
  [
    'CVE-2014-0223',
    'version 1 with a disk of 2^64 - 1 bytes',
    () => versionOne({ size: (1n << 64n) - 1n, l2Bits: 9 }),
    /version 1/,
  ],
];

describe.each(overflows)('%s: %s', (_cve, _what, bytes, expected) => {
  it('is one typed error', async () => {
    const errors = await errorsOf(bytes());
    expect(errors).toHaveLength(1);
    expect(errors[0]).toMatch(expected);
  });
});

describe('CVE-2015-5162, CVE-2018-10908: a small image that costs gigabytes or minutes', () => {
  it('is opened at once when its disk has petabytes', async () => {
    const header = withFields(plain, {
      ...{ cluster_bits: 21, size: 1n << 52n, l1_size: 8192, l1_table_offset: 1 << 21 },
      ...{ refcount_table_offset: 1 << 22, nb_snapshots: 0, snapshots_offset: 0 },
      autoclear_features: 0,
    }).subarray(0, 112);
    writeSparse(path, { pieces: [[0, header]], size: 3 << 21 });
    const outcome = await reader.read(path);
    expect(judgeConduct(outcome)).toEqual([]);
    expect('parts' in outcome && outcome.parts.find(({ part }) => part === 'disk')?.size).toBe(
      2 ** 52,
    );
  });

  it('does not inflate more than a cluster from a compressed stream', async () => {
    // Every L2 entry points at one stream of zeroes, as long as the format can say.
    const bomb = buildImage({ withSnapshot: false, withBitmaps: false });
    const entries: Record<string, bigint> = {};
    const stream = bomb.structures.find(({ name }) => name.startsWith('compressed data'))!;
    for (let cluster = 0; cluster < 8; cluster++) {
      entries[`L2 entry ${cluster}`] = (1n << 62n) | (1n << 61n) | BigInt(stream.offset);
    }
    const parts = await partsOf(withFields(bomb, entries));
    expect(parts.map(({ part }) => part)).toContain('disk');
  });
});

/** Images whose references point at a file of the host. */
const references: [cve: string, what: string, options: BuildOptions][] = [
  [
    'CVE-2015-5163',
    'a backing file whose format is not declared',
    { backing: { name: 'secret', format: '' } },
  ],
  [
    'CVE-2024-4467',
    'a backing file named by a json: document',
    { backing: { name: `json:{"driver":"raw","file":{"filename":"secret"}}`, format: 'raw' } },
  ],
  [
    'CVE-2024-4467',
    'an external data file named by a json: document',
    { dataFile: { name: 'json:{"driver":"file","filename":"secret"}', raw: true } },
  ],
  [
    'CVE-2024-32498',
    'a backing file named by a protocol',
    { backing: { name: 'file:secret', format: 'raw' } },
  ],
  [
    'CVE-2024-32498',
    'a backing file on a server',
    { backing: { name: 'nbd://127.0.0.1:1/disk', format: 'raw' } },
  ],
];

describe.each(references)('%s: %s', (_cve, _what, options) => {
  it('is refused', () => {
    const built = buildImage({
      clusterBits: 12,
      withSnapshot: false,
      withBitmaps: false,
      ...options,
    });
    writeFileSync(path, built.bytes);
    const open = (): void => {
      using image = openImage(path, { format: 'qcow2' });
      image.read(new Uint8Array(512), 0);
    };
    expect(open).toThrow(Qcow2Error);
    expect(open).toThrow(expect.objectContaining({ code: 'REFUSED' }));
    expect(open).not.toThrow(SECRET);
  });
});

describe('CVE-2008-2004, CVE-2015-1851, CVE-2026-24708: raw guest data that looks like a format', () => {
  it('is raw data where the caller says so', () => {
    const hostile = buildImage({
      backing: { name: secretPath, format: 'raw' },
      withBitmaps: false,
    });
    writeFileSync(path, hostile.bytes);
    using image = openImage(path, { format: 'raw' });
    const head = new Uint8Array(512);
    image.read(head, 0);
    expect(Buffer.from(head).equals(hostile.bytes.subarray(0, 512))).toBe(true);
    expect(image.backing).toBeUndefined();
  });

  it('is raw data where the overlay says that its backing file is raw', () => {
    const guest = buildImage({ backing: { name: secretPath, format: 'raw' }, withBitmaps: false });
    writeFileSync(join(directory, 'guest.raw'), guest.bytes);
    const overlay = buildImage({
      ...{ backing: { name: 'guest.raw', format: 'raw' }, withBitmaps: false, clusterBits: 12 },
    });
    writeFileSync(path, overlay.bytes);
    using image = openImage(path, { format: 'qcow2' });
    const [first] = overlay.unallocated;
    const bytes = new Uint8Array(4096);
    image.read(bytes, first! * 4096);
    const start = first! * 4096;
    const expected = Buffer.alloc(4096);
    expected.set(guest.bytes.subarray(start, start + 4096));
    expect(Buffer.from(bytes).equals(expected)).toBe(true);
    expect(image.backing?.format).toBe('raw');
  });
});

describe('what is not a disk image', () => {
  it.each([
    ['a directory', (at: string) => mkdirSync(at)],
    ['an empty file', (at: string) => writeFileSync(at, '')],
    ['a pipe that nobody writes to', (at: string) => run('mkfifo', [at])],
    ['a device that never ends', (at: string) => symlinkSync('/dev/zero', at)],
    ['a link to itself', (at: string) => symlinkSync(at, at)],
    ['nothing', () => undefined],
  ])('%s is one typed error', async (name, make) => {
    const subject = join(directory, name);
    make(subject);
    const outcome = await reader.read(subject);
    expect(judgeConduct(outcome)).toEqual([]);
    expect('parts' in outcome && outcome.parts.map(({ part }) => part)).toEqual(['open']);
    expect('parts' in outcome && outcome.parts[0]?.error?.isTyped).toBe(true);
  });
});
