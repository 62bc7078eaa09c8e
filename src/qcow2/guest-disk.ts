/**
 * A disk as the guest sees it: one L1 table of an image, the files that its clusters are in, and
 * the backing device behind it. The active disk and each internal snapshot are such disks.
 */

import { checkRange, mergeExtents, ReadOnlyDevice } from '../device/block-device.ts';
import type { BlockDevice, Extent, HostRange } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import { encryptedError } from '../format/qcow2/header.ts';
import type { ImageClusters } from './cluster-cache/image-clusters.ts';
import { assert } from '../util/assert.ts';
import { CompressedReads } from './compressed-reads.ts';
import { Mapping, NO_HOST_OFFSET, RunKind } from './mapping.ts';
import type { L1Location } from './mapping.ts';
import type { TableCache } from './table-cache.ts';

/** What all disks of one image share. */
export interface ImageContext {
  readonly path: string;
  readonly header: Qcow2Header;
  /** The image's own file: metadata, compressed clusters, and data unless it is external. */
  readonly file: BlockDevice;
  /** Where data clusters are: the image's file or the external data file. */
  readonly dataFile: BlockDevice;
  /** Path of `dataFile`. */
  readonly dataPath: string;
  readonly tables: TableCache;
  readonly clusters: ImageClusters;
  /** The device behind unallocated clusters. */
  readonly backing: BlockDevice | undefined;
  /**
   * Whether data clusters are to be looked for holes of the host file: it pays in images whose
   * metadata was preallocated, and costs a system call an extent in others.
   */
  readonly looksForHostHoles: () => boolean;
}

/** Which part of an image is the disk. */
export interface DiskLocation {
  l1: L1Location;
  /** Bytes of the disk. */
  size: number;
}

/** A readable disk of a qcow2 image. */
export class GuestDisk extends ReadOnlyDevice {
  /** Bytes; changes when an image is resized. */
  size: number;
  protected readonly context: ImageContext;
  readonly #mapping: Mapping;
  readonly #compressed: CompressedReads;

  constructor(context: ImageContext, { l1, size }: DiskLocation) {
    super();
    this.context = context;
    this.size = size;
    this.#mapping = new Mapping(context.header, context.tables, l1);
    const { clusters, header, tables } = context;
    this.#compressed = new CompressedReads(clusters, new Mapping(header, tables, l1), l1.offset);
  }

  /**
   * Fills all of `target` with the disk's bytes from `offset`.
   * @throws {Qcow2Error} `OUT_OF_RANGE`; `CORRUPT`, `TRUNCATED` or `HOST` where the image or a
   * file behind it is damaged or cannot be read
   */
  override read(target: Uint8Array, offset: number): void {
    const { length } = target;
    checkRange(offset, length, this.size);
    try {
      const mapping = this.#mapping;
      let hasCompressed = false;
      for (let done = 0; done < length;) {
        const at = offset + done;
        this.#lookup(at, length - done);
        const count = mapping.length;
        if (mapping.kind === RunKind.COMPRESSED) {
          if (!hasCompressed) this.#compressed.begin({ offset, length }, at + count, this.size);
          hasCompressed = true;
          const inCluster = at % this.context.header.clusterSize;
          this.#compressed.read(target, { start: done, length: count, inCluster }, mapping);
        } else {
          const part = count === length ? target : target.subarray(done, done + count);
          this.#readRun(part, at);
        }
        done += count;
      }
      if (hasCompressed) this.#compressed.finish(target);
    } catch (error) {
      throw error instanceof Qcow2Error ? error.inFile(this.context.path) : error;
    }
  }

  override *extents(offset: number, length: number): Generator<Extent> {
    checkRange(offset, length, this.size);
    yield* mergeExtents(this.#rawExtents(offset, length));
  }

  hostRange(offset: number, length: number): HostRange | undefined {
    checkRange(offset, length, this.size);
    if (length === 0) return undefined;
    this.#lookup(offset, length);
    const { kind, hostOffset, length: runLength } = this.#mapping;
    if (runLength < length) return undefined;
    const { backing, dataFile } = this.context;
    if (kind === RunKind.DATA) {
      const isStored = hostOffset + length <= dataFile.size;
      return isStored ? dataFile.hostRange?.(hostOffset, length) : undefined;
    }
    if (kind !== RunKind.UNALLOCATED || backing === undefined) return undefined;
    const isBehind = offset + length <= backing.size;
    return isBehind ? backing.hostRange?.(offset, length) : undefined;
  }

  override close(): void {
    // The files belong to the image.
  }

  #lookup(offset: number, maxLength: number): void {
    const { header } = this.context;
    if (header.encryption !== 'none') throw encryptedError(header.encryption);
    this.#mapping.lookup(offset, maxLength);
  }

  // ---- Reading ------------------------------------------------------------------------------

  /**
   * Whether a range reads as zeroes, as far as the tables tell; the part of it past the end of the
   * disk does.
   * @throws {Qcow2Error} `CORRUPT` or `TRUNCATED` where the tables are damaged
   */
  readsZero(offset: number, length: number): boolean {
    const end = Math.min(offset + length, this.size);
    const backingSize = this.context.backing?.size ?? 0;
    try {
      for (let at = offset; at < end; at += this.#mapping.length) {
        this.#lookup(at, end - at);
        const { kind } = this.#mapping;
        const isHole = kind === RunKind.UNALLOCATED && at >= backingSize;
        if (kind !== RunKind.ZERO && !isHole) return false;
      }
    } catch (error) {
      throw error instanceof Qcow2Error ? error.inFile(this.context.path) : error;
    }
    return true;
  }

  /** As {@link read}, with zeroes past the end of the disk. */
  readPadded(target: Uint8Array, offset: number): void {
    const available = Math.max(0, Math.min(target.length, this.size - offset));
    if (available > 0) this.read(target.subarray(0, available), offset);
    target.fill(0, available);
  }

  /** Fills `target` from the run that was just looked up, and which starts at `offset`. */
  #readRun(target: Uint8Array, offset: number): void {
    const { kind, hostOffset } = this.#mapping;
    switch (kind) {
      case RunKind.DATA:
        this.#readData(target, hostOffset);
        break;
      case RunKind.ZERO:
        target.fill(0);
        break;
      case RunKind.UNALLOCATED:
        this.#readBacking(target, offset);
        break;
      case RunKind.COMPRESSED:
        assert(false, 'compressed clusters are read elsewhere');
    }
  }

  #readData(target: Uint8Array, hostOffset: number): void {
    const { dataFile } = this.context;
    const available = dataFile.size - hostOffset;
    if (available >= target.length) {
      dataFile.read(target, hostOffset);
    } else {
      this.#readDataAtEnd(target, hostOffset);
    }
  }

  /** Reads a run that passes the end of the host file. */
  #readDataAtEnd(target: Uint8Array, hostOffset: number): void {
    // The last cluster may be cut short: what was never written reads as zeroes. A cluster that
    // lies wholly past the end was lost, which QEMU's check reports too, though it reads zeroes.
    const { dataFile, dataPath, header } = this.context;
    const fileEnd = dataFile.size;
    const lastCluster = hostOffset + target.length - 1;
    const clusterStart = lastCluster - (lastCluster % header.clusterSize);
    if (clusterStart >= fileEnd) {
      throw new Qcow2Error('TRUNCATED', `the file of ${fileEnd} bytes ends before it`, {
        file: dataPath,
        structure: 'data cluster',
        offset: Math.max(hostOffset - (hostOffset % header.clusterSize), 0),
        hint: 'the image was cut short: get the whole file',
      });
    }
    const available = Math.max(0, fileEnd - hostOffset);
    if (available > 0) dataFile.read(target.subarray(0, available), hostOffset);
    target.fill(0, available);
  }

  #readBacking(target: Uint8Array, offset: number): void {
    const { backing } = this.context;
    const available = backing === undefined ? 0 : Math.max(0, backing.size - offset);
    if (available >= target.length) {
      backing!.read(target, offset);
      return;
    }
    if (available > 0) backing!.read(target.subarray(0, available), offset);
    target.fill(0, available);
  }

  // ---- Extents ------------------------------------------------------------------------------

  *#rawExtents(offset: number, length: number): Generator<Extent> {
    const end = offset + length;
    const hostRuns = new HostRuns(this.context.dataFile);
    for (let at = offset; at < end;) {
      try {
        this.#lookup(at, end - at);
      } catch (error) {
        throw error instanceof Qcow2Error ? error.inFile(this.context.path) : error;
      }
      // The generator may be left for as long as its user likes, so the result is copied first.
      const { kind, hostOffset, length: runLength } = this.#mapping;
      const range = { offset: at, length: runLength };
      const host =
        hostOffset === NO_HOST_OFFSET ? {} : { hostOffset, hostFile: this.context.dataPath };
      switch (kind) {
        case RunKind.DATA:
          yield* this.#dataExtents(at, runLength, hostOffset, hostRuns);
          break;
        case RunKind.ZERO:
          yield { ...range, kind: 'zero', zero: true, present: true, depth: 0, ...host };
          break;
        case RunKind.COMPRESSED:
          yield { ...range, kind: 'compressed', zero: false, present: true, depth: 0 };
          break;
        case RunKind.UNALLOCATED:
          yield* this.#backingExtents(range, host);
          break;
      }
      at += runLength;
    }
  }

  *#dataExtents(
    offset: number,
    length: number,
    hostOffset: number,
    hostRuns: HostRuns,
  ): Generator<Extent> {
    const { dataFile, dataPath } = this.context;
    const whole: Extent = {
      offset,
      length,
      kind: 'data',
      zero: false,
      present: true,
      depth: 0,
      hostOffset,
      hostFile: dataPath,
    };
    const inFile = Math.min(length, dataFile.size - hostOffset);
    if (inFile <= 0 || !this.context.looksForHostHoles()) {
      yield whole;
      return;
    }
    for (let done = 0; done < inFile;) {
      const run = hostRuns.at(hostOffset + done);
      const count = Math.min(inFile, run.offset + run.length - hostOffset) - done;
      yield {
        ...whole,
        offset: offset + done,
        length: count,
        zero: run.zero,
        hostOffset: hostOffset + done,
      };
      done += count;
    }
    if (inFile < length) {
      const rest = { offset: offset + inFile, length: length - inFile };
      yield { ...whole, ...rest, zero: true, hostOffset: hostOffset + inFile };
    }
  }

  /** What is behind an unallocated run, for which host space may be reserved all the same. */
  *#backingExtents(
    { offset, length }: { offset: number; length: number },
    host: Pick<Extent, 'hostOffset' | 'hostFile'>,
  ): Generator<Extent> {
    const { backing } = this.context;
    const hole: Extent = {
      offset,
      length,
      kind: 'hole',
      zero: true,
      present: false,
      depth: 0,
      ...host,
    };
    if (backing === undefined) {
      yield hole;
      return;
    }
    const inBacking = Math.max(0, Math.min(length, backing.size - offset));
    if (inBacking > 0) {
      for (const extent of backing.extents(offset, inBacking)) {
        yield { ...extent, depth: extent.depth + 1 };
      }
    }
    // What lies past the end of a shorter backing file reads as zeroes because of that file.
    if (inBacking < length) {
      const rest = { ...hole, offset: offset + inBacking, length: length - inBacking };
      if (host.hostOffset !== undefined) rest.hostOffset = host.hostOffset + inBacking;
      yield { ...rest, present: true, depth: 1 };
    }
  }
}

/** The runs of a host file that a walk comes by; the last one is kept, for it may be a long hole. */
class HostRuns {
  readonly #file: BlockDevice;
  #run: Extent | undefined;

  constructor(file: BlockDevice) {
    this.#file = file;
  }

  /** The run that the byte at `offset` is in. The file is longer than that. */
  at(offset: number): Extent {
    const known = this.#run;
    if (known !== undefined && offset >= known.offset && offset < known.offset + known.length) {
      return known;
    }
    const [run] = this.#file.extents(offset, this.#file.size - offset);
    assert(run !== undefined, 'a file has a run at every offset');
    this.#run = run;
    return run;
  }
}
