/** The worker thread of `qcow2/promises`: holds one image open and answers calls in turn. */

import { parentPort, workerData } from 'node:worker_threads';
import { openImage } from '../chain/open.ts';
import type { Image } from '../chain/open.ts';
import { prepareZstd } from '../compression/zstd.ts';
import type { BlockDevice, Extent } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import { readPartitionTable } from '../format/partition/index.ts';
import { assert } from '../util/assert.ts';
import type { DeviceHandle, ImageCalls, ImageRequest, ImageWorkerData } from './image-protocol.ts';
import { toWireError } from './wire-error.ts';

/** Extents in one answer: enough to make the message cheap, few enough to bound it. */
const EXTENTS_PER_ANSWER = 4096;

type Handlers = {
  [Name in keyof ImageCalls]: (
    ...values: ImageCalls[Name]['arguments']
  ) => ImageCalls[Name]['result'];
};

function handlersOf(image: Image): Handlers {
  const devices = new Map<DeviceHandle, BlockDevice>([[0, image]]);
  let nextHandle = 1;
  const device = (handle: DeviceHandle): BlockDevice => {
    const found = devices.get(handle);
    if (found === undefined) throw new Qcow2Error('CLOSED', 'the device was closed');
    return found;
  };
  const qcow2 = (what: string): Image & { format: 'qcow2' } => {
    if (image.format === 'qcow2') return image;
    throw new Qcow2Error('NOT_FOUND', `a raw image has no ${what}`, { file: image.path });
  };
  return {
    open: () => ({ format: image.format, size: image.size, path: image.path }),
    read: (handle, target, offset) => {
      const isShared = typeof target !== 'number';
      const bytes = isShared ? target : new Uint8Array(target);
      device(handle).read(bytes, offset);
      return isShared ? undefined : bytes;
    },
    extents: (handle, offset, length) => {
      const extents: Extent[] = [];
      for (const extent of device(handle).extents(offset, length)) {
        extents.push(extent);
        if (extents.length === EXTENTS_PER_ANSWER) break;
      }
      return extents;
    },
    openSnapshot: (idOrName) => {
      const snapshot = qcow2('snapshots').openSnapshot(idOrName);
      devices.set(nextHandle, snapshot);
      return { device: nextHandle++, size: snapshot.size };
    },
    snapshots: () => (image.format === 'qcow2' ? image.snapshots : []),
    bitmaps: () => (image.format === 'qcow2' ? image.bitmaps : []),
    dirtyRanges: (bitmap) => [...qcow2('bitmaps').dirtyRanges(bitmap)],
    partitionTable: (handle) => readPartitionTable(device(handle)),
    closeDevice: (handle) => {
      devices.get(handle)?.close();
      devices.delete(handle);
    },
  };
}

const port = parentPort;
assert(port !== null, 'this module runs in a worker thread');
await prepareZstd();
let handlers: Handlers | undefined;

port.on('message', (request: ImageRequest) => {
  const { id } = request;
  try {
    if (handlers === undefined) {
      const { path, options } = workerData as ImageWorkerData;
      handlers = handlersOf(openImage(path, options));
    }
    const handler = handlers[request.call] as (...values: unknown[]) => unknown;
    const result = handler(...request.arguments);
    const isOwned = result instanceof Uint8Array && result.buffer instanceof ArrayBuffer;
    port.postMessage({ id, ok: true, result }, isOwned ? [result.buffer] : []);
  } catch (error) {
    port.postMessage({ id, ok: false, error: toWireError(error) });
  }
});
