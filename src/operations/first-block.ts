/** The start of a new raw file has its space at once. */

/** What an O_DIRECT probe reads at most; smaller files have a sector of space. */
const BLOCK_BYTES = 4096;
const SECTOR_BYTES = 512;

/**
 * Bytes at the start of a new raw file that are written as zeroes, so that they are no hole. QEMU finds
 * out how direct I/O has to be aligned by reading them, and some filesystems read a hole whatever its
 * alignment.
 *
 * @param size bytes of the file
 */
export function firstBlockBytes(size: number): number {
  return size < BLOCK_BYTES ? Math.min(size, SECTOR_BYTES) : BLOCK_BYTES;
}
