/** Where the bytes of files come from that are not there until somebody asks. */

import type { BlockDevice } from '../../device/block-device.ts';
import { MemoryDevice } from '../../device/memory.ts';
import { Qcow2Error } from '../../errors.ts';
import type { FileSource } from './file-tree.ts';

/** Devices that a {@link LimitedSources} keeps open. An open snapshot holds an L1 table. */
const MAX_OPEN_DEVICES = 8;

/**
 * Sources of which only the most recently used few are open at a time, so that walking through
 * thousands of snapshots costs no more memory than looking at some.
 */
export class LimitedSources {
  /** Least recently used first. */
  readonly #open = new Map<() => BlockDevice, BlockDevice>();

  /** @param open opens the device anew at each call */
  source(open: () => BlockDevice): FileSource {
    return { device: () => this.#get(open), isOpen: false };
  }

  #get(open: () => BlockDevice): BlockDevice {
    const device = this.#open.get(open) ?? open();
    this.#open.delete(open);
    this.#open.set(open, device);
    if (this.#open.size > MAX_OPEN_DEVICES) {
      const [oldest] = this.#open;
      this.#open.delete(oldest![0]);
      oldest![1].close();
    }
    return device;
  }
}

/** Bytes of one text file of the tree. The map of an image in tatters would be larger. */
const MAX_TEXT_BYTES = 64 * 1024 * 1024;

/** A text that is made when it is first looked at, and kept. */
export class TextSource implements FileSource {
  readonly #content: () => Iterable<string>;
  #device: BlockDevice | undefined;
  #failure: Error | undefined;

  /** @param content the text in pieces */
  constructor(content: () => Iterable<string>) {
    this.#content = content;
  }

  get isOpen(): boolean {
    return this.#device !== undefined;
  }

  /** @throws {Qcow2Error} `TOO_LARGE`, or whatever making it threw the first time */
  device(): BlockDevice {
    if (this.#failure !== undefined) throw this.#failure;
    try {
      return (this.#device ??= new MemoryDevice(collect(this.#content())));
    } catch (error) {
      this.#failure = error instanceof Error ? error : new Error(String(error));
      throw this.#failure;
    }
  }
}

function collect(pieces: Iterable<string>): Buffer {
  const buffers: Buffer[] = [];
  let length = 0;
  for (const piece of pieces) {
    const buffer = Buffer.from(piece);
    length += buffer.length;
    if (length > MAX_TEXT_BYTES) {
      throw new Qcow2Error('TOO_LARGE', `the text is longer than ${MAX_TEXT_BYTES} bytes`, {
        hint: 'let the command print it instead',
      });
    }
    buffers.push(buffer);
  }
  return Buffer.concat(buffers);
}
