/**
 * Amending a qcow2 image: version of the format, refcount width, lazy refcounts, size, and what it
 * says of its external data file.
 *
 * What cannot be is found before anything is changed. All but the size takes effect in one instant
 * (`qcow2/amender.ts`), and so does the size; at any instant before, between and after, the image is
 * valid and the disk reads as before.
 */

import type { ChainedQcow2Image, Image } from '../chain/open.ts';
import { Qcow2Error } from '../errors.ts';
import { l1EntriesFor } from '../format/qcow2/header.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import { MAX_DATA_FILE_NAME_BYTES, MAX_REFCOUNT_ORDER } from '../limits.ts';
import { checkDowngrade } from '../qcow2/amender.ts';
import type { Amendment } from '../qcow2/amender.ts';
import { checkL1Size, COMPAT_LEVELS } from './create-options.ts';
import type { CompatLevel } from './create-options.ts';
import { runSteps } from './progress.ts';
import type { Steps } from './progress.ts';

/** Options of {@link amendImage}, by QEMU's names; what is left out stays as it is. */
export interface AmendOptions {
  /**
   * Version of the format. 0.10 has no zero clusters, so that they become data where a backing file
   * would show; no bitmaps, so that they are removed; and refcounts of 16 bits.
   */
  compat?: CompatLevel | undefined;
  /** Bytes of the disk, a multiple of 512; what it gains reads as zeroes. 0 leaves it as it is. */
  size?: number | undefined;
  /** Allow a smaller size, which loses the data past it (default false). */
  shrink?: boolean | undefined;
  /** Bits of a refcount: a power of two, 1 to 64. */
  refcountBits?: number | undefined;
  /** Let refcounts be written late. */
  lazyRefcounts?: boolean | undefined;
  /**
   * Another name for the external data file of an image that has one. The file is neither looked at
   * nor renamed.
   */
  dataFile?: string | undefined;
  /** Whether the external data file stays readable as a raw image: only if it is already. */
  dataFileRaw?: boolean | undefined;
  /** The backing file's name, which has to be what it is already: rebasing changes it. */
  backingFile?: string | undefined;
  /** The backing file's format, which has to be what it is already, and given with the name. */
  backingFormat?: string | undefined;
}

/**
 * Changes what a qcow2 image is, which is open for writing. Close it after that, and open it anew.
 *
 * @throws {Qcow2Error} `INVALID_OPTION` for options that cannot be, or not together; `UNSUPPORTED`
 * where the image has what it could not have then, with the reason; `TOO_LARGE`; all with the image
 * untouched. `READ_ONLY`; `CORRUPT`; `HOST` if the host refuses: it is valid then, and reads as
 * before
 * @example
 * using image = openImage('disk.qcow2', { writable: true });
 * amendImage(image, { compat: '1.1', lazyRefcounts: true });
 */
export function amendImage(image: Image, options: AmendOptions): void {
  runSteps(amendSteps(image, options));
}

/**
 * {@link amendImage}, a step at a time. Nothing else may change the image between two steps;
 * returning from it early leaves it valid, and reading as before.
 * @throws {Qcow2Error} as {@link amendImage}
 */
export function* amendSteps(image: Image, options: AmendOptions): Steps<void> {
  const qcow2 = amendable(image);
  try {
    const { amendment, size } = plan(qcow2, options);
    const isResized = size !== qcow2.size;
    // An image of version 2 with snapshots keeps its size. And where the size is to change in one
    // of version 3, that can make zero clusters, of which none may be left in version 2.
    if ((amendment.version ?? 0) > qcow2.header.version) {
      yield* qcow2.amend(amendment);
      if (isResized) qcow2.resize(size, { shrink: true });
      return;
    }
    if (isResized) {
      qcow2.checkAmendment(amendment);
      qcow2.resize(size, { shrink: true });
      yield { done: 0, total: 1 };
    }
    yield* qcow2.amend(amendment);
  } catch (error) {
    throw error instanceof Qcow2Error ? error.inFile(image.path) : error;
  }
}

function amendable(image: Image): ChainedQcow2Image {
  if (image.format !== 'qcow2') {
    throw new Qcow2Error('UNSUPPORTED', 'a raw image has nothing to amend', { file: image.path });
  }
  if (!image.readOnly) return image;
  throw new Qcow2Error('READ_ONLY', 'it was not opened for writing', { file: image.path });
}

function invalid(problem: string, hint?: string): Qcow2Error {
  return new Qcow2Error('INVALID_OPTION', problem, { hint });
}

/** What is to become of an image, once nothing is wrong with it that can be told without its tables. */
function plan(
  image: ChainedQcow2Image,
  options: AmendOptions,
): { amendment: Amendment; size: number } {
  const { header } = image;
  checkBacking(header, options);
  checkDataFile(header, options);
  const version = options.compat === undefined ? header.version : COMPAT_LEVELS[options.compat];
  const refcountOrder = refcountOrderOf(header, version, options);
  const { lazyRefcounts = header.hasLazyRefcounts, dataFile, dataFileRaw } = options;
  if (version < 3 && lazyRefcounts && !header.hasLazyRefcounts) {
    throw invalid('lazy refcounts need compat=1.1', 'add compat=1.1');
  }
  const size = newSize(image, options);
  if (version < header.version) {
    checkDowngrade(header, image.snapshots, { size, refcountOrder });
  }
  const isDataFileRaw = dataFileRaw === false ? dataFileRaw : undefined;
  return {
    amendment: { version, refcountOrder, hasLazyRefcounts: lazyRefcounts, dataFile, isDataFileRaw },
    size,
  };
}

/** As QEMU does, takes what is there already, all of it. */
function checkBacking({ backingFile = '', extensions }: Qcow2Header, options: AmendOptions): void {
  if (options.backingFile === undefined && options.backingFormat === undefined) return;
  const isSame =
    (options.backingFile ?? '') === backingFile &&
    options.backingFormat === extensions.backingFormat;
  if (isSame && backingFile !== '') return;
  throw invalid('the backing file is not amended', 'rebase changes it: qcow2 rebase');
}

function checkDataFile(header: Qcow2Header, { dataFile, dataFileRaw }: AmendOptions): void {
  if (dataFile !== undefined) {
    if (!header.hasExternalDataFile) {
      throw invalid('data_file can only be set where there is an external data file already');
    }
    if (dataFile === '') {
      throw invalid('the name of the data file is empty', 'without one it could not be opened');
    }
    if (Buffer.byteLength(dataFile) > MAX_DATA_FILE_NAME_BYTES) {
      throw new Qcow2Error('TOO_LARGE', 'the name of the data file is too long');
    }
  }
  if (dataFileRaw === true && !header.isDataFileRaw) {
    throw invalid('data_file_raw cannot be switched on for an image that exists');
  }
}

function refcountOrderOf(
  header: Qcow2Header,
  version: 2 | 3,
  { refcountBits }: AmendOptions,
): number {
  if (refcountBits === undefined) return header.refcountOrder;
  const order = Math.log2(refcountBits);
  if (!Number.isInteger(order) || order < 0 || order > MAX_REFCOUNT_ORDER) {
    throw invalid('the refcount width must be 1, 2, 4, 8, 16, 32 or 64 bits');
  }
  if (version < 3 && order !== 4 && order !== header.refcountOrder) {
    throw invalid('a refcount width other than 16 bits needs compat=1.1', 'add compat=1.1');
  }
  return order;
}

function newSize(
  { header, size: oldSize, snapshots }: ChainedQcow2Image,
  { size, shrink = false, compat }: AmendOptions,
): number {
  // As in QEMU, whose 0 says that none was given.
  if (size === undefined || size === 0 || size === oldSize) return oldSize;
  if (!Number.isSafeInteger(size) || size < 0 || size % 512 !== 0) {
    throw invalid(`a size is a multiple of 512 bytes, not ${size}`);
  }
  if (size < oldSize && !shrink) {
    throw invalid(
      'making the disk smaller deletes all data past its new end',
      'set `shrink` (--force) if that is meant',
    );
  }
  checkL1Size(size, l1EntriesFor(size, header));
  const version = Math.max(header.version, compat === undefined ? 0 : COMPAT_LEVELS[compat]);
  if (version < 3 && snapshots.length > 0) {
    throw new Qcow2Error('UNSUPPORTED', 'a version 2 image with snapshots cannot be resized', {
      hint: 'add compat=1.1, or delete the snapshots',
    });
  }
  return size;
}
