/**
 * Compressed writes (specification: "Compressed Clusters Descriptor"): a whole cluster at a time,
 * packed one behind the other.
 */

import { clusterEncoder } from '../compression/codec.ts';
import type { ClusterEncoder } from '../compression/codec.ts';
import { Qcow2Error } from '../errors.ts';
import { compressedEntry } from '../format/qcow2/l2-entry.ts';
import { alignUp } from '../util/bytes.ts';
import type { DiskWriter } from './disk-writer.ts';
import type { WriteContext } from './write-context.ts';

const SECTOR_BYTES = 512;

/** Writes compressed clusters to the active disk of an image. */
export class CompressedWriter {
  readonly #context: WriteContext;
  readonly #writer: DiskWriter;
  readonly #encoder: ClusterEncoder;
  /** One cluster of guest data, where the disk ends inside it. */
  readonly #padded: Uint8Array;
  /** Compressed bytes, with room to fill the last sector. */
  readonly #compressed: Uint8Array;

  /** @throws {Qcow2Error} `MISSING_DEPENDENCY` if nothing here compresses that way */
  constructor(context: WriteContext, writer: DiskWriter) {
    const { header } = context;
    this.#context = context;
    this.#writer = writer;
    this.#encoder = clusterEncoder(header.compressionType);
    this.#padded = new Uint8Array(header.clusterSize);
    this.#compressed = new Uint8Array(header.clusterSize + SECTOR_BYTES);
  }

  /**
   * Stores whole clusters compressed, each where that makes it smaller.
   * @throws {Qcow2Error} as writing does; `UNSUPPORTED` for an image with an external data file
   */
  write(source: Uint8Array, offset: number): void {
    this.#checkPossible();
    const { clusterSize } = this.#context.header;
    for (let done = 0; done < source.length; done += clusterSize) {
      this.#writeCluster(source.subarray(done, done + clusterSize), offset + done);
    }
  }

  /**
   * Stores a cluster that has been compressed already.
   * @param compressed fewer bytes than a cluster has
   * @throws {Qcow2Error} as {@link write}
   */
  store(compressed: Uint8Array, guest: number): void {
    this.#checkPossible();
    this.#compressed.set(compressed);
    this.#storeCluster(compressed.length, guest);
  }

  #checkPossible(): void {
    if (!this.#context.header.hasExternalDataFile) return;
    throw new Qcow2Error(
      'UNSUPPORTED',
      'an image with an external data file cannot have compressed clusters',
      { hint: 'write it uncompressed' },
    );
  }

  #writeCluster(data: Uint8Array, guest: number): void {
    const { clusterSize } = this.#context.header;
    let cluster = data;
    if (data.length < clusterSize) {
      cluster = this.#padded;
      cluster.set(data);
      cluster.fill(0, data.length);
    }
    const length = this.#encoder(cluster, this.#compressed.subarray(0, clusterSize));
    if (length === undefined) {
      this.#writer.write(data, guest);
      return;
    }
    this.#storeCluster(length, guest);
  }

  /** Stores the compressed bytes that are in the buffer. */
  #storeCluster(length: number, guest: number): void {
    const { header, editor, allocator, committer, metadata } = this.#context;
    const { clusterSize, l2Entries } = header;
    const index = guest / clusterSize;
    const l1Index = Math.floor(index / l2Entries);
    const table = editor.writableTable(l1Index);
    const hostOffset = allocator.allocateBytes(length);
    try {
      metadata.checkClear(hostOffset, length, 'compressed cluster');
      this.#writeBuffer(hostOffset, length);
      committer.noteNewData();
      const l2Index = index - l1Index * l2Entries;
      const { words, firstIndex } = editor.modify(table, l2Index);
      const at = (l2Index - firstIndex) * (header.l2EntrySize / 4);
      const oldHigh = words[at]!;
      const oldLow = words[at + 1]!;
      const entry = compressedEntry({ offset: hostOffset, length }, header.clusterBits);
      words[at] = entry.high;
      words[at + 1] = entry.low;
      if (header.hasExtendedL2) words.fill(0, at + 2, at + 4);
      editor.freeEntry(oldHigh, oldLow);
    } catch (error) {
      allocator.releaseBytes(hostOffset, length);
      throw error;
    }
  }

  #writeBuffer(hostOffset: number, length: number): void {
    const { file } = this.#context;
    // Readers take whole sectors, so the file should not end inside the last one.
    const end = alignUp(hostOffset + length, SECTOR_BYTES);
    const stored = end > file.size ? end - hostOffset : length;
    this.#compressed.fill(0, length, stored);
    file.write(this.#compressed.subarray(0, stored), hostOffset);
  }
}
