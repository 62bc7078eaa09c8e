import { describe, expect, it } from 'vitest';
import { CrashStates } from './crash-states.ts';
import { Random } from './random.ts';
import { RecordingFile } from './recording-file.ts';
import type { LoggedOperation } from './recording-file.ts';
import { SECTOR_BYTES, stampedData } from './stamps.ts';

const SIZE = 8 * SECTOR_BYTES;

function stamp(sequence: number, sector: number, sectors: number): Buffer {
  const [offset, length] = [sector * SECTOR_BYTES, sectors * SECTOR_BYTES];
  return stampedData({ sequence, offset, length });
}

function sectorsOf(bytes: Uint8Array): Buffer[] {
  const count = Math.ceil(bytes.length / SECTOR_BYTES);
  return Array.from({ length: count }, (_, index) =>
    Buffer.from(bytes.subarray(index * SECTOR_BYTES, (index + 1) * SECTOR_BYTES)),
  );
}

describe('a recorded file', () => {
  it('can be rebuilt as it was after each operation', () => {
    const log: LoggedOperation[] = [];
    const initial = stamp(1, 0, 4);
    const file = new RecordingFile(initial, log);
    const seen = [Buffer.from(file.bytes)];
    const random = new Random(5);
    for (let count = 1; count < 60; count++) {
      const at = random.below(8) * SECTOR_BYTES + random.below(2) * 100;
      switch (random.below(6)) {
        case 0:
          file.resize(at + 1);
          break;
        case 1:
          file.writeZeroes(at, 700);
          break;
        case 2:
          if (file.size > 0) file.discard(0, Math.min(at, file.size));
          break;
        case 3:
          file.flush();
          break;
        case 4:
          file.writeParts([stamp(count, 0, 1), stamp(count, 1, 1)], at);
          break;
        default:
          file.write(stamp(count, 0, 2), at);
      }
      seen.push(Buffer.from(file.bytes));
      expect(log).toHaveLength(count);
    }
    const states = new CrashStates(log, [initial]);
    seen.forEach((bytes, position) => {
      states.advanceTo(position);
      expect(Buffer.from(states.complete()[0]!).equals(bytes)).toBe(true);
    });
  });
});

describe('a power cut', () => {
  function statesAfter(act: (file: RecordingFile) => void): CrashStates {
    const log: LoggedOperation[] = [];
    const initial = stamp(1, 0, 8);
    act(new RecordingFile(initial, log));
    const states = new CrashStates(log, [initial]);
    states.advanceTo(log.length);
    return states;
  }

  it('takes nothing of what was flushed', () => {
    const states = statesAfter((file) => {
      file.write(stamp(2, 2, 3), 2 * SECTOR_BYTES);
      file.flush();
    });
    const expected = Buffer.concat([stamp(1, 0, 2), stamp(2, 2, 3), stamp(1, 5, 3)]);
    const random = new Random(1);
    for (let count = 0; count < 50; count++) {
      expect(Buffer.from(states.torn(random)[0]!).equals(expected)).toBe(true);
    }
  });

  it('leaves each sector of the rest old or new, in any combination', () => {
    const states = statesAfter((file) => {
      file.write(stamp(2, 0, 2), 0);
      file.writeZeroes(SECTOR_BYTES, 2 * SECTOR_BYTES);
      file.write(stamp(3, 6, 4), 6 * SECTOR_BYTES);
    });
    const zeroes = Buffer.alloc(SECTOR_BYTES);
    const allowed = Array.from({ length: 10 }, (_, sector) => {
      const one = (sequence: number): Buffer => stamp(sequence, sector, 1);
      const versions: Buffer[] = sector < 8 ? [one(1)] : [zeroes];
      if (sector < 2) versions.push(one(2));
      if (sector === 1 || sector === 2) versions.push(zeroes);
      if (sector >= 6) versions.push(one(3));
      return versions;
    });
    const random = new Random(2);
    const met = new Set<string>();
    for (let count = 0; count < 2000; count++) {
      const [bytes] = states.torn(random);
      expect(bytes!.length).toBeGreaterThanOrEqual(SIZE);
      const fates = sectorsOf(bytes!).map((sector, index) =>
        allowed[index]!.findIndex((version) => version.equals(sector)),
      );
      expect(fates).not.toContain(-1);
      met.add(fates.join());
    }
    // Sectors fail one by one: that makes many combinations.
    expect(met.size).toBeGreaterThan(60);
    expect(met).toContain('0,0,0,0,0,0,0,0');
    expect(met).toContain('1,2,1,0,0,0,1,1,1,1');
  });
});
