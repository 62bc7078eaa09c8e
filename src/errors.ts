/**
 * The one family of errors that this package throws for things that are not its own bugs.
 *
 * An error says what is wrong, where (file, on-disk structure, byte offset) and, where there is
 * something to do, what. Bugs of ours are `AssertionError`s from `util/assert.ts` instead.
 */

/** What kind of trouble an error reports; stable, for programs to switch on. */
export type ErrorCode =
  /** The file is not in the format it was opened as. */
  | 'NOT_THIS_FORMAT'
  /** The format cannot be told, or is one that this package does not read. */
  | 'UNKNOWN_FORMAT'
  /** The image uses a feature that this package does not know or does not implement. */
  | 'UNSUPPORTED'
  /** A field of the image breaks the specification. */
  | 'CORRUPT'
  /** A field of the image passes a bound of `limits.ts`. */
  | 'TOO_LARGE'
  /** The image refers to bytes past the end of its file. */
  | 'TRUNCATED'
  /** The policy for referenced files does not let this one be opened. */
  | 'REFUSED'
  /** A backing chain comes back to a file that is already part of it, or is too deep. */
  | 'CYCLE'
  /** A write to something that was opened for reading, or can only be read. */
  | 'READ_ONLY'
  /** An offset or length outside the device. */
  | 'OUT_OF_RANGE'
  /** There is no snapshot, bitmap, partition or export of that name. */
  | 'NOT_FOUND'
  /** The caller's options contradict each other or are malformed. */
  | 'INVALID_OPTION'
  /** Someone else holds the image open in a way that excludes this. */
  | 'LOCKED'
  /** The device or image was used after `close()`. */
  | 'CLOSED'
  /** A host system call failed; `cause` is Node's error. */
  | 'HOST'
  /** An optional part (koffi, fusermount3, …) is needed and is not there. */
  | 'MISSING_DEPENDENCY';

/** Where in which file an error was found. */
export interface ErrorLocation {
  /** Path of the file that the error speaks of. */
  file?: string | undefined;
  /** On-disk structure, in the specification's words: `header`, `L1 entry 3`, … */
  structure?: string | undefined;
  /** Byte offset of that structure in the file. */
  offset?: number | undefined;
  /** What the user can do about it, as half a sentence. */
  hint?: string | undefined;
  /** The error below this one. */
  cause?: unknown;
}

/** An error with a stable {@link ErrorCode} and the place in the image that it speaks of. */
export class Qcow2Error extends Error {
  override readonly name = 'Qcow2Error';
  /** What kind of trouble it is. */
  readonly code: ErrorCode;
  /** Path of the file that it speaks of. */
  readonly file: string | undefined;
  /** On-disk structure that it speaks of, in the specification's words. */
  readonly structure: string | undefined;
  /** Byte offset of that structure in the file. */
  readonly offset: number | undefined;
  /** What the user can do about it. */
  readonly hint: string | undefined;
  /** The message without file, structure and hint. */
  readonly problem: string;

  constructor(code: ErrorCode, problem: string, location: ErrorLocation = {}) {
    super(
      describe(problem, location),
      location.cause === undefined ? {} : { cause: location.cause },
    );
    this.code = code;
    this.problem = problem;
    this.file = location.file;
    this.structure = location.structure;
    this.offset = location.offset;
    this.hint = location.hint;
  }

  /** The same error, naming `file` if it names none yet. */
  inFile(file: string): Qcow2Error {
    if (this.file !== undefined) return this;
    const { structure, offset, hint, cause } = this;
    return new Qcow2Error(this.code, this.problem, { file, structure, offset, hint, cause });
  }
}

function describe(problem: string, { file, structure, offset, hint }: ErrorLocation): string {
  const where: string[] = [];
  if (file !== undefined) where.push(file);
  if (structure !== undefined) {
    where.push(offset === undefined ? structure : `${structure} (at offset ${offset})`);
  } else if (offset !== undefined) {
    where.push(`at offset ${offset}`);
  }
  where.push(hint === undefined ? problem : `${problem}; ${hint}`);
  return where.join(': ');
}

/**
 * Wraps a failed system call of Node in a {@link Qcow2Error} with code `HOST`.
 *
 * @param action what was being done, as in `cannot open`
 */
export function hostError(action: string, file: string, cause: unknown): Qcow2Error {
  const { code, message } = cause as NodeJS.ErrnoException;
  const reason = (code !== undefined && HOST_REASONS[code]) || code || message;
  return new Qcow2Error('HOST', `${action}: ${reason}`, { file, cause });
}

const HOST_REASONS: Record<string, string> = {
  EACCES: 'permission denied',
  EBADF: 'the file was closed',
  EBUSY: 'it is in use',
  EDQUOT: 'the disk quota is used up',
  EEXIST: 'it exists already',
  EFBIG: 'the file would be larger than the filesystem allows',
  EIO: 'input/output error',
  EISDIR: 'it is a directory',
  EMFILE: 'too many open files',
  ENOENT: 'no such file or directory',
  ENOSPC: 'no space left on the device',
  ENOTDIR: 'a part of its path is not a directory',
  EPERM: 'operation not permitted',
  EROFS: 'the filesystem is read-only',
  ETXTBSY: 'it is in use',
};
