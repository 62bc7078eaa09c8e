import { randomBytes } from 'node:crypto';
import { readFileSync, rmSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { openImage } from '../../src/chain/open.ts';
import type { Qcow2Error } from '../../src/errors.ts';
import { ConcatenatedDevice } from '../../src/operations/concatenated.ts';
import { convertSteps } from '../../src/operations/convert.ts';
import type { ChunkSpec } from '../../src/operations/convert-chunk.ts';
import { ImageOutput, ImageTarget } from '../../src/operations/convert-image.ts';
import { sparseSpec } from '../../src/operations/convert-raw.ts';
import { runSteps } from '../../src/operations/progress.ts';
import { ConvertPool } from '../../src/worker/convert-pool.ts';
import { withPool } from '../../src/worker/convert-threads.ts';
import { makeRaw, MiB, scratch } from '../operations/scratch.ts';
import { describePeers } from '../support/peers.ts';
import { qemuImg } from '../support/qemu.ts';

const CLUSTER = 65_536;
const text = Buffer.from('all work and no play makes for a compressible cluster; '.repeat(2000));

/** A disk that has some of everything, and ends inside a cluster. */
function makeSource(): string {
  const pieces = Array.from({ length: 100 }, (_, index) => {
    const bytes = index % 3 === 0 ? randomBytes(70_000) : text.subarray(index, 60_000 + index);
    return [index * 3 * CLUSTER + index * 512, bytes] as const;
  });
  return makeRaw('source.raw', 20 * MiB + 3 * 512, pieces);
}

interface Conversion {
  /** 0: none but this one. */
  threads: number;
  compression: 'zlib' | 'zstd' | undefined;
}

/** Converts to a qcow2 image. @returns its path */
async function convert(path: string, { threads, compression }: Conversion): Promise<string> {
  const output = scratch(`out-${threads}-${compression}.qcow2`);
  rmSync(output, { force: true });
  using image = openImage(path, { format: 'raw' });
  const source = new ConcatenatedDevice([image]);
  const spec: ChunkSpec = {
    chunkBytes: MiB,
    sparse: sparseSpec(4096),
    compression: compression && { type: compression, clusterSize: CLUSTER },
    salvage: false,
  };
  const options = { open: {}, size: source.size, inputs: [path], durable: false };
  const creation = { compressionType: compression ?? 'zlib' };
  const made = runSteps(ImageOutput.create(output, creation, options));
  const target = new ImageTarget(made.image, { isZero: true });
  const alignment = compression === undefined ? 1 : CLUSTER;
  const inputs = [
    { path, options: { format: 'raw' as const, lock: false }, snapshotId: undefined },
  ];
  // The image itself, so that this thread takes part.
  await withPool({ threads, inputs, spec, source }, async (chunks) => {
    const steps = convertSteps(source, target, { spec, alignment, chunks });
    let last = 0;
    for await (const { done } of steps) {
      expect(done).toBeGreaterThanOrEqual(last);
      last = done;
    }
    expect(last).toBe(source.size);
  });
  made.finish();
  return output;
}

describePeers(['qemu-img'], 'threads', () => {
  test.each(['zlib', 'zstd', undefined] as const)(
    'make the same bytes whatever their number: %s',
    async (compression) => {
      const source = makeSource();
      const first = readFileSync(await convert(source, { threads: 0, compression }));
      for (const threads of [1, 2, 3, 8]) {
        const path = await convert(source, { threads, compression });
        expect(readFileSync(path).equals(first), `${threads} threads`).toBe(true);
      }
      const one = scratch(`out-0-${compression}.qcow2`);
      const compared = qemuImg('compare', '-f', 'raw', '-F', 'qcow2', source, one);
      expect(compared).toContain('Images are identical.');
      expect(qemuImg('check', one)).toContain('No errors were found');
    },
  );
});

describe('a pool', () => {
  const spec: ChunkSpec = {
    chunkBytes: MiB,
    sparse: sparseSpec(4096),
    compression: undefined,
    salvage: false,
  };

  test('tells what a thread could not do', async () => {
    const inputs = [{ path: scratch('missing'), options: {}, snapshotId: undefined }];
    const pool = new ConvertPool({ threads: 2, inputs, spec });
    try {
      await expect(pool.fetch({ offset: 0, length: 512 })).rejects.toMatchObject({
        code: 'HOST',
        problem: 'cannot open: no such file or directory',
      });
    } finally {
      await pool.close();
    }
  });

  test('that is closed answers what it was asked before, and nothing later', async () => {
    const path = makeRaw('pool.raw', 2 * MiB, [[0, text]]);
    const options = { format: 'raw' as const };
    const inputs = [{ path, options, snapshotId: undefined }];
    const pool = new ConvertPool({ threads: 1, inputs, spec });
    const chunk = await pool.fetch({ offset: 0, length: MiB });
    expect(Buffer.from(chunk.bytes.subarray(0, 100))).toEqual(text.subarray(0, 100));
    expect(chunk.runs).toEqual([0, Math.ceil(text.length / 4096) * 4096]);
    chunk.release();
    const late = Promise.resolve(pool.fetch({ offset: MiB, length: MiB }));
    await pool.close();
    const outcome = await late.then(
      () => 'ready',
      (error: unknown) => (error as Qcow2Error).code,
    );
    expect(['ready', 'CLOSED']).toContain(outcome);
    await expect(pool.fetch({ offset: 0, length: 512 })).rejects.toMatchObject({ code: 'CLOSED' });
  });
});
