/**
 * Making new images, qcow2 and raw, laid out as QEMU lays them out.
 *
 * The sector with the header is written last, once everything else is on the disk: a file that is
 * not finished is not an image.
 */

import type { ImageFormat } from '../chain/open.ts';
import { parseReference } from '../chain/names.ts';
import { permittedPath } from '../chain/policy.ts';
import type { FileDevice } from '../device/file.ts';
import { Qcow2Error } from '../errors.ts';
import { encodeHeader } from '../format/qcow2/header-encode.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import { LockRequests } from '../host/locks.ts';
import { MAX_DISK_SIZE } from '../limits.ts';
import { alignUp } from '../util/bytes.ts';
import { findBacking } from './create-backing.ts';
import type { Backing } from './create-backing.ts';
import { allocatedSize, layOutImage } from './create-layout.ts';
import type { ImageLayout } from './create-layout.ts';
import { newHeader } from './create-options.ts';
import type { Preallocation, Qcow2CreateOptions } from './create-options.ts';
import { writeTables } from './create-tables.ts';
import { firstBlockBytes } from './first-block.ts';
import { NewFile } from './new-file.ts';
import { runSteps } from './progress.ts';
import type { Steps } from './progress.ts';

/** Options of {@link createImage}. */
export interface CreateOptions extends Qcow2CreateOptions {
  /** Format of the new image (default qcow2). */
  format?: ImageFormat | undefined;
  /** Bytes of the disk, rounded up to sectors of 512 (default: those of the backing file). */
  size?: number | undefined;
  /**
   * Whether space is set aside (default off): `metadata` gives every cluster a place, `falloc`
   * reserves it, `full` writes zeroes to it.
   */
  preallocation?: Preallocation | undefined;
  /** Take the backing file's name as it is, without looking for it (default false). */
  withoutBacking?: boolean | undefined;
  /** Lock what is overwritten, so that no image in use is (default true). */
  lock?: boolean | undefined;
  /**
   * Return only once the image would survive a power cut (default true). Without it the host writes
   * it to the disk when it likes: for images that are filled at once, and flushed then or made anew.
   */
  durable?: boolean | undefined;
}

const SECTOR_BYTES = 512;
const ZEROES = new Uint8Array(1024 * 1024);

/**
 * Makes a new image. A file of that name is overwritten, unless somebody uses it or the new image
 * refers to it. If it fails, a file that did not exist is removed again, and one that did is left
 * as it was, or empty where writing had begun.
 *
 * @param path of the new image: a file, or a block device
 * @throws {Qcow2Error} `INVALID_OPTION` for options that cannot be, or not together; `TOO_LARGE`;
 * `REFUSED` for a file that must not be overwritten; `LOCKED` for one in use; `HOST` if the host
 * refuses; what opening the backing file throws
 * @example
 * createImage('disk.qcow2', { size: 10 * 2 ** 30 });
 * createImage('overlay.qcow2', { backingFile: 'disk.qcow2', backingFormat: 'qcow2' });
 */
export function createImage(path: string, options: CreateOptions = {}): void {
  runSteps(createSteps(path, options));
}

/** {@link createImage}, a step at a time. Returning from it early gives the image up. */
export function* createSteps(path: string, options: CreateOptions = {}): Steps<void> {
  const backing = findBacking(path, options);
  const size = sizeFor(path, options, backing);
  const { format = 'qcow2', preallocation = 'off', lock, durable } = options;
  if (format === 'raw') {
    yield* createRaw(path, { ...options, size, preallocation });
    return;
  }
  let header: Qcow2Header;
  try {
    header = newHeader(options, { size, preallocation });
  } catch (error) {
    throw error instanceof Qcow2Error ? error.inFile(path) : error;
  }
  yield* createQcow2(path, { header, preallocation, taken: backing.files, lock, durable });
}

/**
 * The size in bytes that a new image has, given or taken from its backing file, which is opened
 * unless it is to be left alone.
 *
 * @throws {Qcow2Error} `INVALID_OPTION` without a size; what opening the backing file throws
 */
export function newImageSize(path: string, options: CreateOptions): number {
  return sizeFor(path, options, findBacking(path, options));
}

function sizeFor(path: string, { size }: CreateOptions, backing: Backing): number {
  const bytes = size ?? backing.size;
  if (bytes === undefined) {
    throw new Qcow2Error('INVALID_OPTION', 'a new image needs a size', { file: path });
  }
  if (!Number.isInteger(bytes) || bytes < 0) {
    throw new Qcow2Error('INVALID_OPTION', `a disk cannot have ${bytes} bytes`, { file: path });
  }
  if (bytes <= MAX_DISK_SIZE - SECTOR_BYTES) return alignUp(bytes, SECTOR_BYTES);
  throw new Qcow2Error('TOO_LARGE', `a disk of ${bytes} bytes is too large`, {
    file: path,
    hint: `sizes are less than ${MAX_DISK_SIZE} bytes`,
  });
}

// ---- qcow2 ----------------------------------------------------------------------------------

/** A new qcow2 image, all options checked. */
interface Qcow2Plan {
  header: Qcow2Header;
  preallocation: Preallocation;
  /** Files that must not be overwritten. */
  taken: ReadonlyMap<string, string>;
  lock: boolean | undefined;
  durable: boolean | undefined;
}

function* createQcow2(path: string, plan: Qcow2Plan): Steps<void> {
  const { header, lock = true, durable = true } = plan;
  const dataName = header.extensions.externalDataFile;
  const dataPath = dataName === undefined ? undefined : dataFilePath(path, dataName);
  const layout = layOut(plan);
  const files = new NewFiles();
  try {
    const image = files.open(path, {
      lock: lock ? LockRequests.qcow2.write : undefined,
      taken: plan.taken,
      durable,
    });
    let data: NewFile | undefined;
    if (dataPath !== undefined) {
      const taken = new Map(plan.taken).set(image.device.identity, 'itself with its data');
      const request = lock ? LockRequests.dataFile.write : undefined;
      data = files.open(dataPath, { lock: request, taken, durable });
    }
    checkReservable(image.device, plan.preallocation);
    files.empty();
    if (data !== undefined) yield* createDataFile(data.device, plan);
    yield* writeImage(image.device, layout, plan);
    files.finish();
  } finally {
    files.abandon();
  }
}

function layOut({ header, preallocation }: Qcow2Plan): ImageLayout {
  const { hasExternalDataFile, isDataFileRaw } = header;
  const isReserved = preallocation === 'falloc' || preallocation === 'full';
  // All of a raw data file is the disk, from the start.
  const isMapped = preallocation === 'metadata' || isDataFileRaw;
  return layOutImage({
    ...header,
    clusters: isReserved ? 'reserved' : isMapped ? 'mapped' : 'none',
    hasDataFile: hasExternalDataFile,
  });
}

function dataFilePath(path: string, name: string): string {
  const reference = parseReference(name, path);
  return permittedPath(
    reference,
    { role: 'external data file', referrer: path },
    { references: 'follow', allowProtocolNames: true, root: path },
  );
}

function* createDataFile(device: FileDevice, { header, preallocation }: Qcow2Plan): Steps<void> {
  const isWhole = header.isDataFileRaw || preallocation !== 'off';
  const length = isWhole ? allocatedSize(header) : header.size;
  yield* reserve(device, { offset: 0, length, preallocation });
  if (!device.isBlockDevice) device.write(ZEROES.subarray(0, firstBlockBytes(length)), 0);
  if (device.size < length || !device.isBlockDevice) device.resize(length);
  device.flush();
}

function* writeImage(
  device: FileDevice,
  layout: ImageLayout,
  { header, preallocation }: Qcow2Plan,
): Steps<void> {
  const { clusterSize } = header;
  const { clusters, reserved } = layout;
  yield* reserve(device, {
    offset: reserved.start * clusterSize,
    length: reserved.count * clusterSize,
    preallocation,
  });
  const total = clusters.end * clusterSize;
  let done = 0;
  for (const written of writeTables(device, layout, header)) {
    done = Math.min(done + written, total);
    yield { done, total };
  }
  if (device.size < layout.dataEndBytes) device.resize(layout.dataEndBytes);
  const firstCluster = new Uint8Array(clusterSize);
  firstCluster.set(
    encodeHeader({
      ...header,
      l1TableOffset: layout.l1Table * clusterSize,
      refcountTableOffset: clusters.table.start * clusterSize,
      refcountTableClusters: clusters.tableClusters,
    }),
  );
  device.write(firstCluster.subarray(SECTOR_BYTES), SECTOR_BYTES);
  device.flush();
  device.write(firstCluster.subarray(0, SECTOR_BYTES), 0);
}

// ---- raw ------------------------------------------------------------------------------------

interface RawPlan extends CreateOptions {
  /** Bytes. */
  size: number;
  preallocation: Preallocation;
}

function* createRaw(path: string, plan: RawPlan): Steps<void> {
  const { size, preallocation, lock = true, durable = true } = plan;
  if (preallocation === 'metadata')
    throw new Qcow2Error('INVALID_OPTION', 'a raw image has no metadata to preallocate', {
      file: path,
    });
  const files = new NewFiles();
  try {
    const request = lock ? LockRequests.raw.write : undefined;
    const { device } = files.open(path, { lock: request, taken: new Map(), durable });
    checkReservable(device, preallocation);
    if (device.isBlockDevice) device.resize(size);
    files.empty();
    yield* reserve(device, { offset: 0, length: size, preallocation });
    if (!device.isBlockDevice) device.write(ZEROES.subarray(0, firstBlockBytes(size)), 0);
    device.resize(size);
    files.finish();
  } finally {
    files.abandon();
  }
}

// ---- files ----------------------------------------------------------------------------------

/** The files of one new image: all of them are finished, or none. */
class NewFiles {
  #files: NewFile[] = [];

  open(path: string, options: ConstructorParameters<typeof NewFile>[1]): NewFile {
    const file = new NewFile(path, options);
    this.#files.push(file);
    return file;
  }

  empty(): void {
    for (const file of this.#files) file.empty();
  }

  finish(): void {
    for (const file of this.#files) file.finish();
    this.#files = [];
  }

  /** Gives up what has not been finished. */
  abandon(): void {
    for (const file of this.#files) file.abandon();
  }
}

function checkReservable({ isBlockDevice, path }: FileDevice, preallocation: Preallocation): void {
  if (!isBlockDevice || preallocation === 'off' || preallocation === 'metadata') return;
  throw new Qcow2Error('INVALID_OPTION', `preallocation=${preallocation} is for files only`, {
    file: path,
    hint: 'the space of a block device is its own already',
  });
}

interface Reservation {
  /** Bytes. */
  offset: number;
  /** Bytes. */
  length: number;
  preallocation: Preallocation;
}

/** Sets space aside in a file, if that was asked for. */
function* reserve(device: FileDevice, { offset, length, preallocation }: Reservation): Steps<void> {
  if (preallocation === 'falloc') device.writeZeroes(offset, length);
  if (preallocation !== 'full') return;
  for (let done = 0; done < length;) {
    const part = ZEROES.subarray(0, Math.min(ZEROES.length, length - done));
    device.write(part, offset + done);
    done += part.length;
    yield { done, total: length };
  }
}
