/** What the ways of mounting have in common: what is asked of them, and how they fail. */

import { Qcow2Error } from '../errors.ts';

/** What to mount where. */
export interface FuseMountOptions {
  directory: string;
  /** What the mount table names as the source: the image. */
  source: string;
  /** The type is `fuse.` and this. */
  subtype: string;
  /** Names of flags of mount(2), as in `ro`. */
  flags: readonly string[];
  /** Let other users look into it. */
  allowOther: boolean;
}

/** The error of a mount that was refused for `reason`: an errno's name, or a program's words. */
export function refused(directory: string, reason: string): Qcow2Error {
  const denied = reason === 'EPERM' || reason === 'EACCES';
  const problem = denied ? 'the kernel does not let this process mount' : 'cannot mount';
  const hint = denied ? 'a container needs CAP_SYS_ADMIN for it' : undefined;
  return new Qcow2Error('HOST', `${problem}: ${reason}`, { file: directory, hint });
}

/** The error of an unmount that was refused; `LOCKED` if `reason` says that it is in use. */
export function unmountRefused(directory: string, reason: string): Qcow2Error {
  if (/EBUSY|busy/i.test(reason)) {
    return new Qcow2Error('LOCKED', 'it is in use', { file: directory });
  }
  return new Qcow2Error('HOST', `cannot unmount: ${reason}`, { file: directory });
}

/** The error of a program that could not be started. */
export function missingProgram(program: string, cause: unknown, hint?: string): Qcow2Error {
  const reason =
    (cause as NodeJS.ErrnoException).code === 'ENOENT' ? 'is not installed' : 'cannot be run';
  return new Qcow2Error('MISSING_DEPENDENCY', `${program} ${reason}`, { cause, hint });
}

/** The first line of a program's error output, without its own name. */
export function firstLine(stderr: string): string {
  const line = stderr.trim().split('\n')[0] ?? '';
  return line.replace(/^\w+: /, '') || 'it gave no reason';
}
