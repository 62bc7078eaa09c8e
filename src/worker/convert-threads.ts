/** Deciding whether a conversion is worth threads of its own, and how many. */

import { availableParallelism } from 'node:os';
import type { Image } from '../chain/open.ts';
import type { BlockDevice } from '../device/block-device.ts';
import { FileDevice } from '../device/file.ts';
import type { ChunkSpec } from '../operations/convert-chunk.ts';
import { DirectChunks } from '../operations/convert-direct.ts';
import type { ChunkSource } from '../operations/convert.ts';
import { ConvertPool, poolDepth } from './convert-pool.ts';
import type { ConvertPoolOptions } from './convert-pool.ts';

/** Below so many stored bytes starting threads takes longer than they save. */
const MIN_BYTES = 32 * 1024 * 1024;
/** The same where data is compressed. */
const MIN_BYTES_TO_COMPRESS = 2 * 1024 * 1024;
/** Each thread takes memory: these, and what they share, stay far below 300 MiB. */
const MAX_THREADS = 8;

/**
 * How many threads to use for reading images; 0: none but this one.
 * @param wanted threads at most
 */
export function threadsFor(
  wanted: number,
  { images, spec }: { images: readonly Image[]; spec: ChunkSpec },
): number {
  // What is not compressed here or there is read as it is.
  const isPlain = spec.compression === undefined && images.every(({ format }) => format === 'raw');
  const threads = Math.min(wanted, MAX_THREADS, isPlain ? 0 : availableParallelism());
  const minimum = spec.compression === undefined ? MIN_BYTES : MIN_BYTES_TO_COMPRESS;
  const stored = images.reduce((sum, image) => sum + storedBytes(image), 0);
  return wanted < 2 || availableParallelism() < 2 || stored < minimum ? 0 : threads;
}

/** Bytes that the files of an image take. */
function storedBytes(image: Image): number {
  let bytes = 0;
  for (let layer: Image | undefined = image; layer !== undefined; layer = layer.backing) {
    const data = layer.format === 'qcow2' ? layer.dataFile?.device : undefined;
    for (const device of [layer.file, data]) {
      if (device instanceof FileDevice) {
        bytes += device.isBlockDevice ? device.size : device.allocatedSize;
      }
    }
  }
  return bytes;
}

/** Calls `action` with a pool of threads, or with undefined for none, and ends the threads. */
export async function withPool<Result>(
  options: ConvertPoolOptions,
  action: (chunks: ChunkSource | undefined) => Promise<Result>,
): Promise<Result> {
  if (options.threads === 0) return action(undefined);
  const pool = new ConvertPool(options);
  try {
    return await action(pool);
  } finally {
    await pool.close();
  }
}

/**
 * Calls `action` with what prepares the chunks of `source`: as {@link withPool} to compress, and
 * otherwise with threads only once there is a chunk that cannot be read as it is.
 */
export async function withChunks<Result>(
  options: ConvertPoolOptions & { source: BlockDevice },
  action: (chunks: ChunkSource | undefined) => Promise<Result>,
): Promise<Result> {
  const { threads, spec, source } = options;
  if (spec.compression !== undefined) return withPool(options, action);
  let pool: ConvertPool | undefined;
  const open = (): ConvertPool => (pool = new ConvertPool(options));
  const others = threads === 0 ? undefined : { depth: poolDepth(options), open };
  try {
    return await action(new DirectChunks({ source, spec, others }));
  } finally {
    await pool?.close();
  }
}
