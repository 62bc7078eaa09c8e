/**
 * Changing what the header promises of an image: version, refcount width, lazy refcounts, the name
 * of the external data file.
 *
 * All of it takes effect in one instant, when the header is rewritten. What the new header needs is
 * there before: for version 2, no zero clusters are left (`zero-expansion.ts`); for version 3, rows
 * of the snapshot table have their extra data; for another refcount width, there is a whole new
 * refcount structure (`refcount-width.ts`). Until that instant the image is one of the old version
 * that reads as before, however far this has come.
 */

import { Qcow2Error } from '../errors.ts';
import {
  AutoclearFeature,
  CompatibleFeature,
  IncompatibleFeature,
} from '../format/qcow2/features.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import { SNAPSHOT_ROW_BYTES } from '../format/qcow2/snapshot-table.ts';
import type { SnapshotRow } from '../format/qcow2/snapshot-table.ts';
import { TWO_32 } from '../util/bytes.ts';
import { allBitmapClusters } from './bitmap-changes.ts';
import type { HeaderRewrite } from './header-writer.ts';
import type { WriteEngine } from './image-writer.ts';
import { WidthChange } from './refcount-width.ts';
import { rewriteSnapshotTable } from './snapshot-writer.ts';
import { checkSnapshotL1, readSnapshotTable } from './snapshots.ts';
import type { EngineSteps } from './write-context.ts';
import { expandZeroClusters, hasCompressedClusters } from './zero-expansion.ts';

/** What is to become of an image; what is left out stays as it is. */
export interface Amendment {
  version?: 2 | 3 | undefined;
  /** Refcounts are to have 2^refcountOrder bits. */
  refcountOrder?: number | undefined;
  hasLazyRefcounts?: boolean | undefined;
  /** Name of the external data file of an image that has one. */
  dataFile?: string | undefined;
  /** False to give up that the external data file reads as a raw image. */
  isDataFileRaw?: false | undefined;
}

/** Bytes of extra data that a row of version 3 has at least. */
const REQUIRED_EXTRA_BYTES = 16;

/**
 * Checks what can be told from header and snapshot table of an image that is to become one of version
 * 2, where that has no room for what the image has.
 *
 * @param size bytes of the disk by then
 * @throws {Qcow2Error} `UNSUPPORTED`, with the reason
 */
export function checkDowngrade(
  header: Qcow2Header,
  snapshots: readonly SnapshotRow[],
  { size, refcountOrder }: { size: number; refcountOrder: number },
): void {
  const fail = (problem: string, hint?: string): Qcow2Error =>
    new Qcow2Error('UNSUPPORTED', `compat=0.10 ${problem}`, { hint });
  if (refcountOrder !== 4) {
    const bits = 2 ** refcountOrder;
    throw fail(`has no refcounts of ${bits} bits`, 'add refcount_bits=16');
  }
  if (header.hasExternalDataFile) throw fail('has no external data files');
  if (header.hasExtendedL2) {
    throw fail('has no extended L2 entries', 'convert the image: qcow2 convert -o compat=0.10');
  }
  for (const { id, diskSize, vmStateSize } of snapshots) {
    const structure = `snapshot ${id}`;
    if (diskSize !== size) {
      throw new Qcow2Error(
        'UNSUPPORTED',
        `it is of a disk of ${diskSize} bytes, and with compat=0.10 all are of the disk's ${size}`,
        { structure, hint: 'delete the snapshot first' },
      );
    }
    if (vmStateSize >= TWO_32) {
      throw new Qcow2Error('UNSUPPORTED', 'with compat=0.10, VM state has less than 4 GiB', {
        structure,
        hint: 'delete the snapshot first',
      });
    }
  }
}

/**
 * Finds what keeps an image from being amended. Nothing is changed.
 * @throws {Qcow2Error} `UNSUPPORTED` or `TOO_LARGE`, with the reason; `CORRUPT` or `HOST`
 */
export function checkAmendment(engine: WriteEngine, amendment: Amendment): void {
  const { header, committer, headerWriter } = engine;
  committer.commitAll();
  headerWriter.checkRewrite(rewriteFor(header, amendment));
  widthChange(engine, amendment)?.neededBlocks();
  if (!isDowngrade(header, amendment)) return;
  for (const row of readSnapshotTable(header, engine.file)) checkSnapshotL1(header, row);
  if (header.compressionType !== 'zlib' && hasCompressedClusters(engine)) {
    throw new Qcow2Error(
      'UNSUPPORTED',
      `compat=0.10 has no clusters compressed by ${header.compressionType}`,
      { hint: 'convert the image: qcow2 convert -o compat=0.10' },
    );
  }
}

/**
 * Amends an image, once {@link checkAmendment} has found nothing. The engine is that of the old
 * header, and not to be used after it.
 *
 * @param willSwitch is called before the header is rewritten; if something is thrown after that, it
 * may say the one or the other
 * @returns host offsets of clusters that nothing refers to any more, counted by the new structures
 * @throws {Qcow2Error} `CORRUPT`, `HOST` or `TOO_LARGE`; the disk reads as before
 */
export function* amend(
  engine: WriteEngine,
  amendment: Amendment,
  willSwitch: () => void,
): EngineSteps<ReadonlySet<number>> {
  const { header, committer, headerWriter, file } = engine;
  committer.commitAll();
  const rewrite = rewriteFor(header, amendment);
  const isUpgrade = header.version < (rewrite.version ?? 0);
  const bitmaps = isDowngrade(header, amendment) ? allBitmapClusters(engine) : new Set<number>();
  const hasShortRows = readSnapshotTable(header, file).some(isShort);
  if (isUpgrade && hasShortRows) rewriteSnapshotTable(engine);
  const width = widthChange(engine, amendment);
  const expands = isDowngrade(header, amendment);
  const count = Number(expands) + Number(width !== undefined);
  if (expands) yield* expandZeroClusters(engine, { index: 0, count });
  let isSwitching = false;
  try {
    const structure = width === undefined ? {} : yield* width.write({ index: count - 1, count });
    // What was lazy is not any more: no header needs to call the image dirty.
    committer.commitAll();
    isSwitching = true;
    willSwitch();
    headerWriter.rewrite({ ...rewrite, fields: { ...rewrite.fields, ...structure } });
  } finally {
    if (!isSwitching) width?.release();
  }
  return bitmaps;
}

function isDowngrade(header: Qcow2Header, { version }: Amendment): boolean {
  return version !== undefined && version < header.version;
}

function widthChange(engine: WriteEngine, { refcountOrder }: Amendment): WidthChange | undefined {
  const isOther = refcountOrder !== undefined && refcountOrder !== engine.header.refcountOrder;
  return isOther ? new WidthChange(engine, refcountOrder) : undefined;
}

/** The header as it is to be, but for the place of a new refcount structure. */
function rewriteFor(header: Qcow2Header, amendment: Amendment): HeaderRewrite {
  const { version = header.version, refcountOrder = header.refcountOrder } = amendment;
  if (version === 2) {
    const dropped = header.version === 2 ? {} : { bitmaps: null };
    return { version, ...dropped, fields: { incompatibleFeatures: 0n, refcountOrder } };
  }
  const { hasLazyRefcounts = header.hasLazyRefcounts, isDataFileRaw, dataFile } = amendment;
  const lazyBit = CompatibleFeature.LAZY_REFCOUNTS;
  const { incompatibleFeatures, compatibleFeatures, autoclearFeatures } = header;
  return {
    version,
    ...(dataFile !== undefined && { externalDataFile: dataFile }),
    fields: {
      refcountOrder,
      incompatibleFeatures: incompatibleFeatures & ~IncompatibleFeature.DIRTY,
      compatibleFeatures: hasLazyRefcounts
        ? compatibleFeatures | lazyBit
        : compatibleFeatures & ~lazyBit,
      autoclearFeatures:
        isDataFileRaw === false
          ? autoclearFeatures & ~AutoclearFeature.RAW_EXTERNAL_DATA
          : autoclearFeatures,
    },
  };
}

/** Whether a row lacks extra data that version 3 requires. */
function isShort({ length, texts, id, name }: SnapshotRow): boolean {
  const idBytes = texts?.id.length ?? Buffer.byteLength(id);
  const nameBytes = texts?.name.length ?? Buffer.byteLength(name);
  return length - SNAPSHOT_ROW_BYTES - idBytes - nameBytes < REQUIRED_EXTRA_BYTES;
}
