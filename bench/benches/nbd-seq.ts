/**
 * nbd-seq: a whole image copied to nowhere over NBD, with four connections.
 */

import type { Bench } from '../support/bench.ts';
import { measureExport, measureRivalExport, ourServer, qemuNbd } from '../support/exports.ts';
import { warmPageCache } from '../support/images.ts';

export const bench: Bench = {
  name: 'nbd-seq',
  summary: 'nbdcopy to null: over a Unix socket, 4 connections',
  tools: ['nbdcopy', 'qemu-img'],
  async prepare(context) {
    const image = await context.images.data();
    warmPageCache(image);
    const measure = async (uri: string): Promise<number> => {
      const command = ['nbdcopy', '--connections=4', uri, 'null:'] as const;
      const { seconds } = await context.programs.run(command);
      return context.images.dataBytes / seconds;
    };
    const thresholds = { atLeast: 1, aim: 1.5 };
    return [
      {
        name: 'nbd-seq',
        unit: 'bytes/s',
        ours: measureExport(context, ourServer, image, measure),
        rivals: [measureRivalExport(context, qemuNbd, image, measure, thresholds)],
      },
    ];
  },
};
