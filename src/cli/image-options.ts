/** Options that several image commands share, with qemu-img's meaning. */

import { usageError } from './command.ts';

/** What `-f` and `-F` accept. */
const IMAGE_FORMATS = ['qcow2', 'raw'] as const;

/** A format that images are read in. */
export type ImageFormat = (typeof IMAGE_FORMATS)[number];

const CACHE_MODES = ['none', 'writeback', 'unsafe', 'writethrough', 'directsync'];

/**
 * The format named by an option, or undefined where it is to be probed.
 * @throws {Qcow2Error} `INVALID_OPTION` for one that is not read
 */
export function imageFormat(name: string | undefined): ImageFormat | undefined {
  if (name === undefined) return undefined;
  const format = IMAGE_FORMATS.find((candidate) => candidate === name);
  if (format !== undefined) return format;
  throw usageError(`unknown format '${name}'; the formats are ${IMAGE_FORMATS.join(' and ')}`);
}

/**
 * Checks the value of a cache option. What it says about reading is left to the page cache.
 * @throws {Qcow2Error} `INVALID_OPTION`
 */
export function checkCacheMode(option: string, mode: string | undefined): void {
  if (mode === undefined || CACHE_MODES.includes(mode)) return;
  throw usageError(`${option} must be one of ${CACHE_MODES.join(', ')}, not '${mode}'`);
}
