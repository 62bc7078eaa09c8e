/**
 * A thread that answers requests of a read-only mount beside its worker, with the image open for
 * itself; see `fuse-helpers.ts`.
 */

import { writeSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { Qcow2Error } from '../errors.ts';
import { DeviceChannel } from '../export/fuse/device-channel.ts';
import { ErrorLog } from '../export/fuse/error-log.ts';
import { FuseSession } from '../export/fuse/session.ts';
import { loadLibc } from '../host/libc.ts';
import { SharedClusterCache } from '../qcow2/cluster-cache/shared-cluster-cache.ts';
import { openForMount } from './fuse-image.ts';
import { Control } from './fuse-request.ts';
import type { HelperInput, HelperMessage } from './fuse-request.ts';
import { MountStats } from './mount-stats.ts';
import { toWireError } from './wire-error.ts';

const input = workerData as HelperInput;
const { request, control, fd, fingerprint, row, stats: statsMemory } = input;
const words = new Int32Array(control);
const stats = new MountStats(request.directory, statsMemory, row);

// Not through process.stderr, which a busy thread would never get to flush.
const log = new ErrorLog((line) => writeSync(2, `${line}\n`));

/** How long a thread at most cannot be called that was called in vain, in milliseconds. */
const MAX_NAP_MS = 64;
let calledInVain = 0;

/**
 * Waits until the worker calls, or it all ends. A worker that has one request after the other, but no
 * two at a time, calls in vain: each time so, twice as long passes before it can call again.
 * @param count requests that were there when it called last
 */
function sleep(count: number): void {
  calledInVain = count === 0 ? calledInVain + 1 : 0;
  if (calledInVain > 1) {
    const napMs = Math.min(MAX_NAP_MS, 2 ** (calledInVain - 2));
    Atomics.wait(words, Control.stopHelpers, 0, napMs);
  }
  const calls = Atomics.load(words, Control.calls);
  if (Atomics.load(words, Control.stopHelpers) !== 0) return;
  Atomics.add(words, Control.asleep, 1);
  Atomics.wait(words, Control.calls, calls);
  Atomics.sub(words, Control.asleep, 1);
}

try {
  const cache = SharedClusterCache.attach(input.clusterCache, input.cacheOwner);
  const image = await openForMount(request, stats, cache);
  try {
    if (image.fingerprint !== fingerprint) {
      throw new Qcow2Error('HOST', 'the image was replaced or written while it is mounted');
    }
    loadLibc();
    const session = new FuseSession(image.tree, log, {
      directIo: request.options.directIo,
      agreedFlags: words.subarray(Control.agreedFlags),
      stats: stats.requests,
      sharedTexts: stats.texts,
    });
    const channel = new DeviceChannel(fd, { sleep });
    sleep(1);
    session.serve(channel, () => Atomics.load(words, Control.stopHelpers) !== 0);
  } finally {
    image.close({ isAccepted: true });
  }
} catch (error) {
  parentPort!.postMessage({ error: toWireError(error) } satisfies HelperMessage);
}
