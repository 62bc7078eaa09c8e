/**
 * fuse-seq: sequential read of an uncompressed image through FUSE, with a cold FUSE cache.
 */

import type { Bench } from '../support/bench.ts';
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
    const measure = async (file: string): Promise<number> => {
      const command = ['dd', `if=${file}`, 'of=/dev/null', 'bs=1M'] as const;
      const { stderr } = await context.programs.run(command);
      return transferRate(stderr, context.images.dataBytes);
    };
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

/**
 * The rate that dd reports, from its own clock.
 *
 * @throws {Error} if it did not copy exactly `expectedBytes`
 */
export function transferRate(report: string, expectedBytes: number): number {
  const match = /^(\d+) bytes .*copied, ([\d.e+-]+) s,/m.exec(report);
  const bytes = Number(match?.[1]);
  if (bytes !== expectedBytes) throw new Error(`dd copied ${bytes} of ${expectedBytes} bytes`);
  return bytes / Number(match?.[2]);
}
