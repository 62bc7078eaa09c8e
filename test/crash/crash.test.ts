/**
 * Power cuts at any instant: what was flushed is there, everything else is old or new, and the
 * image is valid but for clusters that are counted and not used.
 *
 *     QCOW2_CRASH_SEED=7 QCOW2_CRASH_ROUNDS=10 npx vitest run test/crash
 *     node test/crash/run.mjs --seed 7 --points 1000000
 *
 * A complaint names the scenario's own seed, with which it can be run again.
 */

import { afterAll, expect, it } from 'vitest';
import { CrashStates } from '../support/crash-states.ts';
import { describePeers } from '../support/peers.ts';
import { Random } from '../support/random.ts';
import { sharedTemporaryDirectory } from '../support/temp.ts';
import { makeVariant } from '../support/image-variants.ts';
import { judgeCrash } from './judge.ts';
import { newImage, recordRandom } from './recording.ts';
import { runScenario, SEEDS_A_ROUND } from './scenario.ts';
import { CRASH_VARIANTS } from './variants.ts';

/** The seed that is always tried, and one that is not known before. */
const FIXED_SEED = 20_260;
const SEED = Number(process.env.QCOW2_CRASH_SEED ?? Date.now() % 1_000_000);
const ROUNDS = Number(process.env.QCOW2_CRASH_ROUNDS ?? 1);

const directory = sharedTemporaryDirectory();
/** QEMU takes a hundred times as long as our own check. */
const ASK_QEMU_EVERY = 400;

let points = 0;
let qemuPoints = 0;

describePeers(['qemu-img'], 'power cuts', () => {
  afterAll(() => {
    process.stdout.write(`${points} crash points, ${qemuPoints} of them judged by QEMU too\n`);
  });

  for (const [index, { name }] of CRASH_VARIANTS.entries()) {
    for (const start of [FIXED_SEED, SEED]) {
      it(
        `lose nothing and damage nothing: ${name}, from seed ${start}`,
        { timeout: 120_000 },
        () => {
          for (let round = 0; round < ROUNDS; round++) {
            const seed = (start + round) * SEEDS_A_ROUND + index;
            const result = runScenario({ seed, askQemuEvery: ASK_QEMU_EVERY, directory });
            points += result.points;
            qemuPoints += result.qemuPoints;
            expect(result.problem).toBeUndefined();
            expect(result.points).toBeGreaterThan(20);
          }
        },
      );
    }
  }

  it('are found to do damage where nothing waits for flushes', () => {
    const variant = CRASH_VARIANTS.find(({ name }) => name.includes('512'))!;
    const start = newImage(variant, makeVariant(variant, directory));
    let damaged = 0;
    for (let seed = 0; seed < 5; seed++) {
      const random = new Random(seed);
      const { log, initial, history } = recordRandom(start, { random, count: 30 });
      const unordered = new CrashStates(
        log.filter(({ operation }) => operation.kind !== 'flush'),
        initial,
      );
      unordered.advanceTo(log.filter(({ operation }) => operation.kind !== 'flush').length);
      for (let choice = 0; choice < 20; choice++) {
        const [image] = unordered.torn(random);
        const crashed = { variant, files: { image: image! }, initial: history.initialDisk };
        const { problem } = judgeCrash({ ...crashed, worlds: history.worldsAt(log.length) });
        if (problem !== undefined) damaged++;
      }
    }
    expect(damaged).toBeGreaterThan(50);
  });
});
