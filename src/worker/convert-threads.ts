/** Deciding whether a conversion is worth threads of its own, and how many. */

import { availableParallelism } from 'node:os';
import type { Image } from '../chain/open.ts';
import { FileDevice } from '../device/file.ts';
import type { ChunkSpec } from '../operations/convert-chunk.ts';
import type { ChunkSource } from '../operations/convert.ts';
import { ConvertPool } from './convert-pool.ts';
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
  // Where nothing is compressed, one thread reads faster than this one writes.
  const isPlain = spec.compression === undefined && images.every(({ format }) => format === 'raw');
  const useful = isPlain ? 1 : availableParallelism();
  const threads = Math.min(wanted, MAX_THREADS, useful);
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
