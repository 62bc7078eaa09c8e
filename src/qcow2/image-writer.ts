/**
 * An image that is open for writing: everything that changes it comes through here.
 *
 * Opening changes nothing. The first change prepares the image: it is checked for structures that
 * overlap, feature bits are cleared that nobody maintains any more, bitmaps are marked as in use,
 * and with lazy refcounts the dirty bit is set. A structure that turns out to be damaged marks the
 * image corrupt, and from then on nothing is written.
 */

import type { HostFile } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import { AutoclearFeature } from '../format/qcow2/features.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import type { SnapshotRow } from '../format/qcow2/snapshot-table.ts';
import { DEFAULT_METADATA_CACHE_BYTES } from '../limits.ts';
import { ClusterAllocator } from './allocator.ts';
import type { PassDiscard } from './allocator.ts';
import { amend, checkAmendment } from './amender.ts';
import type { Amendment } from './amender.ts';
import { changeBitmaps, checkBitmapChange } from './bitmap-changes.ts';
import type { BitmapChange } from './bitmap-changes.ts';
import { BitmapTracker } from './bitmap-writer.ts';
import { readBitmapDirectory } from './bitmaps.ts';
import { repairMetadata } from './check/repair.ts';
import type { ImageClusters } from './cluster-cache/image-clusters.ts';
import { Committer } from './commit.ts';
import { CompressedWriter } from './compressed-writer.ts';
import { DiskWriter } from './disk-writer.ts';
import { HeaderWriter } from './header-writer.ts';
import { L2Editor } from './l2-editor.ts';
import type { L1Location } from './mapping.ts';
import { activeL2Tables, headerStructures, MetadataMap } from './metadata-map.ts';
import { preallocate } from './preallocation.ts';
import type { PreallocationRequest } from './preallocation.ts';
import { RefcountStore } from './refcount-store.ts';
import { emptyDisk, resizeDisk } from './resizer.ts';
import { applySnapshot, createSnapshot, deleteSnapshot } from './snapshot-writer.ts';
import { measureSnapshotTable, readSnapshotTable } from './snapshots.ts';
import type { TableCache } from './table-cache.ts';
import type { TrackedBitmap } from './tracked-bitmap.ts';
import type { DiskReader, EngineSteps, WriteContext } from './write-context.ts';
import { ZeroWriter } from './zero-writer.ts';
import type { ZeroOptions } from './zero-writer.ts';

/** What an {@link ImageWriter} is put together from. */
export interface ImageWriterParts {
  path: string;
  header: Qcow2Header;
  file: HostFile;
  dataFile: HostFile | undefined;
  tables: TableCache;
  clusters: ImageClusters;
  reader: DiskReader;
  l1: L1Location;
  backing: { readonly size: number } | undefined;
  passDiscard: PassDiscard | undefined;
  metadataCacheBytes: number | undefined;
}

/** What an image says of its backing file. */
export interface BackingReference {
  /** Its name, as the image will have it; null for none. */
  file: string | null;
  /** Its format; null to say nothing about that. */
  format: string | null;
}

/** The engine behind an image that has been changed. */
export interface WriteEngine extends WriteContext {
  readonly disk: DiskWriter;
  readonly zero: ZeroWriter;
  /** Where the image has bitmaps that can be trusted. */
  readonly bitmaps: BitmapTracker | undefined;
  readonly clusters: ImageClusters;
  readonly passDiscard: PassDiscard;
}

/** The part of a disk that is in one cluster. */
interface GuestCluster {
  offset: number;
  length: number;
}

const MAINTAINED_AUTOCLEAR = AutoclearFeature.BITMAPS | AutoclearFeature.RAW_EXTERNAL_DATA;

/** Changes one image: see the head of this file. */
export class ImageWriter {
  readonly #parts: ImageWriterParts;
  #engine: WriteEngine | undefined;
  #compressed: CompressedWriter | undefined;
  /** Whether the dirty bit, if it is set, was set here, before anything became stale. */
  #isDirtyByUs = false;
  /** Why nothing is written any more. */
  #failure: Qcow2Error | undefined;

  constructor(parts: ImageWriterParts) {
    this.#parts = parts;
  }

  /** Stores `source` at an offset of the disk. */
  write(source: Uint8Array, offset: number): void {
    if (source.length === 0) return;
    this.change(({ bitmaps, disk }) => {
      bitmaps?.markDirty(offset, source.length);
      disk.write(source, offset);
    });
  }

  /** Stores whole clusters compressed. */
  writeCompressed(source: Uint8Array, offset: number): void {
    if (source.length === 0) return;
    this.change((engine) => {
      engine.bitmaps?.markDirty(offset, source.length);
      this.#compressed ??= new CompressedWriter(engine, engine.disk);
      this.#compressed.write(source, offset);
    });
  }

  /** Stores one cluster, of `length` bytes within the disk, that has been compressed already. */
  storeCompressed(compressed: Uint8Array, { offset, length }: GuestCluster): void {
    this.change((engine) => {
      engine.bitmaps?.markDirty(offset, length);
      this.#compressed ??= new CompressedWriter(engine, engine.disk);
      this.#compressed.store(compressed, offset);
    });
  }

  /** Makes a range of the disk read as zeroes. */
  writeZeroes(offset: number, length: number, options: ZeroOptions): void {
    if (length === 0) return;
    this.change(({ bitmaps, zero }) => {
      bitmaps?.markDirty(offset, length);
      zero.writeZeroes({ offset, length }, options);
    });
  }

  /** Gives up a range of the disk. */
  discard(offset: number, length: number): void {
    if (length === 0) return;
    this.change(({ bitmaps, zero }) => {
      bitmaps?.markDirty(offset, length);
      zero.discard({ offset, length });
    });
  }

  /** Makes a snapshot of the disk as it is. */
  createSnapshot(name: string): SnapshotRow {
    return this.change((engine) => createSnapshot(engine, name));
  }

  /** Makes the disk what it was at a snapshot. */
  applySnapshot(row: SnapshotRow): void {
    this.change((engine) => applySnapshot(engine, row));
  }

  /** Deletes a snapshot. */
  deleteSnapshot({ id }: SnapshotRow): void {
    this.change((engine) => deleteSnapshot(engine, id));
  }

  /** Changes the size of the disk; `setSize` makes its readers see that. */
  resize(size: number, setSize: (size: number) => void): void {
    this.change((engine) => {
      const { bitmaps, header } = engine;
      const oldSize = header.size;
      bitmaps?.prepareResize(size);
      try {
        resizeDisk(engine, size, setSize);
      } finally {
        if (header.size !== oldSize) bitmaps?.resize(header.size);
      }
    });
  }

  /** Gives a range that reads as zeroes its space in advance. */
  preallocate(request: PreallocationRequest): void {
    this.change((engine) => preallocate(engine, request));
  }

  /** Changes what the header says of the backing file, once all else is in the file. */
  setBacking({ file, format }: BackingReference): void {
    this.change(({ committer, headerWriter }) => {
      committer.commitAll();
      headerWriter.rewrite({ backingFile: file, backingFormat: format });
    });
  }

  /** Says in the header whether the image is still being made. */
  setUnfinished(isUnfinished: boolean): void {
    this.change(({ committer, headerWriter }) => {
      committer.commitAll();
      headerWriter.setUnfinished(isUnfinished);
    });
  }

  /** Finds what keeps the image from being amended; changes nothing of it. */
  checkAmendment(amendment: Amendment): void {
    this.change((engine) => checkAmendment(engine, amendment));
  }

  /** Changes what the header promises of the image, a step at a time: see `amender.ts`. */
  *amend(amendment: Amendment): EngineSteps<void> {
    // The engine of the header as it is to be starts anew.
    this.finish();
    let isSwitching = false;
    let freed: ReadonlySet<number>;
    try {
      this.checkAmendment(amendment);
      const willSwitch = (): void => {
        isSwitching = true;
      };
      freed = yield* amend(
        this.change((engine) => engine),
        amendment,
        willSwitch,
      );
    } catch (error) {
      const judged = this.#judge(error);
      // What the file says is not known, so that nothing may be written that relies on it.
      if (isSwitching && judged instanceof Qcow2Error) this.#failure ??= judged;
      throw judged;
    }
    this.abandon();
    if (freed.size === 0) return;
    this.change(({ allocator }) => {
      for (const offset of freed) allocator.free({ offset, count: 1 });
    });
    this.finish();
  }

  /** Drops everything that the disk has allocated. */
  makeEmpty(): void {
    this.change((engine) => {
      engine.bitmaps?.markDirty(0, engine.header.size);
      emptyDisk(engine);
    });
  }

  /** Returns once everything written would survive a power cut. */
  flush(): void {
    if (this.#engine === undefined) return;
    this.change(({ committer }) => committer.flush());
  }

  /** Adds, removes or changes bitmaps, durably. */
  changeBitmaps(change: BitmapChange): void {
    // All else is in the file before, and what records changes is found anew after it. So whatever
    // goes wrong in between, the engine has nothing to lose but counts of clusters that are free.
    this.finish();
    if (!checkBitmapChange(this.#parts, change)) return;
    try {
      this.change((engine) => changeBitmaps(engine, change));
    } catch (error) {
      this.#finishOrForget({ tells: false });
      throw error;
    }
    this.#finishOrForget({ tells: true });
  }

  #finishOrForget({ tells }: { tells: boolean }): void {
    try {
      this.finish();
    } catch (error) {
      this.abandon();
      if (tells) throw error;
    }
  }

  /** A bitmap that can be read as it is now, without bringing it to the file first. */
  trackedBitmap(name: string): TrackedBitmap | undefined {
    return this.#engine?.bitmaps?.find(name);
  }

  /** Brings the bitmaps to the file, so that they can be read from there. */
  storeBitmaps(): void {
    if (this.#engine?.bitmaps?.isRecording !== true) return;
    this.change(({ bitmaps, committer }) => {
      // They may say nothing of changes that a crash could still undo.
      committer.commitAll();
      bitmaps!.store();
      committer.commitAll();
    });
  }

  /** Brings everything to the file, as it is to be found by the next who opens it. */
  finish(): void {
    const engine = this.#engine;
    if (engine === undefined || this.#failure !== undefined) return;
    this.storeBitmaps();
    this.change(({ committer, headerWriter, file }) => {
      committer.commitAll();
      if (headerWriter.header.isDirty) {
        headerWriter.setDirty(false);
        file.flush();
      }
    });
    this.abandon();
  }

  /** Forgets everything that is not in the file. */
  abandon(): void {
    this.#engine = undefined;
    this.#compressed = undefined;
  }

  /**
   * Runs a change with the engine.
   * @throws {Qcow2Error} `CORRUPT` if the image is, which then is marked so; what `action` throws
   */
  change<T>(action: (engine: WriteEngine) => T): T {
    if (this.#failure !== undefined) throw this.#failure;
    try {
      const engine = (this.#engine ??= this.#begin());
      engine.committer.ensureFlushed();
      const result = action(engine);
      if (engine.committer.isDue) engine.committer.flush();
      return result;
    } catch (error) {
      throw this.#judge(error);
    }
  }

  /** The error to throw; a damaged structure of this image ends all writing. */
  #judge(error: unknown): unknown {
    if (!(error instanceof Qcow2Error)) return error;
    const named = error.inFile(this.#parts.path);
    // Those that name a file come from reading, of a backing file perhaps.
    if (error.code === 'CORRUPT' && error.file === undefined) {
      this.#failure = named;
      this.#markCorrupt();
    }
    return named;
  }

  #markCorrupt(): void {
    const { file, header } = this.#parts;
    try {
      (this.#engine?.headerWriter ?? new HeaderWriter({ file, header })).setCorrupt();
    } catch {
      // That there is no place for the mark is the lesser trouble of the two.
    }
  }

  #begin(): WriteEngine {
    const { header, file } = this.#parts;
    if (header.isDirty && !this.#isDirtyByUs) this.#repair();
    const headerWriter = new HeaderWriter({ file, header });
    const engine = this.#createEngine(headerWriter);
    const unknown = header.autoclearFeatures & ~MAINTAINED_AUTOCLEAR;
    if (unknown !== 0n) headerWriter.clearAutoclear(unknown);
    // Though it cannot be flushed, the header says so then.
    this.#isDirtyByUs = header.hasLazyRefcounts;
    if (header.hasLazyRefcounts) headerWriter.setDirty(true);
    if (unknown !== 0n || header.hasLazyRefcounts) file.flush();
    return engine;
  }

  /** Makes refcounts right that are stale because whoever wrote before did not get to close. */
  #repair(): void {
    const { header, file, path, tables } = this.#parts;
    const { left } = repairMetadata({ header, file, path }, { fix: 'all' });
    tables.clear();
    if (!header.isDirty) return;
    const count = left.corruptions + left.checkErrors;
    throw new Qcow2Error('CORRUPT', `it was not closed, and has ${count} errors besides`, {
      file: path,
      hint: 'see them with: qcow2 check',
    });
  }

  #createEngine(headerWriter: HeaderWriter): WriteEngine {
    const { path, header, file, dataFile, tables, clusters, reader, l1, backing } = this.#parts;
    const passDiscard = this.#parts.passDiscard ?? {};
    const { clusterSize } = header;
    const metadata = new MetadataMap(clusterSize);
    for (const range of headerStructures(header)) metadata.add(range);
    for (const range of activeL2Tables(file, header)) metadata.add(range);
    this.#addSnapshots(metadata);
    this.#addBitmaps(metadata);
    const refcounts = new RefcountStore({
      header,
      file,
      metadata,
      budgetBytes: this.#parts.metadataCacheBytes ?? DEFAULT_METADATA_CACHE_BYTES,
    });
    const allocator = new ClusterAllocator({
      header,
      file,
      dataFile: dataFile ?? file,
      refcounts,
      metadata,
      clusters,
      passDiscard,
    });
    const shared = { header, file, tables, refcounts, allocator, metadata, headerWriter };
    const committer = new Committer({ ...shared, dataFile });
    const editor = new L2Editor({ ...shared, committer, l1 });
    const context: WriteContext = {
      ...shared,
      path,
      dataFile: dataFile ?? file,
      committer,
      editor,
      reader,
      l1,
      backing,
    };
    const disk = new DiskWriter(context);
    const zero = new ZeroWriter(context, disk);
    const bitmaps = createBitmapTracker(context);
    return { ...context, disk, zero, bitmaps, clusters, passDiscard };
  }

  #addSnapshots(metadata: MetadataMap): void {
    const { header, file } = this.#parts;
    if (header.snapshotCount === 0) return;
    const length = measureSnapshotTable(header, file);
    metadata.add({ offset: header.snapshotsOffset, length, kind: 'snapshot table' });
    for (const { l1TableOffset, l1Size } of readSnapshotTable(header, file)) {
      metadata.add({ offset: l1TableOffset, length: l1Size * 8, kind: 'snapshot L1 table' });
    }
  }

  #addBitmaps(metadata: MetadataMap): void {
    const { header, file } = this.#parts;
    if (!header.areBitmapsValid) return;
    for (const { tableOffset, tableSize } of readBitmapDirectory({ header, file })) {
      metadata.add({ offset: tableOffset, length: tableSize * 8, kind: 'bitmap table' });
    }
  }
}

function createBitmapTracker(context: WriteContext): BitmapTracker | undefined {
  const { header, file, allocator, committer, metadata } = context;
  if (!header.areBitmapsValid || header.extensions.bitmaps === undefined) return undefined;
  return new BitmapTracker({
    header,
    file,
    space: {
      allocateContiguous: (count) => allocator.allocateContiguous(count),
      free: (run) => allocator.free(run),
      commit: () => {
        committer.noteNewData();
        committer.commitAll();
      },
      checkClear: (offset, length, what) => metadata.checkClear(offset, length, what),
      addTable: (offset, length) => metadata.add({ offset, length, kind: 'bitmap table' }),
      removeTable: (offset, length) => metadata.remove({ offset, length }),
    },
  });
}
