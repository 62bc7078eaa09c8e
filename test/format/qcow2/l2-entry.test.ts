import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  compressedEntry,
  compressedLocation,
  compressedOffsetLimit,
  EntryFlag,
  entryHigh,
  entryLow,
  entryOffset,
  READS_ZERO,
} from '../../../src/format/qcow2/l2-entry.ts';

/** The end of the data has to be exact too. */
const MAX_OFFSET = Number.MAX_SAFE_INTEGER - 2 ** 22;

describe('an L1 or L2 entry', () => {
  it('holds the offset and the flags that it was made of', () => {
    const sectors = fc.maxSafeNat().map((offset) => offset - (offset % 512));
    fc.assert(
      fc.property(sectors, fc.boolean(), fc.boolean(), (offset, isCopied, isZero) => {
        const high = entryHigh(offset, isCopied ? EntryFlag.COPIED : 0);
        const low = entryLow(offset, isZero ? READS_ZERO : 0);
        expect(entryOffset(high, low)).toBe(offset);
        expect([high >>> 31, low & 1]).toEqual([Number(isCopied), Number(isZero)]);
        expect(high).toBeGreaterThanOrEqual(0);
        expect(low).toBeGreaterThanOrEqual(0);
      }),
    );
  });

  it('is the words of the specification', () => {
    expect(entryHigh(0x12_3456_7000, EntryFlag.COPIED)).toBe(0x8000_0012);
    expect(entryLow(0x12_3456_7000, READS_ZERO)).toBe(0x3456_7001);
    expect(() => entryHigh(100)).toThrow(/internal error/);
  });
});

describe('the entry of a compressed cluster', () => {
  it('reaches from its offset to the end of the last sector', () => {
    const clusters = fc.integer({ min: 9, max: 21 }).chain((clusterBits) =>
      fc.record({
        clusterBits: fc.constant(clusterBits),
        offset: fc.nat({ max: Math.min(MAX_OFFSET, compressedOffsetLimit(clusterBits) - 1) }),
        length: fc.integer({ min: 1, max: 2 ** clusterBits }),
      }),
    );
    fc.assert(
      fc.property(clusters, ({ clusterBits, offset, length }) => {
        const { high, low } = compressedEntry({ offset, length }, clusterBits);
        expect(high >>> 30).toBe(1);
        const padding = (512 - ((offset + length) % 512)) % 512;
        const decoded = compressedLocation(high, low, clusterBits);
        expect(decoded).toEqual({ offset, length: length + padding });
        expect(compressedEntry(decoded, clusterBits)).toEqual({ high, low });
      }),
    );
  });

  it('does not hold what its bits cannot', () => {
    const limit = compressedOffsetLimit(21);
    expect(() => compressedEntry({ offset: limit, length: 512 }, 21)).toThrow(/within reach/);
    expect(() => compressedEntry({ offset: 0, length: 1025 }, 9)).toThrow(/two clusters/);
  });
});
