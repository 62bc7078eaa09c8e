/**
 * Commands that go through all the metadata of a 1 TiB image, against qemu-img's of the same name.
 */

import { OURS, type BenchContext, type Comparison, type Contender } from './bench.ts';
import type { Command } from './process.ts';

/**
 * Compares `qcow2 NAME …` with `qemu-img NAME …` on the 1 TiB image, after making sure that both
 * print the same document.
 *
 * @throws {Error} if they do not
 */
export async function compareOnHugeImage(
  context: BenchContext,
  name: 'check' | 'map',
): Promise<Comparison[]> {
  const image = await context.images.huge();
  const args = [name, '--output=json', image];
  const ours: Command = [...context.qcow2, ...args];
  const rival: Command = ['qemu-img', ...args];
  const documents = await Promise.all(
    [ours, rival].map(async (command) => (await context.programs.run(command)).stdout),
  );
  const [ourDocument, rivalDocument] = documents.map(normalizeJson);
  if (ourDocument !== rivalDocument) {
    throw new Error(`${name} prints another document than qemu-img; there is nothing to compare`);
  }
  return [
    {
      name,
      unit: 'seconds',
      ours: measureCommand(context, OURS, ours),
      rivals: [{ ...measureCommand(context, 'qemu-img', rival), atLeast: 1.5, aim: 3 }],
    },
  ];
}

function measureCommand(context: BenchContext, name: string, command: Command): Contender {
  return {
    name,
    async measure() {
      const { seconds } = await context.programs.run(command);
      return { value: seconds };
    },
    measurePeakRss: () => context.programs.measurePeakRss(command),
  };
}

/** JSON with sorted keys, so that only what it says is compared. */
function normalizeJson(text: string): string {
  return JSON.stringify(JSON.parse(text), (_key, value: unknown) =>
    value !== null && typeof value === 'object' && !Array.isArray(value)
      ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1)))
      : value,
  );
}
