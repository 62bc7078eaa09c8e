/** The promise API: an image that a worker thread holds open. */

import { Worker } from 'node:worker_threads';
import type { OpenImageOptions } from '../chain/open.ts';
import { checkRange, mergeExtents } from '../device/block-device.ts';
import type { Extent } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import type { PartitionTable } from '../format/partition/index.ts';
import type { SnapshotRow } from '../format/qcow2/snapshot-table.ts';
import type { BitmapInfo, DirtyRange } from '../qcow2/bitmaps.ts';
import type {
  DeviceHandle,
  ImageCalls,
  ImageResponse,
  ImageSummary,
  ImageWorkerData,
} from './image-protocol.ts';
import { fromWireError } from './wire-error.ts';

/** Largest read that is asked of the worker in one message, in bytes. */
const MAX_READ_BYTES = 8 * 1024 * 1024;

interface PendingCall {
  resolve: (result: unknown) => void;
  reject: (error: Error) => void;
}

/** Posts calls to the worker and matches the answers to them. */
class ImageWorker {
  readonly #worker: Worker;
  readonly #pending = new Map<number, PendingCall>();
  #nextId = 0;
  #failure: Error | undefined;

  constructor(data: ImageWorkerData) {
    this.#worker = new Worker(imageWorkerUrl(), { workerData: data });
    this.#worker.on('message', (response: ImageResponse) => this.#settle(response));
    this.#worker.on('error', (error) => this.#fail(error));
    this.#worker.on('exit', () => this.#fail(new Qcow2Error('CLOSED', 'the image was closed')));
    // An open image alone does not keep the process alive; a call under way does.
    this.#worker.unref();
  }

  call<Name extends keyof ImageCalls>(
    name: Name,
    ...values: ImageCalls[Name]['arguments']
  ): Promise<ImageCalls[Name]['result']> {
    if (this.#failure !== undefined) return Promise.reject(this.#failure);
    const id = this.#nextId++;
    return new Promise((resolve, reject) => {
      this.#pending.set(id, {
        resolve: (result) => resolve(result as ImageCalls[Name]['result']),
        reject,
      });
      this.#worker.ref();
      this.#worker.postMessage({ id, call: name, arguments: values });
    });
  }

  async terminate(): Promise<void> {
    this.#failure ??= new Qcow2Error('CLOSED', 'the image was closed');
    await this.#worker.terminate();
  }

  #settle(response: ImageResponse): void {
    const call = this.#pending.get(response.id);
    this.#pending.delete(response.id);
    if (this.#pending.size === 0) this.#worker.unref();
    if (response.ok) call?.resolve(response.result);
    else call?.reject(fromWireError(response.error));
  }

  #fail(error: Error): void {
    this.#failure ??= error;
    for (const { reject } of this.#pending.values()) reject(this.#failure);
    this.#pending.clear();
  }
}

/** The worker's bundle, which lies beside this one; from the sources, in `dist/`. */
function imageWorkerUrl(): URL {
  const isSource = import.meta.url.endsWith('.ts');
  return new URL(isSource ? '../../dist/image.js' : './image.js', import.meta.url);
}

/** A read-only array of bytes in another thread. */
export class AsyncDevice {
  /** Bytes. */
  readonly size: number;
  /** The thread that holds the device open. */
  protected readonly worker: ImageWorker;
  /** The device's number in that thread. */
  protected readonly handle: DeviceHandle;

  /** Devices are made by {@link openImage} and {@link AsyncImage.openSnapshot}. */
  constructor(worker: ImageWorker, handle: DeviceHandle, size: number) {
    this.worker = worker;
    this.handle = handle;
    this.size = size;
  }

  /**
   * Fills all of `target` from `offset`. A target in shared memory is filled in place; any other
   * costs a copy.
   * @throws {Qcow2Error} `OUT_OF_RANGE`, and what reading the image throws
   */
  async read(target: Uint8Array, offset: number): Promise<void> {
    checkRange(offset, target.length, this.size);
    const isShared = target.buffer instanceof SharedArrayBuffer;
    for (let done = 0; done < target.length; done += MAX_READ_BYTES) {
      const part = target.subarray(done, done + MAX_READ_BYTES);
      const destination = isShared ? part : part.length;
      const bytes = await this.worker.call('read', this.handle, destination, offset + done);
      if (bytes !== undefined) part.set(bytes);
    }
  }

  /**
   * The extents of a range, in order, neighbours merged.
   * @throws {Qcow2Error} `OUT_OF_RANGE`, and what reading the image throws
   */
  async extents(offset: number, length: number): Promise<Extent[]> {
    checkRange(offset, length, this.size);
    const extents: Extent[] = [];
    const end = offset + length;
    for (let at = offset; at < end;) {
      const batch = await this.worker.call('extents', this.handle, at, end - at);
      for (const extent of batch) extents.push(extent);
      const last = batch.at(-1);
      at = last === undefined ? end : last.offset + last.length;
    }
    return [...mergeExtents(extents)];
  }

  /** The partition table; `scheme` is `none` where there is none. */
  partitionTable(): Promise<PartitionTable> {
    return this.worker.call('partitionTable', this.handle);
  }

  /** Releases the device. Closing an image releases all that was opened from it. */
  async close(): Promise<void> {
    await this.worker.call('closeDevice', this.handle);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/** An image that a worker thread holds open. As a device it is the active disk. */
export class AsyncImage extends AsyncDevice {
  /** Path that it was opened by. */
  readonly path: string;
  /** Format of the image. */
  readonly format: ImageSummary['format'];

  /** Images are opened by {@link openImage}. */
  constructor(worker: ImageWorker, { path, format, size }: ImageSummary) {
    super(worker, 0, size);
    this.path = path;
    this.format = format;
  }

  /**
   * The internal snapshots; none for a raw image.
   * @throws {Qcow2Error} `CORRUPT`, `TOO_LARGE` or `TRUNCATED` if the table is damaged
   */
  snapshots(): Promise<readonly SnapshotRow[]> {
    return this.worker.call('snapshots');
  }

  /**
   * The persistent bitmaps; none for a raw image.
   * @throws {Qcow2Error} `CORRUPT`, `TOO_LARGE` or `TRUNCATED` if the directory is damaged
   */
  bitmaps(): Promise<readonly BitmapInfo[]> {
    return this.worker.call('bitmaps');
  }

  /**
   * The runs of the disk that a bitmap marks.
   * @throws {Qcow2Error} `NOT_FOUND`; `CORRUPT` if it is inconsistent or damaged
   */
  dirtyRanges(bitmapName: string): Promise<DirtyRange[]> {
    return this.worker.call('dirtyRanges', bitmapName);
  }

  /**
   * The disk as it was at a snapshot.
   * @throws {Qcow2Error} `NOT_FOUND`; `CORRUPT` if the snapshot is damaged
   */
  async openSnapshot(idOrName: string): Promise<AsyncDevice> {
    const { device, size } = await this.worker.call('openSnapshot', idOrName);
    return new AsyncDevice(this.worker, device, size);
  }

  /** Closes the image and ends its worker thread; safe to call again. */
  override async close(): Promise<void> {
    await this.worker.terminate();
  }
}

/** Options of the promise API; the policy for references is a word, since functions cannot cross. */
export type AsyncOpenImageOptions = Omit<OpenImageOptions, 'references'> & {
  /** Which files the image may refer to (default `follow`: any plain path). */
  references?: 'follow' | 'refuse' | 'same-directory' | undefined;
};

/**
 * Opens an image with its backing chain in a worker thread of its own, for reading.
 *
 * @throws {Qcow2Error} as the synchronous `openImage` does
 * @example
 * const image = await openImage('disk.qcow2');
 * const sector = new Uint8Array(512);
 * await image.read(sector, 0);
 * await image.close();
 */
export async function openImage(
  path: string,
  options: AsyncOpenImageOptions = {},
): Promise<AsyncImage> {
  const worker = new ImageWorker({ path, options });
  try {
    return new AsyncImage(worker, await worker.call('open'));
  } catch (error) {
    await worker.terminate();
    throw error;
  }
}
