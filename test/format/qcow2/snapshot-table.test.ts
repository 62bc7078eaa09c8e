import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import type { Qcow2Header } from '../../../src/format/qcow2/header.ts';
import { decodeHeader } from '../../../src/format/qcow2/header.ts';
import { encodeSnapshotTable } from '../../../src/format/qcow2/snapshot-table.ts';
import type { SnapshotRow } from '../../../src/format/qcow2/snapshot-table.ts';
import { readSnapshotTable } from '../../../src/qcow2/snapshots.ts';

const text = fc
  .string({ unit: 'grapheme', maxLength: 60 })
  .filter((value) => !value.includes('\0'));
const u32 = fc.integer({ min: 0, max: 0xffff_ffff });

const rows: fc.Arbitrary<SnapshotRow> = fc.record({
  id: text,
  name: text,
  l1Size: u32,
  l1TableOffset: fc.maxSafeNat(),
  dateSeconds: u32,
  dateNanoseconds: u32,
  vmClockNanoseconds: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
  vmStateSize: fc.oneof(u32, fc.maxSafeNat()),
  diskSize: fc.maxSafeNat(),
  icount: fc.option(fc.bigInt({ min: 0n, max: 2n ** 64n - 2n }), { nil: undefined }),
  unknownExtra: fc.uint8Array({ maxLength: 1000 }),
  offset: fc.constant(0),
  length: fc.constant(0),
});

/** Reads a table that is all there is of a file. */
function decodeTable(bytes: Uint8Array, snapshotCount: number): SnapshotRow[] {
  const header = { snapshotsOffset: 0, snapshotCount, size: 0 } as Qcow2Header;
  return readSnapshotTable(header, new MemoryDevice(bytes));
}

/** Rows without where they are. */
function placeless(table: readonly SnapshotRow[]): SnapshotRow[] {
  return table.map((row) => ({ ...row, offset: 0, length: 0 }));
}

describe('the snapshot table', () => {
  it('is decoded as it was encoded', () => {
    fc.assert(
      fc.property(fc.array(rows, { maxLength: 6 }), (table) => {
        const bytes = encodeSnapshotTable(table);
        expect(bytes.length % 8).toBe(0);
        expect(placeless(decodeTable(bytes, table.length))).toEqual(table);
      }),
    );
  });

  it.each(['snapshots', 'snapshots-same-name', 'snapshots-disk-size', 'snapshot-vm-state'])(
    'is the bytes that QEMU wrote: %s',
    (image) => {
      const bytes = readFileSync(`images/features/${image}.qcow2`);
      const header = decodeHeader(bytes);
      const encoded = encodeSnapshotTable(readSnapshotTable(header, new MemoryDevice(bytes)));
      const { snapshotsOffset: start } = header;
      expect(encoded.length).toBeGreaterThan(0);
      // A file may end before the last row's padding does.
      const expected = Buffer.alloc(encoded.length);
      bytes.copy(expected, 0, start);
      expect(Buffer.from(encoded)).toEqual(expected);
    },
  );

  it('keeps extra data that is not known', () => {
    const bytes = readFileSync('images/features/snapshots-long-extra.qcow2');
    const table = readSnapshotTable(decodeHeader(bytes), new MemoryDevice(bytes));
    expect(table.some(({ unknownExtra }) => unknownExtra.length > 0)).toBe(true);
    const encoded = encodeSnapshotTable(table);
    expect(placeless(decodeTable(encoded, table.length))).toEqual(placeless(table));
  });

  it('says the size of the VM state in 32 bits too, where these suffice', () => {
    const [row] = fc.sample(rows, 1);
    const word = (vmStateSize: number): number =>
      Buffer.from(encodeSnapshotTable([{ ...row!, vmStateSize }])).readUInt32BE(32);
    expect(word(0xffff_ffff)).toBe(0xffff_ffff);
    expect(word(0x1_0000_0001)).toBe(0);
  });

  it('keeps names that are not UTF-8, or end in a NUL', () => {
    const [row] = fc.sample(rows, 1);
    const named = (bytes: number[]): Uint8Array =>
      encodeSnapshotTable([
        { ...row!, texts: { id: Uint8Array.of(0x31), name: Uint8Array.from(bytes) } },
      ]);
    for (const bytes of [named([0xe9, 0xff]), named([0x41, 0x00])]) {
      expect(Buffer.from(encodeSnapshotTable(decodeTable(bytes, 1))).equals(bytes)).toBe(true);
    }
    expect(decodeTable(named([0x41, 0x00]), 1)[0]!.name).toBe('A');
  });
});
