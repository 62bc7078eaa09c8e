/** What the worker thread of `qcow2/promises` does for each call. */

import type { Image } from '../chain/open.ts';
import { checkRange, mergeExtents } from '../device/block-device.ts';
import type { BlockDevice, Extent } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import { readPartitionTable } from '../format/partition/index.ts';
import { amendImage } from '../operations/amend.ts';
import { checkImage, repairImage } from '../operations/check.ts';
import type { CheckProblem, ProblemListener } from '../operations/check.ts';
import { commitImage } from '../operations/commit.ts';
import type { ResizeOptions } from '../qcow2/image.ts';
import { Qcow2Snapshot } from '../qcow2/snapshots.ts';
import type { DeviceHandle, ImageCalls } from './image-protocol.ts';

/** A function for each call. */
export type ImageHandlers = {
  [Name in keyof ImageCalls]: (
    ...values: ImageCalls[Name]['arguments']
  ) => ImageCalls[Name]['result'];
};

/** Problems that are told together. */
const PROBLEM_BATCH = 64;

/**
 * The answers to all calls about an open image.
 * @param tell is given the problems that a check meets
 */
export function imageHandlers(
  image: Image,
  tell: (problems: readonly CheckProblem[]) => void,
): ImageHandlers {
  const devices = new OpenDevices(image);
  return {
    open: () => ({ format: image.format, path: image.path, readOnly: image.readOnly }),
    close: () => image.close(),
    abandon: () => abandon(image),
    ...deviceHandlers(devices),
    ...informationHandlers(image),
    ...changeHandlers(image, devices),
    ...bitmapHandlers(image),
    ...checkHandlers(image, tell),
    openSnapshot: (idOrName) => {
      const snapshot = qcow2(image, 'snapshots', 'NOT_FOUND').openSnapshot(idOrName);
      return { device: devices.add(snapshot), size: snapshot.size };
    },
  };
}

/** The active disk and the snapshots that are open. */
class OpenDevices {
  readonly #devices: Map<DeviceHandle, BlockDevice>;
  #nextHandle = 1;

  constructor(image: Image) {
    this.#devices = new Map<DeviceHandle, BlockDevice>([[0, image]]);
  }

  get(handle: DeviceHandle): BlockDevice {
    const found = this.#devices.get(handle);
    if (found === undefined) throw new Qcow2Error('CLOSED', 'the device was closed');
    return found;
  }

  add(device: BlockDevice): DeviceHandle {
    this.#devices.set(this.#nextHandle, device);
    return this.#nextHandle++;
  }

  close(handle: DeviceHandle): void {
    this.#devices.get(handle)?.close();
    this.#devices.delete(handle);
  }

  closeSnapshot(id: string): void {
    for (const [handle, device] of this.#devices) {
      if (device instanceof Qcow2Snapshot && device.info.id === id) this.close(handle);
    }
  }
}

type HandlersOf<Names extends keyof ImageHandlers> = Pick<ImageHandlers, Names>;

function deviceHandlers(
  devices: OpenDevices,
): HandlersOf<
  | 'read'
  | 'write'
  | 'writeZeroes'
  | 'discard'
  | 'flush'
  | 'extents'
  | 'partitionTable'
  | 'closeDevice'
> {
  return {
    read: (handle, target, offset) => {
      const device = devices.get(handle);
      if (typeof target !== 'number') {
        device.read(target, offset);
        return undefined;
      }
      checkRange(offset, target, device.size);
      const bytes = new Uint8Array(target);
      device.read(bytes, offset);
      return bytes;
    },
    write: (handle, source, offset) => devices.get(handle).write(source, offset),
    writeZeroes: (handle, offset, length, options) =>
      devices.get(handle).writeZeroes(offset, length, options),
    discard: (handle, offset, length) => devices.get(handle).discard(offset, length),
    flush: (handle) => devices.get(handle).flush(),
    extents: (handle, { offset, length }, maxCount) => {
      const extents: Extent[] = [];
      for (const extent of mergeExtents(devices.get(handle).extents(offset, length))) {
        extents.push(extent);
        if (extents.length === maxCount) break;
      }
      return extents;
    },
    partitionTable: (handle) => readPartitionTable(devices.get(handle)),
    closeDevice: (handle) => devices.close(handle),
  };
}

function informationHandlers(image: Image): HandlersOf<'snapshots' | 'bitmaps' | 'dirtyRanges'> {
  return {
    snapshots: () => (image.format === 'qcow2' ? image.snapshots : []),
    bitmaps: () => (image.format === 'qcow2' ? image.bitmaps : []),
    dirtyRanges: (bitmap) => [...qcow2(image, 'bitmaps', 'NOT_FOUND').dirtyRanges(bitmap)],
  };
}

function changeHandlers(
  image: Image,
  devices: OpenDevices,
): HandlersOf<
  | 'writeCompressed'
  | 'resize'
  | 'preallocate'
  | 'createSnapshot'
  | 'applySnapshot'
  | 'deleteSnapshot'
  | 'makeEmpty'
  | 'commit'
  | 'amend'
> {
  return {
    writeCompressed: (source, offset) =>
      qcow2(image, 'compressed clusters').writeCompressed(source, offset),
    resize: (size, options) => resize(image, size, options),
    preallocate: (offset, length, mode) =>
      qcow2(image, 'clusters to give space to').preallocate(offset, length, mode),
    createSnapshot: (name) => qcow2(image, 'snapshots').createSnapshot(name),
    applySnapshot: (idOrName) => qcow2(image, 'snapshots', 'NOT_FOUND').applySnapshot(idOrName),
    deleteSnapshot: (idOrName) => {
      const disk = qcow2(image, 'snapshots', 'NOT_FOUND');
      const { id } = disk.openSnapshot(idOrName).info;
      disk.deleteSnapshot(id);
      devices.closeSnapshot(id);
    },
    makeEmpty: () => qcow2(image, 'backing file').makeEmpty(),
    commit: (options) => commitImage(qcow2(image, 'backing file'), options),
    amend: (options) => amendImage(image, options),
  };
}

function bitmapHandlers(
  image: Image,
): HandlersOf<
  | 'addBitmap'
  | 'removeBitmap'
  | 'clearBitmap'
  | 'enableBitmap'
  | 'disableBitmap'
  | 'mergeBitmap'
  | 'markInBitmap'
> {
  const disk = (): Image & { format: 'qcow2' } => qcow2(image, 'bitmaps');
  return {
    addBitmap: (name, options) => disk().addBitmap(name, options),
    removeBitmap: (name) => disk().removeBitmap(name),
    clearBitmap: (name) => disk().clearBitmap(name),
    enableBitmap: (name) => disk().enableBitmap(name),
    disableBitmap: (name) => disk().disableBitmap(name),
    mergeBitmap: (name, source) => disk().mergeBitmap(name, source),
    markInBitmap: (name, dirty) => disk().markInBitmap(name, dirty),
  };
}

function checkHandlers(
  image: Image,
  tell: (problems: readonly CheckProblem[]) => void,
): HandlersOf<'check' | 'repair'> {
  const disk = (): Image & { format: 'qcow2' } => qcow2(image, 'metadata to check');
  return {
    check: () => inBatches(tell, (onProblem) => checkImage(disk(), { onProblem })),
    repair: (fix) => inBatches(tell, (onProblem) => repairImage(disk(), { fix, onProblem })),
  };
}

/** Runs a check, and tells of what it meets in batches: there can be millions of problems. */
function inBatches<T>(
  tell: (problems: readonly CheckProblem[]) => void,
  check: (onProblem: ProblemListener) => T,
): T {
  let problems: CheckProblem[] = [];
  const send = (): void => {
    if (problems.length > 0) tell(problems);
    problems = [];
  };
  try {
    return check((problem) => {
      problems.push(problem);
      if (problems.length >= PROBLEM_BATCH) send();
    });
  } finally {
    send();
  }
}

function resize(image: Image, size: number, options: ResizeOptions): void {
  if (image.format === 'qcow2') {
    image.resize(size, options);
    return;
  }
  if (size < image.size && options.shrink !== true) {
    throw new Qcow2Error('INVALID_OPTION', 'the data past the new end would be lost', {
      file: image.path,
      hint: 'set `shrink` if that is meant',
    });
  }
  image.resize(size);
}

function abandon(image: Image): void {
  if (image.format === 'qcow2') {
    image.abandon();
    return;
  }
  try {
    image.close();
  } catch {
    // It is closed all the same.
  }
}

/** The image, if it is one that can have something that a raw one cannot. */
function qcow2(
  image: Image,
  what: string,
  code: 'NOT_FOUND' | 'UNSUPPORTED' = 'UNSUPPORTED',
): Image & { format: 'qcow2' } {
  if (image.format === 'qcow2') return image;
  throw new Qcow2Error(code, `a raw image has no ${what}`, { file: image.path });
}
