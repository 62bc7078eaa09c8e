/**
 * nbd-rand: 4 KiB random reads over NBD, one and 32 at a time.
 */

import type { Bench } from '../support/bench.ts';
import { measureExport, measureRivalExport, ourServer, qemuNbd } from '../support/exports.ts';
import { randomReads } from '../support/fio.ts';
import { warmPageCache } from '../support/images.ts';

const DEPTHS = [
  { depth: 1, atLeast: 2, aim: 3 },
  { depth: 32, atLeast: 2.5, aim: 4 },
];

export const bench: Bench = {
  name: 'nbd-rand',
  summary: "4 KiB random reads with fio's nbd engine, queue depth 1 and 32",
  tools: ['fio', 'qemu-img'],
  async prepare(context) {
    const image = await context.images.data();
    warmPageCache(image);
    return DEPTHS.map(({ depth, ...thresholds }) => {
      const measure = (uri: string): Promise<number> =>
        randomReads(context, ['ioengine=nbd', `uri=${uri}`, `iodepth=${depth}`]);
      return {
        name: `nbd-rand, depth ${depth}`,
        unit: 'reads/s' as const,
        ours: measureExport(context, ourServer, image, measure),
        rivals: [measureRivalExport(context, qemuNbd, image, measure, thresholds)],
      };
    });
  },
};
