/** A raw image: a host file whose bytes are the disk's. */

import { FileDevice } from '../device/file.ts';
import type { BlockDevice } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';

/**
 * What files of other formats begin with. A guest that could write one of these to a raw disk would
 * choose what the disk is taken for the next time, and with it which files of the host are opened.
 */
const SIGNATURES = ['QFI\xfb', 'QED\0', 'KDMV', 'COWD', 'vhdxfile', 'conectix'].map((signature) =>
  Buffer.from(signature, 'latin1'),
);
const SIGNATURE_BYTES = 8;

/** A raw image as a link of a backing chain. It never has a backing file. */
export class RawImage extends FileDevice {
  /** Tells it from a qcow2 image. */
  readonly format = 'raw';
  /** Always undefined. */
  readonly backing: undefined;
  /**
   * Whether it was taken for raw because it begins like no other format (default false). What would
   * make it begin like one is not written then.
   */
  isProbed = false;

  /** The host file itself. */
  get file(): BlockDevice {
    return this;
  }

  /** @throws {Qcow2Error} as {@link FileDevice.write}; `REFUSED` where {@link isProbed} forbids it */
  override write(source: Uint8Array, offset: number): void {
    if (this.isProbed && offset < SIGNATURE_BYTES && source.length > 0) {
      this.#checkStaysRaw(source, offset);
    }
    super.write(source, offset);
  }

  #checkStaysRaw(source: Uint8Array, offset: number): void {
    const start = Buffer.alloc(SIGNATURE_BYTES);
    this.read(start.subarray(0, Math.min(SIGNATURE_BYTES, this.size)), 0);
    start.set(source.subarray(0, SIGNATURE_BYTES - offset), offset);
    const isOther = SIGNATURES.some((known) => start.subarray(0, known.length).equals(known));
    if (!isOther) return;
    throw new Qcow2Error(
      'REFUSED',
      'its first bytes would make a raw image one of another format',
      {
        file: this.path,
        hint: 'name its format (-f raw) if that is meant',
      },
    );
  }
}
