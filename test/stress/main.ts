/** The program behind run.mjs: round after round until the time is up. */

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { runMany } from './many.ts';
import { runBuild } from './package-build.ts';
import { runRound } from './rounds.ts';
import { runSoak } from './soak.ts';

const USAGE = `usage: node test/stress/run.mjs [--seed N] [--seconds N] [--round SEED] [--mounts N] [--build]
                                   [--soak]
  --seed N       where the rounds' seeds start (default 1)
  --seconds N    how long rounds are begun (default 600)
  --round SEED   try one round again and stop
  --mounts N     in place of rounds, have N mounts at once
  --build        in place of rounds, build this package on a filesystem, which every eighth does
  --soak         in place of rounds, read a 1 TiB image for that long, and watch the memory
  --temp-dir DIR where images and mounts go (default the system's)
`;

/** Runs the program; its exit code. */
export async function main(args: string[]): Promise<number> {
  const { values } = parseArgs({
    args,
    options: {
      seed: { type: 'string', default: '1' },
      seconds: { type: 'string', default: '600' },
      round: { type: 'string' },
      mounts: { type: 'string' },
      build: { type: 'boolean', default: false },
      soak: { type: 'boolean', default: false },
      'temp-dir': { type: 'string', default: tmpdir() },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(USAGE);
    return 0;
  }
  const first = values.round === undefined ? Number(values.seed) * 1_000_003 : Number(values.round);
  const deadline = Date.now() + Number(values.seconds) * 1000;
  const { mounts } = values;
  const isBuild = (round: number): boolean => values.round === undefined && round % 8 === 7;
  for (let round = 0; round === 0 || Date.now() < deadline; round++) {
    const directory = mkdtempSync(join(values['temp-dir'], 'qcow2-stress-'));
    try {
      const request = { directory, program: cli(), seed: first + round };
      let story: string;
      if (mounts !== undefined) story = await runMany({ ...request, mounts: Number(mounts) });
      else if (values.soak) {
        story = await runSoak({ ...request, seconds: Number(values.seconds) });
      } else if (values.build || isBuild(round)) {
        story = await runBuild({ ...request, isThorough: true });
      } else story = await runRound(request);
      process.stdout.write(`${first + round}: ${story}\n`);
    } catch (error) {
      const stack = error instanceof Error ? error.stack : String(error);
      process.stdout.write(`${first + round}: ${stack}\n`);
      process.stdout.write(`what is left is in ${directory}\n`);
      return 1;
    }
    rmSync(directory, { recursive: true, force: true });
    if (values.round !== undefined || mounts !== undefined || values.soak) break;
  }
  return 0;
}

/** The built command; this program is bundled into test/.cache. */
function cli(): string {
  return join(import.meta.dirname, '../../dist/cli.cjs');
}
