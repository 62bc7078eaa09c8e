/** Values of options that several image commands share, with qemu-img's meaning. */

/** The formats that images are read in. */
export const IMAGE_FORMATS = ['qcow2', 'raw'] as const;

/** One of {@link IMAGE_FORMATS}. */
export type ImageFormat = (typeof IMAGE_FORMATS)[number];

/** Cache modes of host files. What they say about reading is left to the page cache. */
export const CACHE_MODES = ['none', 'writeback', 'unsafe', 'writethrough', 'directsync'] as const;

/** The value of a format option as a property for `openImage`; empty where it is to be probed. */
export function formatOption(value: string | undefined): { format?: ImageFormat } {
  const format = IMAGE_FORMATS.find((candidate) => candidate === value);
  return format === undefined ? {} : { format };
}
