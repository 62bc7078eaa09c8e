/** A thread that decompresses clusters into slots of a cluster cache, as they are posted there. */

import { readSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { clusterDecoder, COMPRESSION_TYPES } from '../compression/codec.ts';
import { NO_SLOT } from '../qcow2/cluster-cache/layout.ts';
import type { DecompressionJob } from '../qcow2/cluster-cache/pool.ts';
import { SharedClusterCache } from '../qcow2/cluster-cache/shared-cluster-cache.ts';
import { RequestStats } from '../util/request-stats.ts';
import type { DecompressionWorkerData } from './decompression.ts';

const { buffer, owner, stats } = workerData as DecompressionWorkerData;
const cache = SharedClusterCache.attach(buffer, owner);
const counted = stats && new RequestStats(stats.memory, stats.row);
const decoders = COMPRESSION_TYPES.map(clusterDecoder);
let input = new Uint8Array(256 * 1024);

/** Whatever goes wrong, whoever needs the cluster finds it out again, and reports it. */
function decompress(
  { descriptor, position, length, compression }: DecompressionJob,
  slot: Uint8Array,
): boolean {
  if (input.length < length) input = new Uint8Array(length);
  try {
    for (let done = 0; done < length;) {
      const count = readSync(descriptor, input, done, length - done, position + done);
      if (count === 0) return false;
      done += count;
    }
    counted?.addRead(descriptor, length);
    return decoders[compression]!(input.subarray(0, length), slot);
  } catch {
    return false;
  }
}

parentPort!.postMessage('running');
for (let next; (next = cache.queue.take()) !== NO_SLOT;) {
  const place = cache.locate(next);
  const job = place?.pool.claim(place.slot);
  if (place === undefined || job === undefined) continue;
  let isGood = false;
  try {
    isGood = decompress(job, place.pool.bytes(place.slot));
  } finally {
    place.pool.filled(place.slot, isGood);
  }
  if (isGood) cache.noteHelped();
}
