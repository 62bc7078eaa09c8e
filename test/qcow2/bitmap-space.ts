/** Images whose bitmaps are written without the rest of the engine. */

import { readFileSync } from 'node:fs';
import { MemoryDevice } from '../../src/device/memory.ts';
import { decodeHeader } from '../../src/format/qcow2/header.ts';
import type { Qcow2Header } from '../../src/format/qcow2/header.ts';
import { readBitmapDirectory } from '../../src/qcow2/bitmaps.ts';
import { BitmapTracker } from '../../src/qcow2/bitmap-writer.ts';
import { refcountAt, setRefcountAt } from '../../src/qcow2/refcounts.ts';
import type { BitmapSpace } from '../../src/qcow2/tracked-bitmap.ts';
import { readU64 } from '../../src/util/bytes.ts';

/** A write that reached the file, or a flush. */
export type Logged = 'flush' | { offset: number; bytes: Uint8Array };

/** A file in memory, with room to grow, that logs what is done to it and can fail. */
export class LoggedFile extends MemoryDevice {
  readonly log: Logged[] = [];
  /** Writes that succeed before one fails. */
  writesLeft = Infinity;

  override write(source: Uint8Array, offset: number): void {
    if (this.writesLeft-- <= 0) throw new Error('no space');
    this.log.push({ offset, bytes: Uint8Array.from(source) });
    super.write(source, offset);
  }

  override flush(): void {
    this.log.push('flush');
  }
}

/** Clusters of an image that has one refcount block. */
class OneBlockSpace implements BitmapSpace {
  readonly tables: string[] = [];
  readonly #header: Qcow2Header;
  readonly #file: LoggedFile;
  readonly #block: Uint8Array;
  readonly #blockOffset: number;
  #freed: number[] = [];

  constructor(header: Qcow2Header, file: LoggedFile) {
    this.#header = header;
    this.#file = file;
    this.#blockOffset = readU64(file.bytes, header.refcountTableOffset, 'block');
    this.#block = file.bytes.slice(this.#blockOffset, this.#blockOffset + header.clusterSize);
  }

  allocateContiguous(count: number): number {
    const { clusterSize } = this.#header;
    let first = 1;
    for (let found = 0; found < count;) {
      if (refcountAt(this.#block, first + found, 4) === 0) found++;
      else {
        first += found + 1;
        found = 0;
      }
    }
    for (let index = first; index < first + count; index++) this.#set(index, 1);
    return first * clusterSize;
  }

  free({ offset, count }: { offset: number; count: number }): void {
    const first = offset / this.#header.clusterSize;
    for (let index = first; index < first + count; index++) this.#freed.push(index);
  }

  commit(): void {
    this.#file.write(this.#block, this.#blockOffset);
    this.#file.flush();
    for (const index of this.#freed) this.#set(index, 0);
    this.#freed = [];
  }

  checkClear(): void {
    // No test lets bitmaps claim what is not theirs.
  }

  addTable(offset: number, length: number): void {
    this.tables.push(`+${offset}:${length}`);
  }

  removeTable(offset: number, length: number): void {
    this.tables.push(`-${offset}:${length}`);
  }

  #set(index: number, count: number): void {
    const isInBlock = index < this.#block.length / 2;
    if (!isInBlock || refcountAt(this.#block, index, 4) === count) {
      throw new Error(`cluster ${index}: ${count}`);
    }
    setRefcountAt(this.#block, index, 4, count);
  }
}

/** An image in memory whose bitmaps are written. */
export interface OpenBitmaps {
  file: LoggedFile;
  header: Qcow2Header;
  space: OneBlockSpace;
  tracker: BitmapTracker;
  /** Flags of the bitmaps in the file, by name. */
  flags: () => Record<string, number>;
}

/** Opens an image, by its path or its bytes; the file itself never changes. */
export function openBitmaps(image: string | Uint8Array, maxMemoryBytes?: number): OpenBitmaps {
  const stored = typeof image === 'string' ? readFileSync(image) : image;
  const bytes = new Uint8Array(Math.max(stored.length, 4 * 1024 * 1024));
  bytes.set(stored);
  const file = new LoggedFile(bytes);
  const header = decodeHeader(bytes);
  const space = new OneBlockSpace(header, file);
  const tracker = new BitmapTracker({ header, file, space, maxMemoryBytes });
  const flags = (): Record<string, number> =>
    Object.fromEntries(readBitmapDirectory({ header, file }).map((one) => [one.name, one.flags]));
  return { file, header, space, tracker, flags };
}
