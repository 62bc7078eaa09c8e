/** Errors as the kernel wants them: numbers of errno(3). */

import { Qcow2Error } from '../../errors.ts';
import type { ErrorCode } from '../../errors.ts';

/** Linux's numbers. Those below 35 are macOS's too. */
export const Errno = {
  EPERM: 1,
  ENOENT: 2,
  EIO: 5,
  ENXIO: 6,
  ENOTDIR: 20,
  EISDIR: 21,
  EINVAL: 22,
  EFBIG: 27,
  ENOSPC: 28,
  EROFS: 30,
  ENOSYS: 38,
  EPROTO: 71,
  EOPNOTSUPP: 95,
  EDQUOT: 122,
} as const;

/** macOS's number of an error, for those that are not below 35. */
const MACOS_NUMBERS: Partial<Record<number, number>> = {
  [Errno.ENOSYS]: 78,
  [Errno.EPROTO]: 100,
  [Errno.EOPNOTSUPP]: 102,
  [Errno.EDQUOT]: 69,
};

/** An error's number as the platform has it that a mount is on. */
export function platformErrno(errno: number, platform: NodeJS.Platform = process.platform): number {
  return platform === 'darwin' ? (MACOS_NUMBERS[errno] ?? errno) : errno;
}

/** Name of an error number, for log lines. */
export function errnoName(errno: number): string {
  for (const [name, value] of Object.entries(Errno)) if (value === errno) return name;
  return String(errno);
}

/** Those that are not EIO: what the caller did, not what the image is. */
const BY_CODE: Partial<Record<ErrorCode, number>> = {
  OUT_OF_RANGE: Errno.EINVAL,
  READ_ONLY: Errno.EROFS,
  REFUSED: Errno.EPERM,
  NOT_FOUND: Errno.ENOENT,
};

/** What the host refused, and would have refused a write to a file of its own in the same way. */
const BY_HOST_CODE: Partial<Record<string, number>> = {
  ENOSPC: Errno.ENOSPC,
  EDQUOT: Errno.EDQUOT,
  EFBIG: Errno.EFBIG,
};

/** The error number that tells a user of the mount of a failure in the image. */
export function errnoOf(error: unknown): number {
  if (!(error instanceof Qcow2Error)) return Errno.EIO;
  const hostCode = (error.cause as NodeJS.ErrnoException | undefined)?.code ?? '';
  return BY_CODE[error.code] ?? BY_HOST_CODE[hostCode] ?? Errno.EIO;
}
