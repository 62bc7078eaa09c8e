/**
 * nbd-write: random writes over NBD, 4 KiB and 1 MiB, 16 at a time, and a whole disk copied into a
 * new image.
 */

import { copyFileSync, rmSync } from 'node:fs';
import path from 'node:path';
import type { Bench, BenchContext, Contender, Rival } from '../support/bench.ts';
import { ourWritableServer, qemuNbdWritable } from '../support/exports.ts';
import type { Exporter } from '../support/exports.ts';
import { randomWrites } from '../support/fio.ts';
import { warmPageCache } from '../support/images.ts';

const THRESHOLDS = { atLeast: 1.5, aim: 2.5 };

/** Writes to a fresh export, and returns the rate. */
interface Work {
  /** Makes the image that is served. */
  prepare(image: string): Promise<void> | void;
  measure(uri: string): Promise<number>;
}

export const bench: Bench = {
  name: 'nbd-write',
  summary: "random writes with fio's nbd engine, 4 KiB and 1 MiB; nbdcopy into a new image",
  tools: ['fio', 'nbdcopy', 'qemu-img'],
  async prepare(context) {
    const source = await context.images.data();
    warmPageCache(source);
    const raw = path.join(context.directory, 'nbd-write.raw');
    await context.programs.run(['qemu-img', 'convert', '-O', 'raw', source, raw]);
    const compare = (name: string, unit: 'bytes/s' | 'writes/s', work: Work) => {
      const { program } = qemuNbdWritable;
      const rival: Rival = {
        ...contender(context, qemuNbdWritable, work),
        ...THRESHOLDS,
        ...(program === undefined ? {} : { program }),
      };
      const ours = contender(context, ourWritableServer, work);
      return { name: `nbd-write, ${name}`, unit, ours, rivals: [rival] };
    };
    const rewrite = (blockSize: string): Work => ({
      prepare: (image) => copyFileSync(source, image),
      measure: (uri) => randomWrites(context, { uri, blockSize }),
    });
    const fill: Work = {
      async prepare(image) {
        const size = String(context.images.dataBytes);
        await context.programs.run(['qemu-img', 'create', '-q', '-f', 'qcow2', image, size]);
      },
      async measure(uri) {
        const { seconds } = await context.programs.run(['nbdcopy', '--flush', raw, uri]);
        return context.images.dataBytes / seconds;
      },
    };
    return [
      compare('4K random', 'writes/s', rewrite('4k')),
      compare('1M random', 'writes/s', rewrite('1m')),
      compare('nbdcopy', 'bytes/s', fill),
    ];
  },
};

/** Serves a fresh image, measures, and removes it. */
function contender(context: BenchContext, exporter: Exporter, work: Work): Contender {
  return {
    name: exporter.name,
    async measure() {
      const image = path.join(context.directory, 'nbd-write.qcow2');
      rmSync(image, { force: true });
      await work.prepare(image);
      const running = await exporter.start(context, image);
      try {
        const value = await work.measure(running.address);
        return { value, peakRssBytes: running.daemon.peakRssBytes() };
      } finally {
        await running.stop();
        rmSync(image, { force: true });
      }
    },
  };
}
