/**
 * info: from the start of `qcow2 info` to its exit, against Node's own start and qemu-img.
 *
 * A few milliseconds are measured by a shell that runs the command ten times over.
 */

import { OURS, type Bench, type BenchContext, type Contender } from '../support/bench.ts';
import type { Command } from '../support/process.ts';

const REPETITIONS = 10;
const LOOP = `i=0; while [ $i -lt ${REPETITIONS} ]; do "$@" >/dev/null || exit; i=$((i+1)); done`;

export const bench: Bench = {
  name: 'info',
  summary: 'qcow2 info, start to exit',
  tools: ['sh', 'qemu-img'],
  async prepare(context) {
    const image = await context.images.data();
    const node: Command = [process.execPath, '-e', '0'];
    return [
      {
        name: 'info',
        unit: 'seconds' as const,
        ours: measureCommand(context, OURS, [...context.qcow2, 'info', image]),
        rivals: [
          {
            ...measureCommand(context, "node's bare start", node),
            atLeast: 1 / 1.5,
            aim: 1 / 1.2,
          },
          measureCommand(context, 'qemu-img', ['qemu-img', 'info', image]),
        ],
      },
    ];
  },
};

function measureCommand(context: BenchContext, name: string, command: Command): Contender {
  return {
    name,
    async measure() {
      const { seconds } = await context.programs.run(['sh', '-c', LOOP, 'sh', ...command]);
      return { value: seconds / REPETITIONS };
    },
    measurePeakRss: () => context.programs.measurePeakRss(command),
  };
}
