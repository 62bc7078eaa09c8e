/** The program behind run.mjs: scenario after scenario until there were points enough. */

import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { DEFAULT_OPERATIONS, DEFAULT_TORN, runScenario } from './scenario.ts';

const USAGE = `usage: node test/crash/run.mjs [--seed N] [--points N] [--scenario SEED]
  --seed N         where the scenarios' seeds start (default 1)
  --points N       crash points to try (default 1000000)
  --scenario SEED  try one scenario again and stop
  --operations N   guest operations in a scenario (default ${DEFAULT_OPERATIONS})
  --torn N         random states for each host operation (default ${DEFAULT_TORN})
  --qemu N         QEMU judges every nth point (default 1000)
`;

/** Runs the program; its exit code. */
export function main(args: string[]): number {
  const { values } = parseArgs({
    args,
    options: {
      seed: { type: 'string', default: '1' },
      points: { type: 'string', default: '1000000' },
      scenario: { type: 'string' },
      operations: { type: 'string', default: String(DEFAULT_OPERATIONS) },
      torn: { type: 'string', default: String(DEFAULT_TORN) },
      qemu: { type: 'string', default: '1000' },
      help: { type: 'boolean', default: false },
    },
  });
  if (values.help) {
    process.stdout.write(USAGE);
    return 0;
  }
  const shared = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();
  const directory = mkdtempSync(join(shared, 'qcow2-crash-'));
  try {
    return runAll(directory, {
      first:
        values.scenario === undefined ? Number(values.seed) * 1_000_003 : Number(values.scenario),
      points: values.scenario === undefined ? Number(values.points) : 1,
      operations: Number(values.operations),
      tornPerOperation: Number(values.torn),
      askQemuEvery: Number(values.qemu),
    });
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

interface RunOptions {
  first: number;
  points: number;
  operations: number;
  tornPerOperation: number;
  askQemuEvery: number;
}

function runAll(directory: string, { first, points, ...options }: RunOptions): number {
  const started = performance.now();
  let tried = 0;
  let asked = 0;
  let leaking = 0;
  let scenarios = 0;
  let failures = 0;
  let told = started;
  const tell = (): void => {
    told = performance.now();
    const seconds = Math.round((told - started) / 1000);
    process.stdout.write(
      `${tried} crash points in ${scenarios} scenarios, ${asked} judged by QEMU too, ` +
        `${leaking} with leaks, ${failures} failures (${seconds} s)\n`,
    );
  };
  while (tried < points) {
    const seed = first + scenarios++;
    const result = runScenario({ ...options, seed, directory });
    tried += Math.max(1, result.points);
    asked += result.qemuPoints;
    leaking += result.leaking;
    if (result.problem !== undefined) {
      failures++;
      process.stdout.write(`\n${result.problem}\n\n`);
    }
    if (performance.now() - told > 10_000) tell();
  }
  tell();
  return failures === 0 ? 0 : 1;
}
