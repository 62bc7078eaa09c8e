/**
 * Reading a whole compressed image, over NBD or through FUSE.
 */

import type { Bench, BenchContext } from './bench.ts';
import { readWithDd } from './dd.ts';
import {
  measureExport,
  measureRivalExport,
  ourMount,
  ourServer,
  qemuNbd,
  storageDaemonMount,
  type Exporter,
} from './exports.ts';
import { warmPageCache } from './images.ts';

/** How an image is served, and how it is read. */
interface Way {
  ours: Exporter;
  rival: Exporter;
  tool: string;
  /** Words for what is done. */
  summary: string;
  /** Reads all of it; returns bytes a second. */
  read(context: BenchContext, address: string): Promise<number>;
}

const WAYS = {
  fuse: {
    ours: ourMount,
    rival: storageDaemonMount,
    tool: 'dd',
    summary: 'dd bs=1M through FUSE',
    read: (context, file) => readWithDd(context, file, context.images.dataBytes),
  },
  nbd: {
    ours: ourServer,
    rival: qemuNbd,
    tool: 'nbdcopy',
    summary: 'nbdcopy to null: with 4 connections',
    async read(context, uri) {
      const command = ['nbdcopy', '--connections=4', uri, 'null:'] as const;
      const { seconds } = await context.programs.run(command);
      return context.images.dataBytes / seconds;
    },
  },
} as const satisfies Record<string, Way>;

/** The bench of one way of reading what was compressed in one way. */
export function compressedRead(
  protocol: keyof typeof WAYS,
  compression: 'zlib' | 'zstd',
  thresholds: { atLeast: number; aim: number },
): Bench {
  const name = `${protocol}-${compression}`;
  const way: Way = WAYS[protocol];
  return {
    name,
    summary: `${way.summary}, of an image compressed with ${compression}`,
    tools: [way.tool, 'qemu-img'],
    async prepare(context) {
      const image = await context.images.compressed(compression);
      warmPageCache(image);
      const measure = (address: string): Promise<number> => way.read(context, address);
      return [
        {
          name,
          unit: 'bytes/s',
          ours: measureExport(context, way.ours, image, measure),
          rivals: [measureRivalExport(context, way.rival, image, measure, thresholds)],
        },
      ];
    },
  };
}
