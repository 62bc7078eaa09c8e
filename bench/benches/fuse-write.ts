/**
 * fuse-write: writes through FUSE, with an fsync at the end: 1 MiB in order, to new clusters and to
 * ones that are there, and 4 KiB at random.
 */

import { rmSync } from 'node:fs';
import path from 'node:path';
import type { Bench, BenchContext, Contender, Rival } from '../support/bench.ts';
import { transferRate } from '../support/dd.ts';
import { ourWritableMount, storageDaemonWritableMount } from '../support/exports.ts';
import type { Exporter } from '../support/exports.ts';

const MEBIBYTE = 1024 * 1024;
/** Bytes that are written in order, and over which random writes are spread. */
const WRITTEN_BYTES = 512 * MEBIBYTE;
const DISK_BYTES = 1024 * MEBIBYTE;
const THRESHOLDS = { atLeast: 1.5, aim: 3 };

/** Writes to the file of a fresh export, and returns the rate. */
type Measure = (context: BenchContext, file: string) => Promise<number>;

export const bench: Bench = {
  name: 'fuse-write',
  summary: 'writes through FUSE: dd bs=1M, allocating and rewriting, and 4 KiB at random',
  tools: ['dd', 'qemu-img'],
  prepare(context) {
    const compare = (name: string, unit: 'bytes/s' | 'writes/s', measure: Measure) => {
      const { program } = storageDaemonWritableMount;
      const rival: Rival = {
        ...contender(context, storageDaemonWritableMount, measure),
        ...THRESHOLDS,
        ...(program === undefined ? {} : { program }),
      };
      const ours = contender(context, ourWritableMount, measure);
      return { name: `fuse-write, ${name}`, unit, ours, rivals: [rival] };
    };
    return Promise.resolve([
      compare('1M allocating', 'bytes/s', writeInOrder),
      compare('1M rewriting', 'bytes/s', async (_, file) => {
        await writeInOrder(context, file);
        return writeInOrder(context, file);
      }),
      compare('4K random', 'writes/s', async (_, file) => {
        await writeInOrder(context, file);
        return writeAtRandom(context, file, 'buffered');
      }),
      compare('4K random, O_DIRECT', 'writes/s', async (_, file) => {
        await writeInOrder(context, file);
        return writeAtRandom(context, file, 'direct');
      }),
    ]);
  },
};

/** Bytes a second by dd's clock, which stops after its fsync. */
async function writeInOrder(context: BenchContext, file: string): Promise<number> {
  const count = WRITTEN_BYTES / MEBIBYTE;
  const options = ['bs=1M', `count=${count}`, 'conv=notrunc,fsync'];
  const { stderr } = await context.programs.run(['dd', 'if=/dev/zero', `of=${file}`, ...options]);
  return transferRate(stderr, WRITTEN_BYTES);
}

/** Writes a second by the clock of the program, which stops after its fsync. */
async function writeAtRandom(
  context: BenchContext,
  file: string,
  way: 'buffered' | 'direct',
): Promise<number> {
  const program = path.join(context.clients, 'random-writes.mjs');
  const command = [process.execPath, program, file, String(WRITTEN_BYTES), way] as const;
  const { stdout } = await context.programs.run(command);
  const rate = Number(stdout);
  if (!(rate > 0)) throw new Error(`random-writes.mjs printed '${stdout}'`);
  return rate;
}

/** Exports a fresh image, measures, and removes it. */
function contender(context: BenchContext, exporter: Exporter, measure: Measure): Contender {
  return {
    name: exporter.name,
    async measure() {
      const image = path.join(context.directory, 'written.qcow2');
      await context.programs.run([
        ...(['qemu-img', 'create', '-q', '-f', 'qcow2'] as const),
        image,
        String(DISK_BYTES),
      ]);
      try {
        const running = await exporter.start(context, image);
        try {
          const value = await measure(context, running.address);
          return { value, peakRssBytes: running.daemon.peakRssBytes() };
        } finally {
          await running.stop();
        }
      } finally {
        rmSync(image, { force: true });
      }
    },
  };
}
