/** Images that are written by others who flush them: see `host/early-writeback.ts`. */

import type { Image } from '../chain/open.ts';
import { FileDevice } from '../device/file.ts';
import { EarlyWriteback } from '../host/early-writeback.ts';

/** Has long writes to an image reach the disk before it is flushed. Returns the image. */
export function writeBackEarly<T extends Image>(image: T): T {
  const data = image.format === 'qcow2' ? image.dataFile?.device : undefined;
  for (const device of [image.file, data]) {
    if (device instanceof FileDevice) device.earlyWriteback = new EarlyWriteback();
  }
  return image;
}
