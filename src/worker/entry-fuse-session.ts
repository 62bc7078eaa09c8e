/**
 * The worker thread of a mount on the kernel channel: it opens the image, waits for the descriptor
 * of the mount, and serves it. While it serves it blocks, so it hears no messages; a flag that it
 * looks at after each request, and one more request, stop it.
 */

import { writeSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { DeviceChannel } from '../export/fuse/device-channel.ts';
import { ErrorLog } from '../export/fuse/error-log.ts';
import { FuseSession } from '../export/fuse/session.ts';
import { loadLibc } from '../host/libc.ts';
import { openForMount } from './fuse-image.ts';
import { toWireError } from './wire-error.ts';
import type { ServeMessage, WorkerInput, WorkerMessage } from './fuse-request.ts';

const { request, stop } = workerData as WorkerInput;
const stopFlag = new Int32Array(stop);

function tell(message: WorkerMessage): void {
  parentPort!.postMessage(message);
}

try {
  const { tree, summary } = await openForMount(request);
  parentPort!.once('message', ({ fd }: ServeMessage) => {
    if (fd === undefined) return;
    // Not through process.stderr, which the blocked thread would never get to flush.
    const log = new ErrorLog((line) => writeSync(2, `${line}\n`));
    const session = new FuseSession(tree, log, {
      onReady: () => tell({ kind: 'ready' }),
      directIo: request.options.directIo,
    });
    try {
      session.serve(new DeviceChannel(fd), () => Atomics.load(stopFlag, 0) !== 0);
      tell({ kind: 'ended' });
    } catch (error) {
      tell({ kind: 'failed', error: toWireError(error) });
    }
  });
  tell({ kind: 'opened', summary });
  // While the main thread mounts.
  loadLibc();
} catch (error) {
  tell({ kind: 'failed', error: toWireError(error) });
}
