/**
 * Timing requests to a disk, as qemu-img's `bench` does: of one size, one after the other, each so
 * many bytes behind the last one, going on at the start of the disk when its end is reached.
 */

import type { BlockDevice } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import type { Steps } from './progress.ts';

/** What is timed. */
export interface BenchOptions {
  /** Whether the requests write (default: they read). */
  isWriting?: boolean | undefined;
  /** Number of requests. */
  count: number;
  /** Bytes of each. */
  bufferBytes: number;
  /** Where the first one begins. */
  offset: number;
  /** Bytes from one to the next. */
  stepBytes: number;
  /** The byte that is written (default 0). */
  pattern?: number | undefined;
  /**
   * Flush whenever the number of requests that are left is a multiple of it (default 0: never), when
   * writing.
   */
  flushInterval?: number | undefined;
  /** Bytes of the disk, if they are more than those of the device: its last sector has all of its. */
  diskSize?: number | undefined;
}

/** What requests are made to. */
export type BenchDevice = Pick<BlockDevice, 'size' | 'read' | 'write' | 'flush'>;

/** How long to go on before telling of progress, in milliseconds. */
const TURN_MS = 20;
/** Requests between two looks at the clock. */
const CLOCK_REQUESTS = 16;

/**
 * Makes the requests.
 *
 * @returns how long they took, in milliseconds
 * @throws {Qcow2Error} `OUT_OF_RANGE` for a request that does not lie within the disk, when it is its
 * turn; what reading and writing throw
 */
export function* benchSteps(device: BenchDevice, options: BenchOptions): Steps<number> {
  const { count, bufferBytes, stepBytes, flushInterval = 0, isWriting = false } = options;
  const { pattern = 0, diskSize = device.size } = options;
  let { offset } = options;
  if (count === 0) return 0;
  // Before memory is taken for it.
  checkRequest({ offset, length: bufferBytes }, diskSize);
  const buffer = Buffer.alloc(bufferBytes, pattern);
  const start = performance.now();
  let turn = start;
  for (let done = 1; done <= count; done++) {
    checkRequest({ offset, length: bufferBytes }, diskSize);
    if (isWriting) device.write(buffer, offset);
    else readPart(device, buffer, offset);
    if (isWriting && flushInterval > 0 && (count - done) % flushInterval === 0) device.flush();
    offset = (offset + stepBytes) % diskSize;
    if (done % CLOCK_REQUESTS !== 0) continue;
    const now = performance.now();
    if (now - turn < TURN_MS) continue;
    yield { done, total: count };
    turn = performance.now();
  }
  return performance.now() - start;
}

/** Reads what the device has of a request; only its last sector may have less than the disk. */
function readPart(device: BenchDevice, buffer: Uint8Array, offset: number): void {
  const available = Math.min(buffer.length, Math.max(0, device.size - offset));
  if (available === buffer.length) device.read(buffer, offset);
  else if (available > 0) device.read(buffer.subarray(0, available), offset);
}

function checkRequest(request: { offset: number; length: number }, diskSize: number): void {
  const { offset, length } = request;
  if (diskSize > 0 && offset + length <= diskSize) return;
  throw new Qcow2Error(
    'OUT_OF_RANGE',
    `a request of ${length} bytes at offset ${offset} does not lie within the disk's ${diskSize}`,
    { hint: 'take another offset, buffer size or step size' },
  );
}
