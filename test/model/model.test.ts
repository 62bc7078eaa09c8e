/**
 * Random sequences of everything that can be done to an image, against plain arrays: we read what
 * was written, and so does QEMU; our check and QEMU's find nothing.
 *
 *     QCOW2_MODEL_RUNS=10000 QCOW2_MODEL_SEED=7 npx vitest run test/model
 *
 * A failure is shrunk to a short script, and says how it is run again: with its seed and path, as in
 *
 *     QCOW2_MODEL_SEED=7 QCOW2_MODEL_PATH=12:3:0 npx vitest run test/model
 */

import { existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterAll, it } from 'vitest';
import { describePeers } from '../support/peers.ts';
import { sequenceProblem } from './run-sequence.ts';
import { sequences } from './sequences.ts';

const RUNS = Number(process.env.QCOW2_MODEL_RUNS ?? 60);
const SEED = Number(process.env.QCOW2_MODEL_SEED ?? Date.now() % 1_000_000);
const PATH = process.env.QCOW2_MODEL_PATH;
/** Shrinking ends after this long: a script that is not the shortest is better than none. */
const MAX_SHRINK_MS = 120_000;

// Memory rather than a disk: the files are flushed all the time.
const root = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'qcow2-model-'));
afterAll(() => rmSync(root, { recursive: true, force: true }));

describePeers(['qemu-img'], 'an image that is written to', () => {
  it(`is what the model is, in ${RUNS} sequences from seed ${SEED}`, { timeout: 1e9 }, () => {
    let count = 0;
    let problem: string | undefined;
    let failedAt: number | undefined;
    const result = fc.check(
      fc.property(sequences(), (sequence) => {
        if (failedAt !== undefined && Date.now() - failedAt > MAX_SHRINK_MS) return true;
        const directory = join(root, String(count++));
        mkdirSync(directory);
        const found = sequenceProblem(sequence, directory);
        rmSync(directory, { recursive: true, force: true });
        if (found === undefined) return true;
        problem = found;
        failedAt ??= Date.now();
        return false;
      }),
      { numRuns: RUNS, seed: SEED, ...(PATH === undefined ? {} : { path: PATH }) },
    );
    if (!result.failed) return;
    const replay = `QCOW2_MODEL_SEED=${result.seed} QCOW2_MODEL_PATH=${result.counterexamplePath}`;
    throw new Error(`${problem}\n\nagain: ${replay} npx vitest run test/model`);
  });
});
