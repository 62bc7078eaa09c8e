/**
 * Changes the header of an image (specification: "Header" and "Header extensions").
 *
 * What is atomic here rests on one promise of the host: a 512-byte sector is written whole or not
 * at all.
 *
 * - Fields ({@link HeaderWriter.update}) all lie within the first sector, so that any set of them
 *   changes in one write, and a crash leaves the old header or the new one.
 * - Extensions and the backing file's name ({@link HeaderWriter.rewrite}) usually span sectors. What
 *   differs in one sector only is one write. Otherwise the new extensions are first written to an
 *   unused part of the first cluster; then the first sector alone is switched to a header whose
 *   first extension is a filler, of an unknown type, that reaches from there to that copy; then
 *   what the filler covers gets its final content; then the first sector does; and at last the copy
 *   is wiped. Each step is flushed, and each changes either one sector or bytes that nothing reads,
 *   so that a crash at any instant leaves the old header or the new one.
 *
 * The decoded header is one object that all parts of the engine hold: it changes as soon as the
 * file has.
 */

import type { BlockDevice } from '../device/block-device.ts';
import {
  encodeBackingName,
  encodeHeaderFields,
  QEMU_HEADER_BYTES,
  splitFirstCluster,
} from '../format/qcow2/header-encode.ts';
import type { FirstCluster, HeaderFields } from '../format/qcow2/header-encode.ts';
import {
  encodeBitmapsExtension,
  encodeFeatureNames,
  FEATURE_NAMES,
  hasFeatureNames,
  withExtension,
} from '../format/qcow2/extensions-encode.ts';
import { ExtensionType } from '../format/qcow2/extensions.ts';
import type { BitmapsExtension } from '../format/qcow2/extensions.ts';
import {
  CompatibleFeature,
  IncompatibleFeature,
  UNFINISHED_FEATURE,
} from '../format/qcow2/features.ts';
import {
  decodeHeader,
  featureFlags,
  HeaderField,
  l1EntriesFor,
  V2_HEADER_BYTES,
} from '../format/qcow2/header.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import { assert } from '../util/assert.ts';
import { writeU32 } from '../util/bytes.ts';
import { FILLER_EXTENSION, firstClusterSteps, SECTOR_BYTES } from './header-steps.ts';
import type { ClusterStep } from './header-steps.ts';

/** The part of a file that a header is written to. */
export type HeaderFile = Pick<BlockDevice, 'size' | 'read' | 'write' | 'flush'>;

/** Fields to change; what is left out stays as it is. */
export type HeaderChanges = Partial<HeaderFields>;

/** What {@link HeaderWriter.rewrite} changes; `null` removes, what is left out stays as it is. */
export interface HeaderRewrite {
  /** Name of the backing file. */
  backingFile?: string | null;
  /** Format of the backing file. */
  backingFormat?: string | null;
  /** Name of the external data file. */
  externalDataFile?: string | null;
  /** Where the bitmap directory is. */
  bitmaps?: BitmapsExtension | null;
  /**
   * Version of the format. From 3 to 2 the feature fields go, so that nothing may be left that
   * they promise; from 2 to 3 they start as 0, and `fields` can set them.
   */
  version?: 2 | 3;
  /** Fields that change in the same instant. */
  fields?: HeaderChanges;
}

/** Writes the header of one image: see the head of this file. */
export class HeaderWriter {
  /** The decoded header, which changes with the file. */
  readonly header: Qcow2Header;
  readonly #file: HeaderFile;
  /** The first sector as it is in the file. */
  #sector: Uint8Array;

  /**
   * @param target.header as it was decoded from `target.file`; changed by this object from now on
   * @throws {Qcow2Error} `HOST` or `TRUNCATED` if the header cannot be read
   */
  constructor({ file, header }: { file: HeaderFile; header: Qcow2Header }) {
    this.header = header;
    this.#file = file;
    this.#sector = new Uint8Array(Math.min(SECTOR_BYTES, file.size));
    file.read(this.#sector, 0);
  }

  /**
   * Changes fields in one write within the first sector; everything else keeps its bytes. The
   * caller flushes, before for what the new values point at, and after.
   * @throws {Qcow2Error} `HOST` if the write fails; then the decoded header is as it was
   */
  update(changes: HeaderChanges): void {
    const { header } = this;
    checkChanges({ ...header, ...changes });
    const sector = Uint8Array.from(this.#sector);
    encodeHeaderFields(sector.subarray(0, header.headerLength), changes);
    this.#file.write(sector, 0);
    this.#sector = sector;
    Object.assign(header, changes);
    Object.assign(header, featureFlags(header));
    header.l1SizeNeeded = l1EntriesFor(header.size, header);
  }

  /**
   * Sets or clears the dirty bit of a version 3 image, flushed before and after: refcounts are as
   * they should be when it goes, and become stale only after it is there.
   * @throws {Qcow2Error} `HOST`
   */
  setDirty(isDirty: boolean): void {
    const { incompatibleFeatures: old } = this.header;
    const bit = IncompatibleFeature.DIRTY;
    this.#updateFlushed({ incompatibleFeatures: isDirty ? old | bit : old & ~bit });
  }

  /**
   * Sets or clears the bit by which nobody opens an image that is still being made. Not flushed:
   * it is for a process that is killed, not for a power cut. Version 2 has none.
   * @throws {Qcow2Error} `HOST`
   */
  setUnfinished(isUnfinished: boolean): void {
    const { version, incompatibleFeatures: old } = this.header;
    if (version === 2) return;
    const bit = UNFINISHED_FEATURE;
    this.update({ incompatibleFeatures: isUnfinished ? old | bit : old & ~bit });
  }

  /**
   * Sets the corrupt bit and returns once it is durable. Version 2 has none.
   * @returns whether the header says now that the image is corrupt
   * @throws {Qcow2Error} `HOST`
   */
  setCorrupt(): boolean {
    if (this.header.version === 2) return false;
    const { incompatibleFeatures } = this.header;
    this.#updateFlushed({
      incompatibleFeatures: incompatibleFeatures | IncompatibleFeature.CORRUPT,
    });
    return true;
  }

  /**
   * Clears the corrupt bit, after a repair; flushed before and after. Version 2 has none.
   * @throws {Qcow2Error} `HOST`
   */
  clearCorrupt(): void {
    if (this.header.version === 2) return;
    const { incompatibleFeatures } = this.header;
    this.#updateFlushed({
      incompatibleFeatures: incompatibleFeatures & ~IncompatibleFeature.CORRUPT,
    });
  }

  /**
   * Sets or clears the lazy refcounts bit of a version 3 image, flushed before and after.
   * @throws {Qcow2Error} `HOST`
   */
  setLazyRefcounts(isLazy: boolean): void {
    const { compatibleFeatures: old } = this.header;
    const bit = CompatibleFeature.LAZY_REFCOUNTS;
    this.#updateFlushed({ compatibleFeatures: isLazy ? old | bit : old & ~bit });
  }

  /**
   * Clears the autoclear bits of `mask` and returns once that is durable, to be called before a
   * change that these bits' owners would have to know of. Writes nothing if none of them is set.
   * @returns whether any was set
   * @throws {Qcow2Error} `HOST`
   */
  clearAutoclear(mask: bigint): boolean {
    const { autoclearFeatures } = this.header;
    if ((autoclearFeatures & mask) === 0n) return false;
    this.#updateFlushed({ autoclearFeatures: autoclearFeatures & ~mask });
    return true;
  }

  /**
   * Encodes the first cluster anew with other extensions, backing file or version. Extensions that
   * are not named stay byte for byte, unknown ones too. Flushed before and after; a crash leaves
   * the old header or the new one. If the host fails in between, {@link header} tells which.
   *
   * @throws {Qcow2Error} `TOO_LARGE` before anything changes, if the result does not fit into the
   * first cluster, or is in several sectors with no room beside it for a copy; `CORRUPT` if the
   * extensions have been damaged since the image was opened; `HOST`
   */
  rewrite(changes: HeaderRewrite): void {
    const { header } = this;
    const steps = this.#planRewrite(changes);
    // A bug here would cost the whole image.
    for (const { bytes } of steps) decodeHeader(bytes);
    this.#file.flush();
    for (const { bytes, offset, length } of steps) {
      this.#file.write(bytes.subarray(offset, offset + length), offset);
      this.#sector = bytes.slice(0, SECTOR_BYTES);
      // Before the flush: if that fails, this is what the file says all the same.
      Object.assign(header, decodeHeader(bytes));
      this.#file.flush();
    }
  }

  /**
   * Finds out whether {@link rewrite} has the room that it needs, before anything is done for it.
   * @throws {Qcow2Error} as {@link rewrite}
   */
  checkRewrite(changes: HeaderRewrite): void {
    this.#planRewrite(changes);
  }

  #planRewrite(changes: HeaderRewrite): ClusterStep[] {
    const { header } = this;
    const cluster = new Uint8Array(header.clusterSize);
    this.#file.read(cluster.subarray(0, Math.min(cluster.length, this.#file.size)), 0);
    return firstClusterSteps(cluster, rewrittenParts(cluster, header, changes));
  }

  #updateFlushed(changes: HeaderChanges): void {
    this.#file.flush();
    this.update(changes);
    this.#file.flush();
  }
}

/** What goes without saying when an image becomes one of version 2. */
const DROPPED_FEATURES: Record<2 | 3, HeaderChanges> = {
  2: { compatibleFeatures: 0n, autoclearFeatures: 0n },
  3: {},
};

/** What the rest of the engine may ask a header to say. */
function checkChanges(header: Qcow2Header): void {
  const { version, clusterSize, size, l1Size } = header;
  assert(size % 512 === 0 && l1EntriesFor(size, header) <= l1Size, 'the L1 table covers the disk');
  const offsets = [header.l1TableOffset, header.refcountTableOffset, header.snapshotsOffset];
  assert(
    offsets.every((offset) => Number.isSafeInteger(offset) && offset % clusterSize === 0),
    'tables start at clusters',
  );
  const { incompatibleFeatures, compatibleFeatures, autoclearFeatures, refcountOrder } = header;
  assert(
    version === 3 ||
      ((incompatibleFeatures | compatibleFeatures | autoclearFeatures) === 0n &&
        refcountOrder === 4),
    'version 2 has no features, and refcounts of 16 bits',
  );
}

/** The parts of the first cluster as they are to be. */
function rewrittenParts(
  cluster: Uint8Array,
  header: Qcow2Header,
  changes: HeaderRewrite,
): FirstCluster {
  const { header: oldHeader, extensions: oldExtensions, backingName } = splitFirstCluster(cluster);
  const version = changes.version ?? header.version;
  let extensions = oldExtensions.filter(({ type }) => type !== FILLER_EXTENSION);
  const wasStaged = extensions.length < oldExtensions.length;
  const set = (type: number, data: Uint8Array | null | undefined): void => {
    if (data !== undefined) extensions = withExtension(extensions, type, data ?? undefined);
  };
  const text = (value: string | null | undefined): Uint8Array | null | undefined =>
    typeof value === 'string' ? Buffer.from(value) : value;
  set(ExtensionType.BACKING_FORMAT, text(changes.backingFormat));
  set(ExtensionType.EXTERNAL_DATA_FILE, text(changes.externalDataFile));
  set(ExtensionType.BITMAPS, changes.bitmaps && encodeBitmapsExtension(changes.bitmaps));
  // The copy that a crash left in use was made without the names.
  if (version !== header.version || wasStaged) {
    const isNamed = hasFeatureNames(version, header.clusterSize);
    set(ExtensionType.FEATURE_NAMES, isNamed ? encodeFeatureNames(FEATURE_NAMES) : null);
  }
  const { backingFile } = changes;
  return {
    header: rewrittenHeader(oldHeader, header, changes),
    extensions,
    backingName: backingFile === undefined ? backingName : encodeBackingName(backingFile ?? ''),
  };
}

function rewrittenHeader(
  bytes: Uint8Array,
  header: Qcow2Header,
  { version = header.version, fields = {} }: HeaderRewrite,
): Uint8Array {
  checkChanges({ ...header, ...DROPPED_FEATURES[version], ...fields, version });
  const length = { 2: V2_HEADER_BYTES, 3: Math.max(bytes.length, QEMU_HEADER_BYTES) }[version];
  const rewritten = new Uint8Array(version === header.version ? bytes.length : length);
  rewritten.set(bytes.subarray(0, rewritten.length));
  writeU32(rewritten, HeaderField.VERSION, version);
  if (version === 3) {
    writeU32(rewritten, HeaderField.REFCOUNT_ORDER, header.refcountOrder);
    writeU32(rewritten, HeaderField.HEADER_LENGTH, rewritten.length);
  }
  encodeHeaderFields(rewritten, fields);
  return rewritten;
}
