/** An open qcow2 image: its active disk as a device, and its snapshots and bitmaps. */

import { clusterDecoder } from '../compression/codec.ts';
import type { ClusterDecoder } from '../compression/codec.ts';
import { checkRange } from '../device/block-device.ts';
import type {
  BlockDevice,
  HostFile,
  HostRange,
  WriteZeroesOptions,
} from '../device/block-device.ts';
import { FileDevice } from '../device/file.ts';
import { Qcow2Error } from '../errors.ts';
import { decodeHeader, firstClusterSize, V3_HEADER_BYTES } from '../format/qcow2/header.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import type { SnapshotRow } from '../format/qcow2/snapshot-table.ts';
import { DEFAULT_CLUSTER_CACHE_BYTES, DEFAULT_METADATA_CACHE_BYTES } from '../limits.ts';
import { assert } from '../util/assert.ts';
import type { PassDiscard } from './allocator.ts';
import type { Amendment } from './amender.ts';
import { ImageClusters } from './cluster-cache/image-clusters.ts';
import type { SharedClusterCache } from './cluster-cache/shared-cluster-cache.ts';
import { hasPreallocatedMetadata } from './host-holes.ts';
import { DiskWithBitmaps } from './image-bitmaps.ts';
import { ImageWriter } from './image-writer.ts';
import type { BackingReference } from './image-writer.ts';
import type { PreallocationMode } from './preallocation.ts';
import { findSnapshot, Qcow2Snapshot, readSnapshotTable } from './snapshots.ts';
import { TableCache } from './table-cache.ts';
import type { EngineSteps } from './write-context.ts';

/** Sizes of an image's caches, in bytes. */
export interface CacheOptions {
  /** For slices of L1 and L2 tables (default 16 MiB). */
  metadataCacheBytes?: number | undefined;
  /** For decompressed clusters (default 16 MiB). */
  clusterCacheBytes?: number | undefined;
  /** The cluster cache of the process, in place of one for this image alone. */
  clusterCache?: SharedClusterCache | undefined;
}

/** The parts that an image is put together from. */
export interface Qcow2ImageParts<B extends BlockDevice = BlockDevice> extends CacheOptions {
  /** The image's file; the image closes it. */
  file: BlockDevice;
  /** The header of that file. */
  header: Qcow2Header;
  /** Path for messages. */
  path: string;
  /** The external data file, where the header has one; the image closes it. */
  dataFile?: { device: BlockDevice; path: string } | undefined;
  /** What is behind unallocated clusters; the image closes it. */
  backing?: B | undefined;
  /**
   * Whether the file and the data file were opened for writing, and are each a {@link HostFile}
   * (default false).
   */
  writable?: boolean | undefined;
  /** Which freed clusters are given back to the host's filesystem. */
  passDiscard?: PassDiscard | undefined;
}

/** Options of {@link Qcow2Image.resize}. */
export interface ResizeOptions {
  /** Allow a smaller size, which loses the data past it (default false). */
  shrink?: boolean | undefined;
}

/**
 * Reads and checks the header of a file.
 * @throws {Qcow2Error} `NOT_THIS_FORMAT`, `UNSUPPORTED`, `CORRUPT`, `TOO_LARGE` or `TRUNCATED`
 */
export function readHeader(file: BlockDevice): Qcow2Header {
  const start = new Uint8Array(Math.min(file.size, V3_HEADER_BYTES));
  file.read(start, 0);
  const firstCluster = new Uint8Array(Math.min(file.size, firstClusterSize(start)));
  file.read(firstCluster, 0);
  return decodeHeader(firstCluster);
}

/** An open qcow2 image. As a device it is the active disk, backing chain included. */
export class Qcow2Image<B extends BlockDevice = BlockDevice> extends DiskWithBitmaps {
  /** Tells it from a raw image. */
  readonly format = 'qcow2';
  override readonly readOnly: boolean;
  /** Path that it was opened by. */
  readonly path: string;
  /** The header, decoded. */
  readonly header: Qcow2Header;
  /** The image's own file. */
  readonly file: BlockDevice;
  /** The external data file, where there is one. */
  readonly dataFile: { device: BlockDevice; path: string } | undefined;
  /** What is behind unallocated clusters. */
  readonly backing: B | undefined;
  #snapshots: SnapshotRow[] | undefined;
  /** Changes the image; undefined where it is open for reading. */
  protected readonly writer: ImageWriter | undefined;

  /** @throws {Qcow2Error} `CORRUPT` if the L1 table of a disk that has a size has no place */
  constructor(parts: Qcow2ImageParts<B>) {
    const { file, header, path, dataFile, backing } = parts;
    const { clusterSize } = header;
    const l1 = { offset: header.l1TableOffset, size: header.l1Size };
    const tables = new TableCache(file, {
      clusterSize,
      budgetBytes: parts.metadataCacheBytes ?? DEFAULT_METADATA_CACHE_BYTES,
    });
    const bytes = parts.clusterCacheBytes ?? DEFAULT_CLUSTER_CACHE_BYTES;
    const cache = parts.clusterCache ?? { bytes };
    // Amending can change the type.
    const decoder = (): ClusterDecoder => clusterDecoder(header.compressionType);
    const clusters = new ImageClusters({ header, file, cache }, decoder);
    const fileName = file instanceof FileDevice ? file.shownName : undefined;
    let looksForHoles: boolean | undefined;
    super(
      {
        path,
        header,
        file,
        dataFile: dataFile?.device ?? file,
        dataPath: dataFile?.path ?? fileName ?? path,
        backing,
        tables,
        clusters,
        looksForHostHoles: () =>
          (looksForHoles ??= file instanceof FileDevice && hasPreallocatedMetadata(header, file)),
      },
      { l1, size: header.size },
    );
    this.readOnly = parts.writable !== true;
    this.path = path;
    this.header = header;
    this.file = file;
    this.dataFile = dataFile;
    this.backing = backing;
    if (parts.writable === true) {
      this.writer = new ImageWriter({
        ...parts,
        file: file as HostFile,
        dataFile: dataFile?.device as HostFile | undefined,
        tables,
        clusters,
        reader: this,
        l1,
        backing,
        passDiscard: parts.passDiscard,
        metadataCacheBytes: parts.metadataCacheBytes,
      });
    }
  }

  /** Uses the cluster cache of the process from now on, in place of its own; its backing chain too. */
  shareClusterCache(cache: SharedClusterCache): void {
    this.context.clusters.share(cache);
    if (this.backing instanceof Qcow2Image) this.backing.shareClusterCache(cache);
  }

  /** The cache of its decompressed clusters, once there is one. */
  get clusterCache(): SharedClusterCache | undefined {
    return this.context.clusters.cache;
  }

  /** Zeroes are a matter of L2 entries, except in version 2. */
  get zeroesFast(): boolean {
    return this.header.version >= 3;
  }

  /**
   * Stores all of `source` at `offset` of the disk. It survives a power cut after {@link flush}.
   * @throws {Qcow2Error} `READ_ONLY`, `OUT_OF_RANGE`; `HOST` if the host refuses (no space, an I/O
   * error): the image stays valid, and goes on working once there is room; `CORRUPT`
   */
  override write(source: Uint8Array, offset: number): void {
    const writer = this.openWriter;
    checkRange(offset, source.length, this.size);
    writer.write(source, offset);
  }

  /**
   * Stores clusters compressed, each where that makes it smaller.
   *
   * @param source whole clusters, except that the last may end with the disk
   * @param offset a multiple of the cluster size
   * @throws {Qcow2Error} as {@link write}; `OUT_OF_RANGE` for parts of clusters; `UNSUPPORTED` for
   * an image with an external data file; `MISSING_DEPENDENCY` if nothing here compresses that way
   */
  writeCompressed(source: Uint8Array, offset: number): void {
    const writer = this.openWriter;
    const { length } = source;
    checkRange(offset, length, this.size);
    const { clusterSize } = this.header;
    const isWhole = length % clusterSize === 0 || offset + length === this.size;
    if (offset % clusterSize !== 0 || !isWhole) {
      throw new Qcow2Error('OUT_OF_RANGE', 'only whole clusters can be written compressed', {
        file: this.path,
        hint: `its clusters have ${clusterSize} bytes`,
      });
    }
    writer.writeCompressed(source, offset);
  }

  /**
   * Stores a cluster that has been compressed already, by other threads perhaps. What the cluster
   * holds is not looked at.
   *
   * @param compressed what `clusterEncoder` (compression/codec.ts) made of a whole cluster, with
   * zeroes past the end of the disk, by the image's compression type
   * @param offset a multiple of the cluster size
   * @throws {Qcow2Error} as {@link writeCompressed}
   */
  storeCompressed(compressed: Uint8Array, offset: number): void {
    const writer = this.openWriter;
    const { clusterSize } = this.header;
    checkRange(offset, 1, this.size);
    assert(offset % clusterSize === 0, 'a compressed cluster has a whole cluster for itself');
    assert(
      compressed.length > 0 && compressed.length < clusterSize,
      'a compressed cluster is smaller than it was',
    );
    const length = Math.min(clusterSize, this.size - offset);
    writer.storeCompressed(compressed, { offset, length });
  }

  /**
   * Makes a range read as zeroes.
   * @throws {Qcow2Error} as {@link write}
   */
  override writeZeroes(offset: number, length: number, options: WriteZeroesOptions = {}): void {
    const writer = this.openWriter;
    checkRange(offset, length, this.size);
    writer.writeZeroes(offset, length, { mayUnmap: options.mayUnmap ?? false });
  }

  /**
   * Makes a range read as zeroes whatever is behind it, now or later: also where it does so already
   * because nothing is.
   * @throws {Qcow2Error} as {@link write}
   */
  pinZeroes(offset: number, length: number): void {
    const writer = this.openWriter;
    checkRange(offset, length, this.size);
    writer.writeZeroes(offset, length, { mayUnmap: true, isExplicit: true });
  }

  /**
   * Gives up the clusters that lie wholly in a range; they read as zeroes afterwards. In a version
   * 2 image with a backing file nothing happens, because the format cannot say that.
   * @throws {Qcow2Error} as {@link write}
   */
  override discard(offset: number, length: number): void {
    const writer = this.openWriter;
    checkRange(offset, length, this.size);
    writer.discard(offset, length);
  }

  /**
   * Changes the size of the disk. What it gains reads as zeroes.
   *
   * @param size bytes, a multiple of 512
   * @throws {Qcow2Error} as {@link write}; `INVALID_OPTION` for a size that cannot be one, or a
   * smaller one without `shrink`; `TOO_LARGE`; `UNSUPPORTED` for a version 2 image with snapshots
   */
  resize(size: number, options: ResizeOptions = {}): void {
    const writer = this.openWriter;
    if (size < this.size && options.shrink !== true) {
      throw new Qcow2Error('INVALID_OPTION', 'the data past the new end would be lost', {
        file: this.path,
        hint: 'set `shrink` (--shrink) if that is meant',
      });
    }
    try {
      writer.resize(size, (newSize) => {
        this.size = newSize;
      });
    } finally {
      this.size = this.header.size;
    }
  }

  /**
   * Gives each cluster of a range its space before anything is written to it. Clusters that have
   * some keep it.
   *
   * @param offset of a range that reads as zeroes where it has no space
   * @throws {Qcow2Error} as {@link write}
   */
  preallocate(offset: number, length: number, mode: PreallocationMode): void {
    const writer = this.openWriter;
    checkRange(offset, length, this.size);
    writer.preallocate({ offset, length, mode });
  }

  /**
   * Makes an internal snapshot of the disk as it is. It takes effect in one instant: after a crash
   * it is there, or nothing of it is.
   *
   * @param name 1 to 255 bytes; need not be unique, since the id is
   * @returns its row of the snapshot table
   * @throws {Qcow2Error} as {@link write}; `UNSUPPORTED` for an image with an external data file, or
   * if a refcount is too narrow to share a cluster once more
   */
  createSnapshot(name: string): SnapshotRow {
    let row: SnapshotRow;
    try {
      row = this.openWriter.createSnapshot(name);
    } finally {
      // It may have been made though its last flush failed.
      this.#snapshots = undefined;
    }
    return findSnapshot(this.snapshots, row.id) ?? row;
  }

  /**
   * Makes the disk what it was at a snapshot, its size too. What was written since is lost.
   *
   * @param idOrName looked for among the ids first, then among the names
   * @throws {Qcow2Error} as {@link createSnapshot}; `NOT_FOUND`; `UNSUPPORTED` for an image with
   * bitmaps
   */
  applySnapshot(idOrName: string): void {
    const writer = this.openWriter;
    // Its tables are looked at as a device's would be.
    const { info } = this.openSnapshot(idOrName);
    try {
      writer.applySnapshot(info);
    } finally {
      this.size = this.header.size;
    }
  }

  /**
   * Deletes a snapshot. Devices that {@link openSnapshot} gave for it must not be used any more.
   *
   * @param idOrName looked for among the ids first, then among the names
   * @throws {Qcow2Error} as {@link write}; `NOT_FOUND`
   */
  deleteSnapshot(idOrName: string): void {
    const writer = this.openWriter;
    const { info } = this.openSnapshot(idOrName);
    try {
      writer.deleteSnapshot(info);
    } finally {
      this.#snapshots = undefined;
    }
  }

  /**
   * Changes which backing file the image names, durably and in one instant, after everything that
   * was written. What the disk reads as stays the same only if the new one has the same bytes where
   * this image has none. The open image goes on with the old one: close it.
   *
   * @throws {Qcow2Error} as {@link write}; `UNSUPPORTED` if its external data file is raw, beside
   * which there is no backing file; `TOO_LARGE` if there is no room for the name
   */
  setBacking(reference: BackingReference): void {
    const writer = this.openWriter;
    if (reference.file !== null && this.header.isDataFileRaw) {
      throw new Qcow2Error('UNSUPPORTED', 'its raw data file holds the whole disk already', {
        file: this.path,
        hint: 'it cannot have a backing file',
      });
    }
    writer.setBacking(reference);
  }

  /**
   * Finds what keeps the image from being amended. Nothing is changed.
   * @throws {Qcow2Error} as {@link write}; `UNSUPPORTED` or `TOO_LARGE`, with the reason
   */
  checkAmendment(amendment: Amendment): void {
    this.openWriter.checkAmendment(amendment);
  }

  /**
   * Changes what the header promises of the image, in one instant, a step at a time: what
   * `amendImage` does, without what it checks before. Nothing else may change the image between two
   * steps. Returning early from it leaves the image as it is. The open image goes on with the old
   * data file: close it.
   * @throws {Qcow2Error} as {@link checkAmendment}
   */
  *amend(amendment: Amendment): EngineSteps<void> {
    yield* this.openWriter.amend(amendment);
  }

  /**
   * Says in the header whether the image is still being made; if so, nobody else opens it. Version 2
   * cannot say so. What was written before is in the file by then.
   * @throws {Qcow2Error} as {@link write}
   */
  setUnfinished(isUnfinished: boolean): void {
    this.openWriter.setUnfinished(isUnfinished);
  }

  /**
   * Drops everything that the disk has allocated, so that the backing file shows, or zeroes where
   * there is none. Snapshots keep what they have.
   * @throws {Qcow2Error} as {@link write}
   */
  makeEmpty(): void {
    this.openWriter.makeEmpty();
  }

  /**
   * Returns once everything written would survive a power cut.
   * @throws {Qcow2Error} `HOST` if the host cannot promise it
   */
  override flush(): void {
    this.writer?.flush();
  }

  override hostRange(offset: number, length: number): HostRange | undefined {
    // What is written while the bytes are on their way would be sent instead of them.
    return this.writer === undefined ? super.hostRange(offset, length) : undefined;
  }

  /**
   * The internal snapshots, in the order of the table.
   * @throws {Qcow2Error} `CORRUPT`, `TOO_LARGE` or `TRUNCATED` if the snapshot table is damaged
   */
  get snapshots(): readonly SnapshotRow[] {
    return (this.#snapshots ??= this.inFile(() => readSnapshotTable(this.header, this.file)));
  }

  /**
   * The disk as it was at a snapshot, read-only, with the size that it had then. The image must
   * stay open while it is used.
   *
   * @param idOrName looked for among the ids first, then among the names
   * @throws {Qcow2Error} `NOT_FOUND`; `CORRUPT` if the snapshot is damaged
   */
  openSnapshot(idOrName: string): Qcow2Snapshot {
    const info = findSnapshot(this.snapshots, idOrName);
    if (info === undefined) {
      throw new Qcow2Error('NOT_FOUND', `there is no snapshot '${idOrName}'`, {
        file: this.path,
        hint: this.#snapshotHint(),
      });
    }
    return this.inFile(() => new Qcow2Snapshot(this.context, info));
  }

  /**
   * Closes the image and the files below it: the external data file and the backing chain. What was
   * written is brought to the file first, as {@link flush} does.
   *
   * @throws {Qcow2Error} `HOST` if the host refuses it; the image stays open then, so that nothing
   * is lost and closing can be tried again, or {@link abandon} can close it
   */
  override close(): void {
    this.writer?.finish();
    this.context.clusters.close();
    this.file.close();
    this.dataFile?.device.close();
    this.backing?.close();
  }

  /**
   * Closes the files without bringing to them what is only in memory: for an image that
   * {@link close} cannot close, because its disk is broken or full. The image is as valid as after
   * a crash; what was written since the last {@link flush} may be lost.
   */
  abandon(): void {
    this.writer?.abandon();
    this.context.clusters.close();
    for (const device of [this.file, this.dataFile?.device, this.backing]) {
      try {
        if (device instanceof Qcow2Image) device.abandon();
        else device?.close();
      } catch {
        // It is closed all the same, and that it failed is known.
      }
    }
  }

  #snapshotHint(): string {
    const names = this.snapshots.slice(0, 5).map(({ id, name }) => `${id} (${name})`);
    return names.length === 0 ? 'the image has no snapshots' : `it has ${names.join(', ')}`;
  }
}
