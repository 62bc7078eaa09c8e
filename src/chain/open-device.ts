/** Opening one part of an image as a device: a layer, a snapshot, a partition. */

import type { BlockDevice, Extent, HostRange, WriteZeroesOptions } from '../device/block-device.ts';
import { SliceDevice } from '../device/slice.ts';
import { Qcow2Error } from '../errors.ts';
import { readPartitionTable } from '../format/partition/index.ts';
import { openImage } from './open.ts';
import type { Image, OpenImageOptions } from './open.ts';

/** Which part of an image to open, and how. */
export interface OpenDeviceOptions extends OpenImageOptions {
  /** Layer of the backing chain, 0 for the base; the disk as that layer saw it (default: top). */
  layer?: number | undefined;
  /** Id or name of an internal snapshot (default: the active disk). */
  snapshot?: string | undefined;
  /** Number of a partition (default: the whole disk). */
  partition?: number | undefined;
}

/**
 * Opens a disk, or the part of it that the options select, as a device. Closing the device closes
 * the image. With `writable` the active disk and its partitions are written; snapshots and lower
 * layers can only be read.
 *
 * @throws {Qcow2Error} `NOT_FOUND` if there is no such layer, snapshot or partition, and whatever
 * {@link openImage} throws
 * @example
 * using root = openDevice('disk.qcow2', { partition: 2 });
 */
export function openDevice(path: string, options: OpenDeviceOptions = {}): BlockDevice {
  const { layer, snapshot, partition } = options;
  const image = openImage(path, options);
  try {
    let device: BlockDevice = layer === undefined ? image : selectLayer(image, layer);
    if (snapshot !== undefined) device = selectSnapshot(device, image, snapshot);
    if (partition !== undefined) device = selectPartition(device, image, partition);
    return device === image ? image : new OwningDevice(device, image);
  } catch (error) {
    image.close();
    throw error;
  }
}

function selectLayer(image: Image, layer: number): Image {
  const layers: Image[] = [];
  for (let link: Image | undefined = image; link !== undefined; link = link.backing) {
    layers.unshift(link);
  }
  const found = layers[layer];
  if (found === undefined) {
    throw new Qcow2Error('NOT_FOUND', `there is no layer ${layer}`, {
      file: image.path,
      hint: `its layers are 0 to ${layers.length - 1}`,
    });
  }
  return found;
}

/**
 * An internal snapshot of a layer as a device.
 *
 * @param image that the layer belongs to, for the error
 * @throws {Qcow2Error} `NOT_FOUND` if there is none of that id or name
 */
export function selectSnapshot(device: BlockDevice, image: Image, idOrName: string): BlockDevice {
  if ('openSnapshot' in device)
    return (device as Image & { format: 'qcow2' }).openSnapshot(idOrName);
  throw new Qcow2Error('NOT_FOUND', `there is no snapshot '${idOrName}'`, {
    file: image.path,
    hint: 'raw images have no snapshots',
  });
}

/**
 * A partition of a disk as a device.
 *
 * @param image that the disk belongs to, for the error
 * @throws {Qcow2Error} `NOT_FOUND` if there is no partition of that number
 */
export function selectPartition(device: BlockDevice, image: Image, number: number): SliceDevice {
  const partitions = readPartitionTable(device).partitions.filter((part) => !part.isContainer);
  const found = partitions.find((partition) => partition.number === number);
  if (found === undefined) {
    const numbers = partitions.map((partition) => partition.number).join(', ');
    throw new Qcow2Error('NOT_FOUND', `there is no partition ${number}`, {
      file: image.path,
      hint: numbers === '' ? 'the disk has no partition table' : `it has ${numbers}`,
    });
  }
  return new SliceDevice(device, { offset: found.offset, length: found.length });
}

/** A part of an image that closes the image when it is closed. */
class OwningDevice implements BlockDevice {
  readonly #device: BlockDevice;
  readonly #owner: BlockDevice;

  constructor(device: BlockDevice, owner: BlockDevice) {
    this.#device = device;
    this.#owner = owner;
  }

  get size(): number {
    return this.#device.size;
  }

  get readOnly(): boolean {
    return this.#device.readOnly;
  }

  get zeroesFast(): boolean {
    return this.#device.zeroesFast === true;
  }

  read(target: Uint8Array, offset: number): void {
    this.#device.read(target, offset);
  }

  write(source: Uint8Array, offset: number): void {
    this.#device.write(source, offset);
  }

  writeZeroes(offset: number, length: number, options?: WriteZeroesOptions): void {
    this.#device.writeZeroes(offset, length, options);
  }

  discard(offset: number, length: number): void {
    this.#device.discard(offset, length);
  }

  flush(): void {
    this.#device.flush();
  }

  extents(offset: number, length: number): Iterable<Extent> {
    return this.#device.extents(offset, length);
  }

  hostRange(offset: number, length: number): HostRange | undefined {
    return this.#device.hostRange?.(offset, length);
  }

  close(): void {
    this.#device.close();
    this.#owner.close();
  }

  [Symbol.dispose](): void {
    this.close();
  }
}
