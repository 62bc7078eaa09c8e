/** Repairs the damaged images of the corpus, beside QEMU, and interrupted at every write. */

import { readFileSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { MemoryDevice } from '../../../src/device/memory.ts';
import { Qcow2Error } from '../../../src/errors.ts';
import { checkMetadata } from '../../../src/qcow2/check/check-metadata.ts';
import { CheckReport } from '../../../src/qcow2/check/check-report.ts';
import { repairMetadata } from '../../../src/qcow2/check/repair.ts';
import type { RepairOutcome } from '../../../src/qcow2/check/repair.ts';
import { Qcow2Image, readHeader } from '../../../src/qcow2/image.ts';
import { makeCheckSubjects } from '../../fuzz/check-subjects.ts';
import { damageMetadata } from '../../fuzz/damage-metadata.ts';
import { corpusImages, unpackImage } from '../../images/corpus.ts';
import { compareRepairs } from '../../operations/repair-support.ts';
import { CrashStates } from '../../support/crash-states.ts';
import { qemuImg, qemuIo, tryRun } from '../../support/qemu.ts';
import { Random } from '../../support/random.ts';
import { RecordingFile } from '../../support/recording-file.ts';
import type { LoggedOperation } from '../../support/recording-file.ts';
import { sharedTemporaryDirectory } from '../../support/temp.ts';

const directory = sharedTemporaryDirectory();

const CRASH_SEED = Number(process.env.QCOW2_FUZZ_SEED ?? 1);
const CRASH_CASES = Number(process.env.QCOW2_FUZZ_CASES ?? 12);

/** QEMU takes minutes for tens of thousands of snapshots. */
const TOO_SLOW = /snapshot-count-(huge|limit)/;

/** Where opening is meant to be stricter, or laxer, than QEMU's. */
const OPENED_OTHERWISE = /backing-|data-file|header-length-odd/;

const damaged = corpusImages().filter(
  ({ name }) => name.startsWith('damage/') && !TOO_SLOW.test(name) && !OPENED_OTHERWISE.test(name),
);

describe('repairing the damaged images of the corpus', () => {
  it.each(damaged.map((image) => [image.name, image] as const))(
    'is as good as QEMU does it: %s',
    (name, image) => {
      for (const fix of ['leaks', 'all'] as const) {
        const path = unpackImage(image, join(directory, basename(name)));
        expect(compareRepairs(path, fix)).toEqual([]);
      }
    },
  );
});

/** Repairs an image in memory. */
function repairBytes(bytes: Uint8Array, fix: 'leaks' | 'all', log: LoggedOperation[] = []) {
  const file = new RecordingFile(bytes, log);
  const outcome = repairMetadata({ header: readHeader(file), file, path: 'image' }, { fix });
  return { outcome, repaired: Uint8Array.from(file.bytes) };
}

/** What is wrong with an image, and what its disk reads as. */
function stateOf(bytes: Uint8Array) {
  const file = new MemoryDevice(bytes);
  const header = readHeader(file);
  let missing = 0;
  let isUnreadable = false;
  const report = new CheckReport(({ message }) => {
    if (message.startsWith('ERROR cluster')) missing++;
    if (message.startsWith("Can't get refcount")) isUnreadable = true;
  });
  try {
    checkMetadata({ header, file }, report);
  } catch (error) {
    if (!(error instanceof Qcow2Error)) throw error;
    missing = Infinity;
  }
  return { missing, isUnreadable, data: diskOf(bytes) };
}

function diskOf(bytes: Uint8Array): Buffer | string {
  const file = new MemoryDevice(bytes);
  try {
    const image = new Qcow2Image({ file, header: readHeader(file), path: 'image' });
    const disk = Buffer.alloc(image.size);
    image.read(disk, 0);
    return disk;
  } catch (error) {
    if (!(error instanceof Qcow2Error)) throw error;
    return error.code;
  }
}

/** Interrupts a repair wherever it can be; returns how many states that made, and what was wrong. */
function interruptRepair(
  bytes: Uint8Array,
  seed: number,
): { states: number; complaints: string[] } {
  const log: LoggedOperation[] = [];
  let whole: { outcome: RepairOutcome; repaired: Uint8Array };
  try {
    whole = repairBytes(bytes, 'all', log);
  } catch (error) {
    if (!(error instanceof Qcow2Error)) throw error;
    return { states: 0, complaints: log.length === 0 ? [] : ['refused, but written to'] };
  }
  const before = stateOf(bytes);
  const after = diskOf(whole.repaired);
  const crash = new CrashStates(log, [bytes]);
  const random = new Random(seed);
  const complaints: string[] = [];
  let states = 0;
  for (let position = 0; position <= log.length; position++) {
    crash.advanceTo(position);
    const left = [crash.complete(), crash.torn(random), crash.torn(random)];
    for (const [index, [file]] of left.entries()) {
      states++;
      const image = Uint8Array.from(file!);
      const where = `${index === 0 ? 'after' : 'torn at'} ${position} of ${log.length}`;
      const { missing, isUnreadable, data } = stateOf(image);
      if (isUnreadable && !before.isUnreadable) complaints.push(`${where}: counts are unreadable`);
      if (missing > before.missing) complaints.push(`${where}: more clusters are not counted`);
      if (!isEither(data, before.data, after))
        complaints.push(`${where}: the disk reads otherwise`);
      const again = repairBytes(image, 'all');
      if (!isEither(diskOf(again.repaired), before.data, after))
        complaints.push(`${where}: repair hurts`);
      if (again.outcome.left.corruptions > whole.outcome.left.corruptions) {
        complaints.push(`${where}: it cannot be repaired as before`);
      }
    }
  }
  return { states, complaints };
}

/** Whether every sector is as in one or the other; tables can be part of a damaged image's disk. */
function isEither(data: Buffer | string, one: Buffer | string, other: Buffer | string): boolean {
  // What cannot be read before may be repaired, or not.
  if (typeof one === 'string' || typeof other === 'string') return true;
  if (typeof data === 'string') return false;
  for (let at = 0; at < data.length; at += 512) {
    const isAs = (disk: Buffer): boolean => data.compare(disk, at, at + 512, at, at + 512) === 0;
    if (!isAs(one) && !isAs(other)) return false;
  }
  return true;
}

describe('a repair that is interrupted', () => {
  it.each(damaged.map((image) => [image.name, image] as const))(
    'leaves the image no worse than it was: %s',
    (name, image) => {
      const bytes = readFileSync(unpackImage(image, join(directory, basename(name))));
      const openable = (): boolean => {
        try {
          return readHeader(new MemoryDevice(bytes)).size > 0;
        } catch {
          return false;
        }
      };
      expect(openable() ? interruptRepair(bytes, 1).complaints : []).toEqual([]);
    },
  );

  it('leaves images damaged at random no worse than they were', { timeout: 120_000 }, () => {
    const subjects = makeCheckSubjects(directory).filter(({ name }) => !name.includes('external'));
    const complaints: string[] = [];
    let states = 0;
    for (let seed = 1; seed <= CRASH_CASES; seed++) {
      const subject = subjects[seed % subjects.length]!;
      const { bytes, changes } = damageMetadata(subject, CRASH_SEED * 1_000_003 + seed);
      try {
        readHeader(new MemoryDevice(bytes));
      } catch {
        continue;
      }
      const found = interruptRepair(bytes, seed);
      states += found.states;
      const where = `${subject.name}, seed ${seed} (${changes.join(', ')})`;
      complaints.push(...found.complaints.slice(0, 2).map((complaint) => `${where}: ${complaint}`));
    }
    expect(complaints).toEqual([]);
    expect(states).toBeGreaterThan(CRASH_CASES);
  });
});

describe('repairMetadata', () => {
  const clusterSize = 4096;

  function makeImage(name: string, options = ''): string {
    const path = join(directory, name);
    qemuImg('create', '-q', '-f', 'qcow2', '-o', `cluster_size=4k${options}`, path, '1M');
    qemuIo(path, ['write -q -P 1 0 40k']);
    return path;
  }

  /** Repairs what is at `path` after `damage`, and has QEMU check it; returns its exit code. */
  function repairFile(path: string, damage: (bytes: Buffer) => void, fix: 'leaks' | 'all' = 'all') {
    const bytes = readFileSync(path);
    damage(bytes);
    const { outcome, repaired } = repairBytes(bytes, fix);
    writeFileSync(path, repaired);
    const { exitCode, stdout, stderr } = tryRun('qemu-img', ['check', '-f', 'qcow2', path]);
    const header = readHeader(new MemoryDevice(repaired));
    return { outcome, exitCode, said: stdout + stderr, header, repaired };
  }

  it('clears the dirty and the corrupt bit of an image that is sound afterwards', () => {
    const { header, outcome } = repairFile(makeImage('marked'), (bytes) => (bytes[79]! |= 3));
    expect(header).toMatchObject({ isDirty: false, isCorrupt: false });
    expect(outcome).toMatchObject({ corruptionsFixed: 0, leaksFixed: 0 });
  });

  it('leaves them where something is left that is wrong', () => {
    const { header, outcome } = repairFile(makeImage('reserved'), (bytes) => {
      bytes[79]! |= 3;
      bytes[Number(bytes.readBigUInt64BE(40))]! |= 0x20;
    });
    expect(header).toMatchObject({ isDirty: true, isCorrupt: true });
    expect(outcome.left.corruptions).toBe(1);
  });

  it('repairs what lazy refcounts left behind', () => {
    const path = makeImage('lazy', ',lazy_refcounts=on');
    tryRun('qemu-io', ['-f', 'qcow2', '-c', 'write -P 2 100k 80k', '-c', 'abort', path]);
    const before = readHeader(new MemoryDevice(readFileSync(path)));
    expect(before.isDirty).toBe(true);
    const { header, exitCode, outcome } = repairFile(path, () => undefined);
    expect(header.isDirty).toBe(false);
    expect(outcome.corruptionsFixed).toBeGreaterThan(0);
    expect(exitCode).toBe(0);
    qemuIo(path, ['read -P 2 100k 80k', 'read -P 1 0 40k']);
  });

  it('drops a bitmaps extension that is not to be trusted, and frees its clusters', () => {
    const path = makeImage('stale');
    qemuImg('bitmap', '--add', path, 'one');
    const clear = (bytes: Buffer): unknown => (bytes[95]! &= ~1);
    const { header, exitCode, said, outcome } = repairFile(path, clear, 'leaks');
    expect(header.extensions.bitmaps).toBeUndefined();
    expect(outcome.leaksFixed).toBeGreaterThan(0);
    expect([exitCode, said]).toEqual([0, expect.not.stringContaining('warning')]);
  });

  it.each(['bitmap-data-past-end', 'bitmap-table-past-end'])(
    'marks bitmaps that lost bits: %s',
    (name) => {
      const image = corpusImages().find((candidate) => candidate.name === `damage/${name}`)!;
      const path = unpackImage(image, join(directory, `${name}-marked`));
      const { repaired, exitCode, outcome } = repairFile(path, () => undefined);
      const file = new MemoryDevice(repaired);
      const { bitmaps } = new Qcow2Image({ file, header: readHeader(file), path });
      expect(bitmaps.some(({ isInconsistent }) => isInconsistent)).toBe(true);
      expect(exitCode).toBe(0);
      expect(outcome.corruptionsFixed).toBe(1);
    },
  );

  it('puts new refcounts where nothing refers to, not even past the end of the file', () => {
    const path = makeImage('dangling');
    let end = 0;
    const { exitCode, repaired, header } = repairFile(path, (bytes) => {
      const l1 = Number(bytes.readBigUInt64BE(40));
      const l2 = Number(bytes.readBigUInt64BE(l1) & 0xff_ffff_ffff_fe00n);
      // Entries 100 to 107 name the clusters from the second after the end of the file.
      for (let index = 0; index < 8; index++) {
        const offset = BigInt(bytes.length + (1 + index) * clusterSize);
        bytes.writeBigUInt64BE((1n << 63n) | offset, l2 + 8 * (100 + index));
      }
      // A reserved bit: the refcount structure is not to be trusted, but not to be overwritten either.
      bytes[Number(bytes.readBigUInt64BE(48)) + 7]! |= 1;
      end = bytes.length;
    });
    expect(exitCode).toBe(0);
    expect(header.refcountTableOffset).toBeGreaterThanOrEqual(end);
    const disk = diskOf(repaired) as Buffer;
    expect(disk.subarray(100 * clusterSize, 108 * clusterSize).every((byte) => byte === 0)).toBe(
      true,
    );
  });

  it('refuses what needs more than freeing leaks, and writes nothing', () => {
    const bytes = readFileSync(makeImage('lost'));
    bytes.writeBigUInt64BE(BigInt(bytes.length * 1024), 48);
    const log: LoggedOperation[] = [];
    expect(() => repairBytes(bytes, 'leaks', log)).toThrow(/rebuilt.*-r all/);
    expect(log).toEqual([]);
  });
});
