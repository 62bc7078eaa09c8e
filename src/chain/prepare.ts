/** What is made ready once before an image is read at full speed. */

import { prepareZstd } from '../compression/zstd.ts';
import type { Image } from './open.ts';

/**
 * Makes the fastest decoder ready if a layer of the image has zstd clusters; costs nothing where
 * none has. An image that was not prepared can be read too, more slowly on Node 20.
 */
export async function prepareToRead(image: Image): Promise<void> {
  for (let layer: Image | undefined = image; layer !== undefined; layer = layer.backing) {
    if (layer.format === 'qcow2' && layer.header.compressionType === 'zstd') {
      await prepareZstd();
      return;
    }
  }
}
