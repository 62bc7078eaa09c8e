/** Errors as the kernel wants them: numbers of errno(3). */

import { Qcow2Error } from '../../errors.ts';
import type { ErrorCode } from '../../errors.ts';

/** Linux's numbers. Those that fuse-native is given (all but the last two) are macOS's too. */
export const Errno = {
  ENOENT: 2,
  EIO: 5,
  ENXIO: 6,
  EINVAL: 22,
  EFBIG: 27,
  EROFS: 30,
  ENOTDIR: 20,
  EISDIR: 21,
  ENOSYS: 38,
  EPROTO: 71,
} as const;

/** Name of an error number, for log lines. */
export function errnoName(errno: number): string {
  for (const [name, value] of Object.entries(Errno)) if (value === errno) return name;
  return String(errno);
}

/** Those that are not EIO: what the caller did, not what the image is. */
const BY_CODE: Partial<Record<ErrorCode, number>> = {
  OUT_OF_RANGE: Errno.EINVAL,
  READ_ONLY: Errno.EROFS,
  NOT_FOUND: Errno.ENOENT,
};

/** The error number that tells a reader of the mount of a failure in the image. */
export function errnoOf(error: unknown): number {
  return (error instanceof Qcow2Error && BY_CODE[error.code]) || Errno.EIO;
}
