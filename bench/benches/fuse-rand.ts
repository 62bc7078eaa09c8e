/**
 * fuse-rand: 4 KiB random reads with O_DIRECT through FUSE, from one and from four threads.
 */

import type { Bench } from '../support/bench.ts';
import {
  measureExport,
  measureRivalExport,
  ourMount,
  storageDaemonMount,
} from '../support/exports.ts';
import { randomReads } from '../support/fio.ts';
import { warmPageCache } from '../support/images.ts';

export const bench: Bench = {
  name: 'fuse-rand',
  summary: '4 KiB random reads with O_DIRECT through FUSE, 1 and 4 jobs',
  tools: ['fio', 'qemu-img'],
  async prepare(context) {
    const image = await context.images.data();
    warmPageCache(image);
    return [1, 4].map((jobs) => {
      const measure = (file: string): Promise<number> =>
        randomReads(context, [
          `filename=${file.replaceAll(':', '\\:')}`,
          'readonly',
          'ioengine=psync',
          'direct=1',
          `numjobs=${jobs}`,
        ]);
      const thresholds = { atLeast: 2.5, aim: 4 };
      return {
        name: `fuse-rand, ${jobs} ${jobs === 1 ? 'job' : 'jobs'}`,
        unit: 'reads/s' as const,
        ours: measureExport(context, ourMount, image, measure),
        rivals: [measureRivalExport(context, storageDaemonMount, image, measure, thresholds)],
      };
    });
  },
};
