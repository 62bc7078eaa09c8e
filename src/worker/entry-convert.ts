/** A thread that prepares chunks for a conversion: reads them, and looks for zeroes or compresses. */

import { workerData } from 'node:worker_threads';
import { openImage } from '../chain/open.ts';
import type { BlockDevice } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import { ConcatenatedDevice } from '../operations/concatenated.ts';
import { ChunkPreparer } from '../operations/convert-chunk.ts';
import { slotParts } from './convert-protocol.ts';
import type {
  ConvertInput,
  ConvertRequest,
  ConvertResponse,
  ConvertWorkerData,
} from './convert-protocol.ts';
import { toWireError } from './wire-error.ts';

const { inputs, spec, slots, started, port } = workerData as ConvertWorkerData;
const parts = slots.map((slot) => slotParts(slot, spec));
let preparer: ChunkPreparer | undefined;

function openInput({ path, options, snapshotId }: ConvertInput): BlockDevice {
  const image = openImage(path, options);
  if (snapshotId === undefined) return image;
  if (image.format === 'qcow2') return image.openSnapshot(snapshotId);
  throw new Qcow2Error('NOT_FOUND', `there is no snapshot '${snapshotId}'`, { file: image.path });
}

port.on('message', ({ slot, offset, length }: ConvertRequest) => {
  let response: ConvertResponse;
  try {
    preparer ??= new ChunkPreparer(new ConcatenatedDevice(inputs.map(openInput)), spec);
    const { bytes, compressed } = parts[slot]!;
    const prepared = preparer.prepare({ offset, length }, bytes, compressed);
    response = { slot, ok: true, prepared };
  } catch (error) {
    response = { slot, ok: false, error: toWireError(error) };
  }
  port.postMessage(response);
});
Atomics.add(started, 0, 1);
