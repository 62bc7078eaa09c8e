/**
 * Full disks and broken ones: each host operation of a scenario fails in turn, and the error
 * reaches the caller, the image on disk is valid, and the same image goes on working.
 *
 *     QCOW2_FAULT_SEED=7 QCOW2_FAULT_ROUNDS=5 npx vitest run test/fault
 */

import { expect, it } from 'vitest';
import { newImage, recordRandom } from '../crash/recording.ts';
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
const ROUNDS = Number(process.env.QCOW2_FAULT_ROUNDS ?? 1);
const OPERATIONS = 14;
/** Of longer scenarios only every nth operation fails, with another seed others. */
const MAX_FAULTS = 40;
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
  const made = makeVariant(variant, directory);
  const random = new Random(seed);
  const { history } = recordRandom(newImage(variant, made), { random, count: OPERATIONS });
  const operations = history.entries.map(({ operation }) => operation);
  if (variant.filled === 0) return { variant, made, operations };
  // What is full already has to grow.
  const length = (variant.size - variant.filled) / 2;
  const first = { kind: 'write', offset: variant.filled, length } as const;
  return { variant, made, operations: [first, { kind: 'flush' }, ...operations] };
}

describePeers(['qemu-img'], 'a host operation that fails', () => {
  for (const variant of CRASH_VARIANTS) {
    it(`does no harm, whichever it is: ${variant.name}`, { timeout: 120_000 }, () => {
      for (let seed = SEED; seed < SEED + ROUNDS; seed++) {
        const scenario = scenarioOf(variant, seed);
        const counts = countOperations(scenario);
        expect(counts.change).toBeGreaterThan(5);
        const complaints: string[] = [];
        for (const [target, kind] of FAULTS) {
          const stride = Math.ceil(counts[target] / MAX_FAULTS);
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
