/** The worker thread of `qcow2/promises`: holds one image open and answers calls in turn. */

import { parentPort, workerData } from 'node:worker_threads';
import { openImage } from '../chain/open.ts';
import type { Image } from '../chain/open.ts';
import { openForCheck, openForRepair } from '../operations/check.ts';
import { assert } from '../util/assert.ts';
import { imageHandlers } from './image-handlers.ts';
import type { ImageHandlers } from './image-handlers.ts';
import type {
  ImageRequest,
  ImageResponse,
  ImageWorkerData,
  ProblemNotice,
} from './image-protocol.ts';
import { toWireError } from './wire-error.ts';

const port = parentPort;
assert(port !== null, 'this module runs in a worker thread');
let image: Image | undefined;
let handlers: ImageHandlers | undefined;

function answer(request: ImageRequest): unknown {
  if (handlers === undefined) {
    const { path, options, purpose = 'use' } = workerData as ImageWorkerData;
    const open = { use: openImage, check: openForCheck, repair: openForRepair }[purpose];
    image = open(path, options);
    handlers = imageHandlers(image, (problems) => {
      const notice: ProblemNotice = { problems };
      port!.postMessage(notice);
    });
  }
  const handler = handlers[request.call] as (...values: unknown[]) => unknown;
  return handler(...request.arguments);
}

function respond(response: ImageResponse, transferred: ArrayBuffer[] = []): void {
  port!.postMessage(response, transferred);
}

port.on('message', (request: ImageRequest) => {
  const { id } = request;
  try {
    const result = answer(request);
    const isOwned = result instanceof Uint8Array && result.buffer instanceof ArrayBuffer;
    const diskSize = image?.size ?? 0;
    respond({ id, diskSize, ok: true, result }, isOwned ? [result.buffer] : []);
  } catch (error) {
    respond({ id, diskSize: image?.size ?? 0, ok: false, error: toWireError(error) });
  }
});
