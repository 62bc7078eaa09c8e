/**
 * The worker thread of a mount on the kernel channel: it opens the image, waits for the descriptor
 * of the mount, and serves it. While it serves it blocks, so it hears no messages; a flag that it
 * looks at after each request, and one more request, stop it. In the end it closes the image, with
 * everything that was written brought to the disk.
 */

import { writeSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { DeviceChannel } from '../export/fuse/device-channel.ts';
import { ErrorLog } from '../export/fuse/error-log.ts';
import { Invalidations } from '../export/fuse/invalidations.ts';
import { FuseSession } from '../export/fuse/session.ts';
import { becomeIoFlusher } from '../host/io-flusher.ts';
import { loadLibc } from '../host/libc.ts';
import { openForMount } from './fuse-image.ts';
import { Backlog } from './fuse-backlog.ts';
import type { OpenedImage } from './fuse-image.ts';
import { MountStats } from './mount-stats.ts';
import { toWireError } from './wire-error.ts';
import { Control } from './fuse-request.ts';
import type { ServeMessage, WorkerInput, WorkerMessage } from './fuse-request.ts';

const { request, control, stats: statsMemory } = workerData as WorkerInput;
const words = new Int32Array(control);
const stats = new MountStats(request.directory, statsMemory);

function tell(message: WorkerMessage): void {
  parentPort!.postMessage(message);
}

// Not through process.stderr, which the blocked thread would never get to flush.
const log = new ErrorLog((line) => writeSync(2, `${line}\n`));

// A filesystem in the image is written through this thread, which must not wait for that in its turn:
// the one that --fs mounts, or one that somebody mounts on a loop device over a file.
if (request.access !== 'ro' && !becomeIoFlusher() && request.files !== undefined) {
  writeSync(2, 'no CAP_SYS_RESOURCE or koffi: this mount may hang where memory runs out\n');
}

function serve({ tree }: OpenedImage, fd: number): void {
  const jobsDone = words.subarray(Control.jobsDone);
  const session = new FuseSession(tree, log, {
    onReady: () => tell({ kind: 'ready' }),
    directIo: request.options.directIo,
    invalidations: new Invalidations((job) => tell({ kind: 'invalidate', job }), jobsDone),
    agreedFlags: words.subarray(Control.agreedFlags),
    stats: stats.requests,
    sharedTexts: stats.texts,
  });
  const backlog = new Backlog(words, () => tell({ kind: 'busy' }));
  // Where files are written, this thread is the only one.
  const options = request.access === 'ro' ? { onBacklog: (ms: number) => backlog.note(ms) } : {};
  try {
    session.serve(new DeviceChannel(fd, options), () => Atomics.load(words, Control.stop) !== 0);
  } finally {
    Atomics.store(words, Control.hasStopped, 1);
  }
}

function close(image: OpenedImage): void {
  if (request.stats !== undefined) stats.print(request.stats);
  try {
    image.close({ isAccepted: Atomics.load(words, Control.isAccepted) !== 0 });
    tell({ kind: 'ended' });
  } catch (error) {
    tell({ kind: 'ended', failure: toWireError(error) });
  }
}

try {
  const image = await openForMount(request, stats);
  parentPort!.once('message', ({ fd }: ServeMessage) => {
    try {
      if (fd !== undefined) serve(image, fd);
    } catch (error) {
      log.report('serving', error);
    }
    close(image);
  });
  const { summary, fingerprint, clusterCache } = image;
  tell({ kind: 'opened', summary, fingerprint, clusterCache: clusterCache.buffer });
  // While the main thread mounts.
  loadLibc();
} catch (error) {
  tell({ kind: 'failed', error: toWireError(error) });
}
