/** A raw image: a host file whose bytes are the disk's. */

import { FileDevice } from '../device/file.ts';
import type { BlockDevice } from '../device/block-device.ts';

/** A raw image as a link of a backing chain. It never has a backing file. */
export class RawImage extends FileDevice {
  /** Tells it from a qcow2 image. */
  readonly format = 'raw';
  /** Always undefined. */
  readonly backing: undefined;

  /** The host file itself. */
  get file(): BlockDevice {
    return this;
  }
}
