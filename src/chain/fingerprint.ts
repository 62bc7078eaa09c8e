/** Telling whether two threads that open an image by its path have the same files. */

import { fstatSync } from 'node:fs';
import { FileDevice } from '../device/file.ts';
import type { Image } from './open.ts';

/**
 * What is known of the files of an image and its backing chain: which they are, how long, and when
 * they were written last. Images opened by the same path and options, of which this is equal, show
 * the same bytes.
 */
export function fingerprintOf(image: Image): string {
  const files: string[] = [];
  for (let layer: Image | undefined = image; layer !== undefined; layer = layer.backing) {
    const data = layer.format === 'qcow2' ? layer.dataFile?.device : undefined;
    for (const device of data === undefined ? [layer.file] : [layer.file, data]) {
      files.push(device instanceof FileDevice ? stateOf(device.descriptor) : `${device.size}`);
    }
  }
  return files.join(' ');
}

function stateOf(descriptor: number): string {
  const { dev, ino, size, mtimeNs } = fstatSync(descriptor, { bigint: true });
  return `${dev}:${ino}:${size}:${mtimeNs}`;
}
