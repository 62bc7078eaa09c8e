/**
 * Changing the size of a disk that is served: `NBD_CMD_RESIZE`, an extension of the protocol that is
 * still an experiment. The offset of the request is the new size, and its length 0.
 *
 * What a disk gains reads as zeroes. It loses nothing: what is cut off has to be zeroes, so that a
 * client that means it discards it first.
 */

import type { Image } from '../../chain/open.ts';
import { Qcow2Error } from '../../errors.ts';
import { resizeImage } from '../../operations/resize.ts';
import { isAllZero } from '../../util/bytes.ts';

/** Bytes that are read to find out whether they are zeroes, where no table tells that they are. */
const MAX_LOOKED_AT_BYTES = 4 * 1024 * 1024;
/** Bytes that are read at a time. */
const PIECE_BYTES = 256 * 1024;

/**
 * What changes the size of an image's disk, durably.
 *
 * @param minimum bytes that others rely on, such as the end of the last partition that is served
 * @returns throws {@link Qcow2Error} `INVALID_OPTION` for a size that the disk cannot have, or what
 * {@link resizeImage} throws; the size is the old one then
 */
export function resizerOf(image: Image, minimum: number): (size: number) => void {
  return (size) => {
    const fail = (problem: string): Qcow2Error =>
      new Qcow2Error('INVALID_OPTION', problem, { file: image.path });
    if (size < minimum) {
      throw fail(
        `a client asked for ${size} bytes, and a partition that is served ends after that`,
      );
    }
    const isShorter = size < image.size;
    if (isShorter && !isZero(image, size)) {
      throw fail(`a client asked for ${size} bytes, and there is data after that`);
    }
    resizeImage(image, size, { shrink: isShorter });
    image.flush();
  };
}

/** Whether a disk is known to hold nothing but zeroes from `start` on. */
function isZero(image: Image, start: number): boolean {
  let left = MAX_LOOKED_AT_BYTES;
  const bytes = new Uint8Array(PIECE_BYTES);
  for (const { offset, length, zero } of image.extents(start, image.size - start)) {
    if (zero) continue;
    left -= length;
    if (left < 0) return false;
    for (let done = 0; done < length; done += bytes.length) {
      const piece = bytes.subarray(0, Math.min(bytes.length, length - done));
      image.read(piece, offset + done);
      if (!isAllZero(piece)) return false;
    }
  }
  return true;
}
