/**
 * convert: raw to qcow2 and back, and compressed, against `qemu-img convert -m 8 -W`.
 *
 * The data is text of random words: it compresses to about half.
 */

import { closeSync, openSync, rmSync, writeSync } from 'node:fs';
import path from 'node:path';
import { OURS, type Bench, type BenchContext, type Contender } from '../support/bench.ts';
import type { Thresholds } from '../support/statistics.ts';
import type { Command } from '../support/process.ts';

const MEBIBYTE = 2 ** 20;
/** Compressing a whole GiB with zlib takes QEMU most of a minute. */
const ZLIB_SHARE = 1 / 4;

/** One conversion. */
interface ConvertCase extends Thresholds {
  name: string;
  options: readonly string[];
  source: string;
  bytes: number;
}

export const bench: Bench = {
  name: 'convert',
  summary: 'raw to qcow2 and back, and compressed with zlib and zstd',
  tools: ['qemu-img'],
  async prepare(context) {
    const bytes = context.images.dataBytes;
    const smallBytes = Math.max(MEBIBYTE, Math.floor(bytes * ZLIB_SHARE));
    const raw = path.join(context.directory, 'convert.raw');
    const small = path.join(context.directory, 'convert-small.raw');
    const image = path.join(context.directory, 'convert.qcow2');
    writeWords(raw, bytes);
    writeWords(small, smallBytes);
    await context.programs.run(['qemu-img', 'convert', '-f', 'raw', '-O', 'qcow2', raw, image]);
    const toQcow2 = ['-f', 'raw', '-O', 'qcow2'];
    const zstd = ['-o', 'compression_type=zstd'];
    const cases: ConvertCase[] = [
      { name: 'raw to qcow2', options: toQcow2, source: raw, bytes, atLeast: 1, aim: 1.5 },
      {
        name: 'qcow2 to raw',
        options: ['-f', 'qcow2', '-O', 'raw'],
        source: image,
        bytes,
        atLeast: 1,
        aim: 1.5,
      },
      {
        name: '-c zlib',
        options: [...toQcow2, '-c'],
        source: small,
        bytes: smallBytes,
        atLeast: 1.5,
        aim: 2,
      },
      {
        name: '-c zstd',
        options: [...toQcow2, '-c', ...zstd],
        source: raw,
        bytes,
        atLeast: 1,
        aim: 1.5,
      },
    ];
    return cases.map((each) => {
      const { name, atLeast, aim } = each;
      const ours: Command = [...context.qcow2, 'convert', '-m', '8', '-W'];
      const rival: Command = ['qemu-img', 'convert', '-m', '8', '-W'];
      return {
        name: `convert ${name}`,
        unit: 'bytes/s' as const,
        ours: measureConvert(context, OURS, ours, each),
        rivals: [{ ...measureConvert(context, 'qemu-img', rival, each), atLeast, aim }],
      };
    });
  },
};

function measureConvert(
  context: BenchContext,
  name: string,
  command: Command,
  { options, source, bytes }: ConvertCase,
): Contender {
  const output = path.join(context.directory, 'converted');
  const whole: Command = [...command, ...options, source, output];
  return {
    name,
    async measure() {
      rmSync(output, { force: true });
      const { seconds } = await context.programs.run(whole);
      rmSync(output);
      return { value: bytes / seconds };
    },
    async measurePeakRss() {
      const peak = await context.programs.measurePeakRss(whole);
      rmSync(output, { force: true });
      return peak;
    },
  };
}

/** Writes text of random words: the same every time, and no two clusters alike. */
function writeWords(file: string, sizeBytes: number): void {
  const random = randomNumbers(1);
  const words = Array.from({ length: 4000 }, () => {
    const letters = Array.from({ length: 2 + (random() % 8) }, () => 97 + (random() % 26));
    return String.fromCharCode(...letters, 32);
  });
  const descriptor = openSync(file, 'wx');
  try {
    const block = Buffer.alloc(MEBIBYTE);
    for (let offset = 0; offset < sizeBytes; offset += MEBIBYTE) {
      for (let at = 0; at < MEBIBYTE;) {
        at += block.write(words[random() % words.length] ?? '', at, 'latin1') || MEBIBYTE;
      }
      writeSync(descriptor, block, 0, Math.min(MEBIBYTE, sizeBytes - offset));
    }
  } finally {
    closeSync(descriptor);
  }
}

/** Marsaglia's xorshift of 32 bits. */
function randomNumbers(seed: number): () => number {
  let state = seed;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}
