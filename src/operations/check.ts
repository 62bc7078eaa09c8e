/**
 * Checking the metadata of a qcow2 image: references to host clusters against stored refcounts,
 * COPIED flags, and all tables on the way. Nothing is written.
 *
 * The verdict and its numbers are those of `qemu-img check`, and so are the messages.
 */

import { openImage } from '../chain/open.ts';
import type { Image, OpenImageOptions } from '../chain/open.ts';
import { FileDevice } from '../device/file.ts';
import { Qcow2Error } from '../errors.ts';
import { checkMetadata } from '../qcow2/check/check-metadata.ts';
import { CheckReport } from '../qcow2/check/check-report.ts';
import type { ProblemListener } from '../qcow2/check/check-report.ts';
import { readDamagedHeader } from '../qcow2/check/far-offsets.ts';
import { Qcow2Image } from '../qcow2/image.ts';

export type { CheckProblem, ProblemListener } from '../qcow2/check/check-report.ts';

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
  /** Things that could not be checked; always there. */
  'check-errors': number;
  /** Clusters that are counted more often than they are used: wasted space. */
  leaks?: number;
  /** Clusters of the disk that have host space. */
  'allocated-clusters'?: number;
  /** Path of the image. */
  filename: string;
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
export function openForCheck(path: string, options: OpenImageOptions = {}): Image {
  try {
    return openImage(path, options);
  } catch (error) {
    if (!(error instanceof Qcow2Error)) throw error;
    if (error.code === 'REFUSED') return openImage(path, { ...options, withoutBacking: true });
    const isDamaged = error.code === 'TOO_LARGE' || error.code === 'CORRUPT';
    if (isDamaged && options.format !== 'raw') return openDamaged(path, error);
    throw error;
  }
}

/** Opens an image whose header is too damaged for reading, but not for a check. */
function openDamaged(path: string, reason: Qcow2Error): Image {
  const file = new FileDevice(path);
  try {
    const header = readDamagedHeader(file);
    if (header.hasExternalDataFile && header.extensions.externalDataFile === undefined) throw reason;
    return new Qcow2Image<Image>({ file, header, path });
  } catch (error) {
    file.close();
    throw error instanceof Qcow2Error ? reason : error;
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
  try {
    const report = new CheckReport(onProblem);
    const endOffset = checkMetadata(image, report);
    return describe(image, report, endOffset);
  } catch (error) {
    throw error instanceof Qcow2Error ? error.inFile(image.path) : error;
  }
}

function describe(image: Qcow2Image, report: CheckReport, endOffset: number): CheckResult {
  const { clusterSize, size } = image.header;
  return {
    ...unlessZero('image-end-offset', endOffset),
    ...unlessZero('compressed-clusters', report.compressedClusters),
    ...unlessZero('total-clusters', Math.ceil(size / clusterSize)),
    ...unlessZero('corruptions', report.corruptions),
    'check-errors': report.checkErrors,
    ...unlessZero('leaks', report.leaks),
    ...unlessZero('allocated-clusters', report.allocatedClusters),
    filename: image.path,
    format: 'qcow2',
    ...unlessZero('fragmented-clusters', report.fragmentedClusters),
  };
}

function unlessZero<K extends keyof CheckResult>(key: K, value: number): Partial<CheckResult> {
  return value === 0 ? {} : { [key]: value };
}
