/**
 * Checking the metadata of a qcow2 image: references to host clusters against stored refcounts,
 * COPIED flags, and all tables on the way. Nothing is written unless it is to be repaired.
 *
 * The verdict and its numbers are those of `qemu-img check`, and so are the messages.
 */

import type { ImageDescription } from '../chain/description.ts';
import { openImage } from '../chain/open.ts';
import type { Image, OpenImageOptions } from '../chain/open.ts';
import type { HostFile } from '../device/block-device.ts';
import { FileDevice } from '../device/file.ts';
import { Qcow2Error } from '../errors.ts';
import { lockFile, LockRequests } from '../host/locks.ts';
import { checkMetadata } from '../qcow2/check/check-metadata.ts';
import { CheckReport } from '../qcow2/check/check-report.ts';
import type { ProblemListener } from '../qcow2/check/check-report.ts';
import { readDamagedHeader } from '../qcow2/check/far-offsets.ts';
import { repairMetadata } from '../qcow2/check/repair.ts';
import type { RepairOptions } from '../qcow2/check/repair.ts';
import { Qcow2Image } from '../qcow2/image.ts';

export type { CheckProblem, ProblemListener } from '../qcow2/check/check-report.ts';
export type { RepairOptions } from '../qcow2/check/repair.ts';

/** Options of {@link checkImage}. */
export interface CheckOptions {
  /** Is told of each problem as it is met. */
  onProblem?: ProblemListener | undefined;
}

/** The result of a check: qemu-img's document, in its order. Numbers that are 0 are left out. */
export interface CheckResult {
  /** Bytes of the file up to the end of the last cluster that is in use. */
  'image-end-offset'?: number;
  /** Clusters of the disk that are compressed. */
  'compressed-clusters'?: number;
  /** Clusters of the disk. */
  'total-clusters'?: number;
  /** Problems that may damage data, or have. */
  corruptions?: number;
  /** Corruptions that were repaired. */
  'corruptions-fixed'?: number;
  /** Things that could not be checked; always there. */
  'check-errors': number;
  /** Clusters that are counted more often than they are used: wasted space. */
  leaks?: number;
  /** Leaked clusters that were freed. */
  'leaks-fixed'?: number;
  /** Clusters of the disk that have host space. */
  'allocated-clusters'?: number;
  /** Path of the image. */
  filename: string;
  /** Format of the image. */
  format: 'qcow2';
  /** Allocated clusters that are not stored after the one before. */
  'fragmented-clusters'?: number;
}

/**
 * Opens an image to check it. Its backing file is opened too, so that a lost one shows, but one
 * that the policy refuses does not matter: nothing is read from it.
 *
 * @throws {Qcow2Error} as {@link openImage}
 */
export function openForCheck(
  source: string | ImageDescription,
  options: OpenImageOptions = {},
): Image {
  try {
    return openImage(source, options);
  } catch (error) {
    if (!(error instanceof Qcow2Error)) throw error;
    if (error.code === 'REFUSED') return openImage(source, { ...options, withoutBacking: true });
    const isDamaged = error.code === 'TOO_LARGE' || error.code === 'CORRUPT';
    if (isDamaged && options.format !== 'raw') return openDamaged(source, options, error);
    throw error;
  }
}

/**
 * Opens an image to repair it, as {@link openForCheck} does for a check, but for writing.
 * @throws {Qcow2Error} as {@link openImage}
 */
export function openForRepair(
  source: string | ImageDescription,
  options: OpenImageOptions = {},
): Image {
  return openForCheck(source, { ...options, writable: true, forRepair: true });
}

/** Opens an image whose header is too damaged for reading, but not for a check. */
function openDamaged(
  source: string | ImageDescription,
  options: OpenImageOptions,
  reason: Qcow2Error,
): Image {
  const description = typeof source === 'string' ? { path: source } : source;
  const { path, window } = description;
  if (window !== undefined) throw reason;
  const { writable = false } = options;
  const forceShare = options.forceShare === true || description.forceShare === true;
  const lock = options.lock !== false && description.lock !== false;
  const file = new FileDevice(path, { writable, growable: writable });
  try {
    const forReading = forceShare ? LockRequests.shared.read : LockRequests.qcow2.read;
    const request = writable ? LockRequests.qcow2.write : forReading;
    if (lock) lockFile({ fd: file.descriptor, path }, request);
    const header = readDamagedHeader(file);
    const { hasExternalDataFile, extensions } = header;
    if (hasExternalDataFile && extensions.externalDataFile === undefined) throw reason;
    return new Qcow2Image<Image>({ file, header, path, writable });
  } catch (error) {
    file.close();
    const isLocked = error instanceof Qcow2Error && error.code === 'LOCKED';
    throw error instanceof Qcow2Error && !isLocked ? reason : error;
  }
}

/**
 * Checks the metadata of an image; its backing files are not looked at.
 *
 * @throws {Qcow2Error} `CORRUPT`, `TOO_LARGE` or `UNSUPPORTED` where snapshots or bitmaps keep the
 * check from being done at all
 * @example
 * using image = openImage('disk.qcow2');
 * const { corruptions = 0, leaks = 0 } = checkImage(image);
 */
export function checkImage(image: Qcow2Image, { onProblem }: CheckOptions = {}): CheckResult {
  return checkRepaired(image, { onProblem, corruptionsFixed: 0, leaksFixed: 0 });
}

/** What a check is to tell besides what it finds. */
interface RepairedCounts extends CheckOptions {
  corruptionsFixed: number;
  leaksFixed: number;
}

function checkRepaired(image: Qcow2Image, repaired: RepairedCounts): CheckResult {
  try {
    const report = new CheckReport(repaired.onProblem);
    const endOffset = checkMetadata(image, report);
    return describe(image, report, { ...repaired, endOffset });
  } catch (error) {
    throw error instanceof Qcow2Error ? error.inFile(image.path) : error;
  }
}

/**
 * Repairs the metadata of an image as `qemu-img check -r` does, then checks it again. What was read
 * of the image before may be out of date afterwards: close it.
 *
 * @param image from {@link openForRepair}
 * @returns what is left, and how much was repaired
 * @throws {Qcow2Error} with the file untouched: `READ_ONLY`; `CORRUPT`, `TOO_LARGE` or `UNSUPPORTED`
 * where it cannot be checked or not be repaired like this; while it is repaired: `HOST`, which
 * leaves the image no worse than it was
 * @example
 * using image = openForRepair('disk.qcow2');
 * if (image.format === 'qcow2') repairImage(image, { fix: 'all' });
 */
export function repairImage(image: Qcow2Image, options: RepairOptions): CheckResult {
  const { header, file, path } = image;
  if (image.readOnly) {
    throw new Qcow2Error('READ_ONLY', 'it was not opened for writing', { file: path });
  }
  // A writable image's file is one that can grow.
  const repaired = repairMetadata({ header, file: file as HostFile, path }, options);
  const { corruptionsFixed, leaksFixed } = repaired;
  // What is left has been told of already, unless it may have changed.
  const onProblem = corruptionsFixed + leaksFixed > 0 ? options.onProblem : undefined;
  return checkRepaired(image, { onProblem, corruptionsFixed, leaksFixed });
}

function describe(
  image: Qcow2Image,
  report: CheckReport,
  { corruptionsFixed, leaksFixed, endOffset }: RepairedCounts & { endOffset: number },
): CheckResult {
  const { clusterSize, size } = image.header;
  return {
    ...unlessZero('image-end-offset', endOffset),
    ...unlessZero('compressed-clusters', report.compressedClusters),
    ...unlessZero('total-clusters', Math.ceil(size / clusterSize)),
    ...unlessZero('corruptions', report.corruptions),
    ...unlessZero('corruptions-fixed', corruptionsFixed),
    'check-errors': report.checkErrors,
    ...unlessZero('leaks', report.leaks),
    ...unlessZero('leaks-fixed', leaksFixed),
    ...unlessZero('allocated-clusters', report.allocatedClusters),
    filename: image.path,
    format: 'qcow2',
    ...unlessZero('fragmented-clusters', report.fragmentedClusters),
  };
}

function unlessZero<K extends keyof CheckResult>(key: K, value: number): Partial<CheckResult> {
  return value === 0 ? {} : { [key]: value };
}
