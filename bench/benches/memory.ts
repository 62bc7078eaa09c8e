/**
 * memory: what serving takes while a 1 TiB image is read for ten minutes at full speed, through FUSE
 * and over NBD, and whether it grows.
 *
 * The image has an overlay with compressed clusters, and is read in order and at random at the same
 * time, so that every cache fills.
 */

import type { Bench, BenchContext, Comparison, Contender, Rival } from '../support/bench.ts';
import {
  ourMount,
  ourServer,
  qemuNbd,
  storageDaemonMount,
  type Exporter,
} from '../support/exports.ts';
import { readInManyWays } from '../support/fio.ts';
import { watchMemory, type MemoryUse } from '../support/memory.ts';

const MEBIBYTE = 2 ** 20;
const BOUNDS = { atMost: 200 * MEBIBYTE, aim: 120 * MEBIBYTE };
/** Ratio of what was resident early to late that still is no growth: garbage comes and goes. */
const NO_GROWTH = 1 / 1.1;
/** Rivals are read for as much of the time: their peak is reached soon, and less favours them. */
const RIVAL_SHARE = 1 / 10;

interface Protocol {
  name: string;
  ours: Exporter;
  rival: Exporter;
  options: (address: string) => string[];
}

const PROTOCOLS: readonly Protocol[] = [
  {
    name: 'FUSE',
    ours: ourMount,
    rival: storageDaemonMount,
    options: (file) => [
      `filename=${file.replaceAll(':', '\\:')}`,
      'readonly',
      'ioengine=psync',
      'direct=1',
    ],
  },
  {
    name: 'NBD',
    ours: ourServer,
    rival: qemuNbd,
    options: (uri) => ['ioengine=nbd', `uri=${uri}`, 'iodepth=8'],
  },
];

export const bench: Bench = {
  name: 'memory',
  summary: 'memory while a 1 TiB image is read, and its growth (--memory-seconds)',
  tools: ['fio', 'qemu-img'],
  async prepare(context) {
    const image = await context.images.hugeAndCompressed();
    return PROTOCOLS.flatMap((protocol) => compare(context, protocol, image));
  },
};

/** Two rows: the peak beside the rival's, and what was resident late beside early. */
function compare(context: BenchContext, protocol: Protocol, image: string): Comparison[] {
  const { name, ours, rival, options } = protocol;
  const compressedBytes = context.images.dataBytes;
  const use = (exporter: Exporter, seconds: number): Promise<MemoryUse> =>
    useOf(context, { exporter, image }, (address) =>
      readInManyWays(context, { options: options(address), compressedBytes }, seconds),
    );
  let latest: MemoryUse | undefined;
  const peak: Contender = {
    name: ours.name,
    async measure() {
      latest = await use(ours, context.memorySeconds);
      return { value: latest.peakBytes, peakRssBytes: latest.peakBytes };
    },
  };
  const rivalPeak: Rival = {
    name: rival.name,
    ...(rival.program === undefined ? {} : { program: rival.program }),
    async measure() {
      const seconds = Math.max(1, Math.ceil(context.memorySeconds * RIVAL_SHARE));
      const { peakBytes } = await use(rival, seconds);
      return { value: peakBytes, peakRssBytes: peakBytes };
    },
  };
  const past = (name: string, field: 'earlyBytes' | 'lateBytes'): Contender => ({
    name,
    async measure() {
      latest ??= await use(ours, context.memorySeconds);
      return { value: latest[field] };
    },
  });
  return [
    {
      name: `memory, ${name}: peak`,
      unit: 'bytes',
      ours: peak,
      rivals: [rivalPeak],
      bounds: BOUNDS,
      isMeasuredOnce: true,
    },
    {
      name: `memory, ${name}: at the end`,
      unit: 'bytes',
      ours: past(ours.name, 'lateBytes'),
      rivals: [{ ...past('itself after a tenth', 'earlyBytes'), atLeast: NO_GROWTH, aim: 1 }],
      isMeasuredOnce: true,
    },
  ];
}

/** Serves the image, reads it, and tells what the server took meanwhile. */
async function useOf(
  context: BenchContext,
  { exporter, image }: { exporter: Exporter; image: string },
  read: (address: string) => Promise<void>,
): Promise<MemoryUse> {
  const running = await exporter.start(context, image);
  try {
    const { pid } = running.daemon;
    if (pid === undefined) throw new Error(`${exporter.name} has no process`);
    return await watchMemory(pid, () => read(running.address));
  } finally {
    await running.stop();
  }
}
