/** Where the bytes of files come from that are not there until somebody asks. */

import type { BlockDevice } from '../../device/block-device.ts';
import { MemoryDevice } from '../../device/memory.ts';
import { Qcow2Error } from '../../errors.ts';
import type { FileSource } from './file-tree.ts';
import type { SharedTexts } from './shared-texts.ts';

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

/** A text that is asked about in vain while it is made anew would be made anew all the time. */
const KEPT_FOR_MS = 1000;

/**
 * A text about an image that is being written: made anew for whoever opens it, if the image has
 * changed since the last time.
 */
export class ChangingTextSource implements FileSource {
  readonly #content: () => Iterable<string>;
  readonly #changes: () => number;
  #latest: { device: BlockDevice; changes: number; madeAt: number } | undefined;

  /**
   * @param content the text in pieces
   * @param changes how often the image has been changed
   */
  constructor(content: () => Iterable<string>, changes: () => number) {
    this.#content = content;
    this.#changes = changes;
  }

  get isOpen(): boolean {
    return this.#latest?.changes === this.#changes();
  }

  /** The text as it was made last, a moment ago at most. Throws as {@link snapshot}. */
  device(): BlockDevice {
    const latest = this.#latest;
    if (latest !== undefined && performance.now() - latest.madeAt < KEPT_FOR_MS) {
      return latest.device;
    }
    return this.snapshot();
  }

  /** @throws {Qcow2Error} `TOO_LARGE`, or whatever making it throws */
  snapshot(): BlockDevice {
    const changes = this.#changes();
    if (this.#latest?.changes !== changes) {
      const device = new MemoryDevice(collect(this.#content()));
      this.#latest = { device, changes, madeAt: performance.now() };
    }
    return this.#latest.device;
  }
}

/**
 * A text that is different whenever somebody looks, like those of `/proc` and `/sys`. Its size is one
 * that it never exceeds: whoever reads it meets the end before.
 */
export class LiveTextSource implements FileSource {
  readonly isOpen = false;
  readonly #content: () => string;
  readonly #longest: () => number;
  #mostBytes: number | undefined;

  /** @param longest bytes that the text never exceeds */
  constructor(content: () => string, longest: () => number) {
    this.#content = content;
    this.#longest = longest;
  }

  /** Whole pages, which tells those who know `/sys` what kind of file it is. */
  get mostBytes(): number {
    return (this.#mostBytes ??= Math.ceil(this.#longest() / PAGE_BYTES) * PAGE_BYTES);
  }

  device(): BlockDevice {
    return this.snapshot();
  }

  /** @throws whatever making it throws */
  snapshot(): MemoryDevice {
    return new MemoryDevice(Buffer.from(this.#content()));
  }
}

const PAGE_BYTES = 4096;

/** Texts that are kept as they were for those who opened them; each may be long. */
const MAX_KEPT_TEXTS = 8;

/** Texts as they were when they were opened, by handle. */
export class KeptTexts {
  readonly #texts = new Map<number, BlockDevice>();
  readonly #shared: SharedTexts | undefined;
  #lastHandle: number;

  /**
   * @param above all handles are greater than this
   * @param shared where those go that have room there: another thread may be asked for them
   */
  constructor(above = 0, shared?: SharedTexts) {
    this.#lastHandle = above;
    this.#shared = shared;
  }

  /** Returns the handle. Of too many texts the oldest is given up. */
  keep(text: BlockDevice): number {
    const shared = this.#shared?.keep(text);
    if (shared !== undefined) return shared;
    if (this.#texts.size === MAX_KEPT_TEXTS) {
      const [oldest] = this.#texts.keys();
      this.#texts.delete(oldest!);
    }
    this.#texts.set(++this.#lastHandle, text);
    return this.#lastHandle;
  }

  /** The text of a handle; undefined for one that is not known, or was given up. */
  at(handle: number): BlockDevice | undefined {
    return this.#texts.get(handle) ?? this.#shared?.at(handle);
  }

  /** Gives a text up; nothing happens if there is none of that handle. */
  forget(handle: number): void {
    this.#texts.delete(handle);
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
