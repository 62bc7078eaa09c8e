/**
 * Repairs images whose metadata was damaged at random: nothing that `qemu-img check -r` repairs is
 * left, and the disk reads as it did, or as it does after QEMU's repair.
 *
 *     QCOW2_FUZZ_SEED=7 QCOW2_FUZZ_CASES=3000 npx vitest run test/fuzz/repair.test.ts
 *
 * A complaint names the image and the case's own seed, from which it can be made again.
 */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { compareRepairs } from '../operations/repair-support.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { makeCheckSubjects } from './check-subjects.ts';
import { damageMetadata } from './damage-metadata.ts';

const SEED = Number(process.env.QCOW2_FUZZ_SEED ?? 1);
const CASES = Number(process.env.QCOW2_FUZZ_CASES ?? 40);

const directory = sharedTemporaryDirectory();

describe('repairing damaged images', () => {
  it(`is as good as QEMU's in ${CASES} cases from ${SEED}`, { timeout: CASES * 60_000 }, () => {
    // With bitmaps, QEMU's repair loses all snapshots.
    const subjects = makeCheckSubjects(directory, ['snapshots']);
    const path = join(directory, 'damaged.qcow2');
    const complaints: string[] = [];
    for (let index = 0; index < CASES; index++) {
      const seed = SEED * 1_000_003 + index;
      const subject = subjects[index % subjects.length]!;
      const { bytes, changes } = damageMetadata(subject, seed);
      writeFileSync(path, bytes);
      const where = `${subject.name}, seed ${seed} (${changes.join(', ')})`;
      const found = compareRepairs(path, seed % 3 === 0 ? 'leaks' : 'all');
      complaints.push(...found.map((complaint) => `${where}: ${complaint}`));
    }
    expect(complaints).toEqual([]);
  });
});
