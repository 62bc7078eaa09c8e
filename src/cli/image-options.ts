/** Values of options that several image commands share, with qemu-img's meaning. */

import { IMAGE_FORMATS } from '../chain/open.ts';
import type { ImageFormat } from '../chain/open.ts';

export { IMAGE_FORMATS };

/** Cache modes of host files. What they say about reading is left to the page cache. */
export const CACHE_MODES = ['none', 'writeback', 'unsafe', 'writethrough', 'directsync'] as const;

/** The value of a format option as a property for `openImage`; empty where it is to be probed. */
export function formatOption(value: string | undefined): { format?: ImageFormat } {
  const format = IMAGE_FORMATS.find((candidate) => candidate === value);
  return format === undefined ? {} : { format };
}
