/**
 * Checks images whose metadata was damaged at random: the verdict, every number and every message
 * are those of `qemu-img check`.
 *
 *     QCOW2_FUZZ_SEED=7 QCOW2_FUZZ_CASES=10000 npx vitest run test/fuzz/check.test.ts
 *
 * A complaint names the image and the case's own seed, from which it can be made again.
 */

import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { describe, expect, it } from 'vitest';
import { check, qemuCheck } from '../operations/check-support.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { makeCheckSubjects } from './check-subjects.ts';
import type { CheckSubject } from './check-subjects.ts';
import { damageMetadata } from './damage-metadata.ts';

const SEED = Number(process.env.QCOW2_FUZZ_SEED ?? 1);
const CASES = Number(process.env.QCOW2_FUZZ_CASES ?? 300);

const directory = sharedTemporaryDirectory();

/** Checks one damaged image; returns what was wrong. */
function fuzzOnce(subject: CheckSubject, seed: number): string[] {
  const path = join(directory, 'damaged.qcow2');
  const { bytes, changes } = damageMetadata(subject, seed);
  writeFileSync(path, bytes);
  const theirs = qemuCheck(path);
  // QEMU itself may crash; then there is no verdict.
  if (theirs.exitCode < 0) return [];
  const ours = check(path);
  const isSame =
    isDeepStrictEqual(ours.result, theirs.result) &&
    (theirs.result === undefined || isDeepStrictEqual(ours.messages, theirs.messages));
  if (isSame) return [];
  const where = `${subject.name}, seed ${seed} (${changes.join(', ')})`;
  return [`${where}:\n  ${JSON.stringify(ours)}\n  ${JSON.stringify(theirs)}`];
}

describe('checking damaged images', () => {
  it(`agrees with QEMU in ${CASES} cases from seed ${SEED}`, { timeout: CASES * 1000 }, () => {
    const subjects = makeCheckSubjects(directory);
    const complaints: string[] = [];
    for (let index = 0; index < CASES; index++) {
      const subject = subjects[index % subjects.length]!;
      complaints.push(...fuzzOnce(subject, SEED * 1_000_003 + index));
    }
    expect(complaints).toEqual([]);
  });
});
