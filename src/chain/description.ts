/**
 * An image described by its options rather than by a name: QEMU's block options, without those that
 * change nothing here. What is behind it can be described too, which then takes the place of what
 * the image says about itself.
 *
 * Descriptions come from whoever opens the image, never from an image.
 */

import type { FileWindow } from '../device/file.ts';
import type { PassDiscard } from '../qcow2/allocator.ts';

/** The formats that are read. */
export const IMAGE_FORMATS = ['qcow2', 'raw'] as const;

/** One of {@link IMAGE_FORMATS}. */
export type ImageFormat = (typeof IMAGE_FORMATS)[number];

/** How one layer is opened, whichever file it is. */
export interface LayerDescription {
  /** Format (default: that of the opening options, or probed). */
  format?: ImageFormat | undefined;
  /** The part of the file that holds the image (default: all of it). */
  window?: FileWindow | undefined;
  /** Refuse to write to it (default false). */
  readOnly?: boolean | undefined;
  /** Read it though others write to it (default false). */
  forceShare?: boolean | undefined;
  /** Lock it (default true). */
  lock?: boolean | undefined;
  /** Bytes of the cache of L1 and L2 tables. */
  metadataCacheBytes?: number | undefined;
  /** Which freed clusters are given back to the host's filesystem. */
  passDiscard?: PassDiscard | undefined;
  /** Path of the external data file, rather than the one that the image names. */
  dataFile?: string | undefined;
  /** The backing file, rather than the one that the image names; null for none. */
  backing?: BackingDescription | null | undefined;
  /** Name to show for its file, or the part of it, where that is not the path. */
  shownName?: string | undefined;
}

/** An image by its options. */
export interface ImageDescription extends LayerDescription {
  /** Path of its file. */
  path: string;
}

/** A backing file by its options. Without a path it is the file that the image names. */
export interface BackingDescription extends LayerDescription {
  /** Path of its file (default: what the image names). */
  path?: string | undefined;
}
