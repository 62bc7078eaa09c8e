/**
 * Reading a whole compressed image over NBD.
 */

import type { Bench } from './bench.ts';
import { measureExport, measureRivalExport, ourServer, qemuNbd } from './exports.ts';
import { warmPageCache } from './images.ts';

/** The bench of one way of compressing. */
export function compressedRead(
  compression: 'zlib' | 'zstd',
  thresholds: { atLeast: number; aim: number },
): Bench {
  const name = `nbd-${compression}`;
  return {
    name,
    summary: `nbdcopy to null of an image compressed with ${compression}, 4 connections`,
    tools: ['nbdcopy', 'qemu-img'],
    async prepare(context) {
      const image = await context.images.compressed(compression);
      warmPageCache(image);
      const measure = async (uri: string): Promise<number> => {
        const command = ['nbdcopy', '--connections=4', uri, 'null:'] as const;
        const { seconds } = await context.programs.run(command);
        return context.images.dataBytes / seconds;
      };
      return [
        {
          name,
          unit: 'bytes/s',
          ours: measureExport(context, ourServer, image, measure),
          rivals: [measureRivalExport(context, qemuNbd, image, measure, thresholds)],
        },
      ];
    },
  };
}
