/**
 * Which host clusters hold metadata. Every write is held against it, so that a damaged image, in
 * which data and metadata claim the same cluster, is found out before more is destroyed.
 *
 * Known are the header, the active L1 and L2 tables, the refcount table and blocks, the snapshot
 * table, the snapshots' L1 tables and the bitmap directory with its tables: what QEMU checks by
 * default, and all that can be told without reading every table.
 */

import type { BlockDevice } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';

/** What a host cluster of metadata is. */
export type MetadataKind =
  | 'header'
  | 'L1 table'
  | 'L2 table'
  | 'refcount table'
  | 'refcount block'
  | 'snapshot table'
  | 'snapshot L1 table'
  | 'bitmap directory'
  | 'bitmap table';

/** A run of metadata. */
export interface MetadataRange {
  /** Host offset of its first byte. */
  offset: number;
  /** Bytes. */
  length: number;
  kind: MetadataKind;
}

/** The host clusters of an image that hold metadata, by their index. */
export class MetadataMap {
  readonly #clusterSize: number;
  readonly #kinds = new Map<number, MetadataKind>();

  constructor(clusterSize: number) {
    this.#clusterSize = clusterSize;
  }

  /**
   * Adds the clusters that a structure touches.
   * @throws {Qcow2Error} `CORRUPT` if one of them already belongs to a structure of another kind
   */
  add({ offset, length, kind }: MetadataRange): void {
    const end = Math.ceil((offset + length) / this.#clusterSize);
    for (let index = Math.floor(offset / this.#clusterSize); index < end; index++) {
      const known = this.#kinds.get(index);
      if (known !== undefined && known !== kind) {
        throw overlapError(kind, known, index * this.#clusterSize);
      }
      this.#kinds.set(index, kind);
    }
  }

  /** Removes the clusters of a structure that is no more. */
  remove({ offset, length }: Omit<MetadataRange, 'kind'>): void {
    const end = Math.ceil((offset + length) / this.#clusterSize);
    for (let index = Math.floor(offset / this.#clusterSize); index < end; index++) {
      this.#kinds.delete(index);
    }
  }

  /** Removes all structures of a kind. */
  removeKind(kind: MetadataKind): void {
    for (const [index, known] of this.#kinds) if (known === kind) this.#kinds.delete(index);
  }

  /**
   * Checks that a range of the file is not metadata.
   * @param what is about to be put there
   * @throws {Qcow2Error} `CORRUPT`
   */
  checkClear(offset: number, length: number, what: string): void {
    const clusterSize = this.#clusterSize;
    for (let at = offset - (offset % clusterSize); at < offset + length; at += clusterSize) {
      const kind = this.#kinds.get(at / clusterSize);
      if (kind !== undefined) throw overlapError(what, kind, at);
    }
  }
}

function overlapError(what: string, kind: string, offset: number): Qcow2Error {
  return new Qcow2Error('CORRUPT', `it would overlap the ${kind} there; nothing was written`, {
    structure: what,
    offset,
    hint: 'repair the image with: qcow2 check -r all',
  });
}

/** The structures that a header gives the place of. */
export function* headerStructures(header: Qcow2Header): Generator<MetadataRange> {
  const { clusterSize, extensions } = header;
  yield { offset: 0, length: clusterSize, kind: 'header' };
  const { refcountTableOffset: offset, refcountTableClusters } = header;
  yield { offset, length: refcountTableClusters * clusterSize, kind: 'refcount table' };
  yield { offset: header.l1TableOffset, length: header.l1Size * 8, kind: 'L1 table' };
  if (extensions.bitmaps !== undefined && header.areBitmapsValid) {
    const { directoryOffset, directorySize } = extensions.bitmaps;
    yield { offset: directoryOffset, length: directorySize, kind: 'bitmap directory' };
  }
}

/** Bytes of the active L1 table that are read at a time. */
const L1_READ_BYTES = 1024 * 1024;

/** The active L2 tables, by reading the L1 table. */
export function* activeL2Tables(file: BlockDevice, header: Qcow2Header): Generator<MetadataRange> {
  const { clusterSize, l1Size, l1TableOffset } = header;
  const words = Buffer.alloc(Math.min(l1Size * 8, L1_READ_BYTES));
  for (let done = 0; done < l1Size * 8; done += words.length) {
    const part = words.subarray(0, Math.min(words.length, l1Size * 8 - done));
    file.read(part, l1TableOffset + done);
    for (let at = 0; at < part.length; at += 8) {
      const offset = Number(part.readBigUInt64BE(at) & 0x00ff_ffff_ffff_fe00n);
      if (offset !== 0) yield { offset, length: clusterSize, kind: 'L2 table' };
    }
  }
}
