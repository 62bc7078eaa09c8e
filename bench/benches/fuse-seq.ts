/**
 * fuse-seq: sequential read of an uncompressed image through FUSE, with a cold FUSE cache.
 */

import type { Bench } from '../support/bench.ts';
import { readWithDd } from '../support/dd.ts';
import {
  measureExport,
  measureRivalExport,
  ourMount,
  storageDaemonMount,
} from '../support/exports.ts';
import { warmPageCache } from '../support/images.ts';

export const bench: Bench = {
  name: 'fuse-seq',
  summary: 'dd bs=1M of an uncompressed image through FUSE, freshly mounted',
  tools: ['dd', 'qemu-img'],
  async prepare(context) {
    const image = await context.images.data();
    warmPageCache(image);
    const measure = (file: string): Promise<number> =>
      readWithDd(context, file, context.images.dataBytes);
    const thresholds = { atLeast: 3, aim: 4.2 };
    return [
      {
        name: 'fuse-seq',
        unit: 'bytes/s',
        ours: measureExport(context, ourMount, image, measure),
        rivals: [measureRivalExport(context, storageDaemonMount, image, measure, thresholds)],
      },
    ];
  },
};
