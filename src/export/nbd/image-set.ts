/** All images of a server, opened together. */

import { imageExports } from './image-exports.ts';
import type { ImageExportOptions, ImageExports } from './image-exports.ts';

/** An image, and what is served of it. Can be posted to another thread. */
export interface ImageSpec {
  path: string;
  options: ImageExportOptions;
}

/**
 * Opens all images. Closing closes all of them, whatever happens, and throws the first error.
 * @throws {Qcow2Error} what opening one throws; all are closed then
 */
export async function openImageSet(specs: readonly ImageSpec[]): Promise<ImageExports> {
  const opened: ImageExports[] = [];
  try {
    for (const { path, options } of specs) opened.push(await imageExports(path, options));
  } catch (error) {
    closeAll(opened);
    throw error;
  }
  return {
    exports: opened.flatMap(({ exports }) => exports),
    images: opened.flatMap(({ images }) => images),
    fingerprint: opened.map(({ fingerprint }) => fingerprint).join('\n'),
    close: () => closeAll(opened),
  };
}

function closeAll(images: readonly ImageExports[]): void {
  const errors: unknown[] = [];
  for (const image of images) {
    try {
      image.close();
    } catch (error) {
      errors.push(error);
    }
  }
  if (errors.length > 0) throw errors[0];
}
