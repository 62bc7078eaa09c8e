/**
 * Full disks and broken ones: each host operation of a scenario fails in turn, and the error
 * reaches the caller, the image on disk is valid, and the same image goes on working.
 *
 *     QCOW2_FAULT_SEED=7 QCOW2_FAULT_ROUNDS=5 npx vitest run test/fault
 */

import { expect, it } from 'vitest';
import { crashedImage, newImage, randomCrash, recordRandom } from '../crash/recording.ts';
import { CRASH_VARIANTS } from '../crash/variants.ts';
import type { Fault, FaultKind, FaultTarget } from '../support/fault-file.ts';
import { makeVariant } from '../support/image-variants.ts';
import type { ImageVariant } from '../support/image-variants.ts';
import { describePeers } from '../support/peers.ts';
import { Random } from '../support/random.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { countOperations, runWithFault } from './fault-run.ts';
import type { FaultScenario } from './fault-run.ts';

const SEED = Number(process.env.QCOW2_FAULT_SEED ?? 20_260);
const ROUNDS = Number(process.env.QCOW2_FAULT_ROUNDS ?? 2);
const OPERATIONS = 14;
/** Of longer scenarios only every nth operation fails, with another seed others. */
const MAX_FAULTS = 24;
const MAX_FAULTS_LARGE = 12;
/** Each run reads the whole disk. */
const MAX_SIZE = 512 * 1024;

const FAULTS: readonly [FaultTarget, FaultKind][] = [
  ['change', 'ENOSPC'],
  ['change', 'EIO'],
  ['change', 'short'],
  ['change', 'full'],
  ['read', 'EIO'],
];

const directory = sharedTemporaryDirectory();

function scenarioOf(large: ImageVariant, seed: number): FaultScenario {
  const variant = {
    ...large,
    size: large.filled > 0 ? large.size : Math.min(large.size, MAX_SIZE),
  };
  const random = new Random(seed);
  let start = newImage(variant, makeVariant(variant, directory));
  // Half of them begin with what a crash left.
  if (seed % 2 === 1) {
    const before = recordRandom(start, { random, count: OPERATIONS });
    start = crashedImage(variant, randomCrash(before, random));
  }
  const { history } = recordRandom(start, { random, count: OPERATIONS });
  const operations = history.entries.map(({ operation }) => operation);
  if (variant.filled === 0 || seed % 2 === 1) return { start, operations };
  // What is full already has to grow.
  const length = (variant.size - variant.filled) / 2;
  const first = { kind: 'write', offset: variant.filled, length } as const;
  return { start, operations: [first, { kind: 'flush' }, ...operations] };
}

describePeers(['qemu-img'], 'a host operation that fails', () => {
  for (const variant of CRASH_VARIANTS) {
    it(`does no harm, whichever it is: ${variant.name}`, { timeout: ROUNDS * 120_000 }, () => {
      for (let seed = SEED; seed < SEED + ROUNDS; seed++) {
        const scenario = scenarioOf(variant, seed);
        const counts = countOperations(scenario);
        expect(counts.change).toBeGreaterThan(5);
        const complaints: string[] = [];
        for (const [target, kind] of FAULTS) {
          const most = variant.filled > 0 ? MAX_FAULTS_LARGE : MAX_FAULTS;
          const stride = Math.ceil(counts[target] / most);
          for (let index = seed % stride; index < counts[target]; index += stride) {
            const fault: Fault = { target, index, kind };
            const { problem } = runWithFault(scenario, fault);
            if (problem !== undefined) complaints.push(`${JSON.stringify(fault)}: ${problem}`);
          }
        }
        expect(complaints.slice(0, 3), `seed ${seed}`).toEqual([]);
      }
    });
  }
});
