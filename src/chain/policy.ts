/**
 * Which of the files that an image refers to may be opened.
 *
 * An image that came from someone else can name any file of the host as its backing or data file,
 * and its content would then show up in the guest's disk. So the caller decides: by default plain
 * paths are followed, names that select a protocol or a driver are not, and a format is never
 * guessed from a backing file's content, which a guest may have written.
 */

import { dirname, relative } from 'node:path';
import { realpathSync } from 'node:fs';
import { Qcow2Error } from '../errors.ts';
import { quote } from './names.ts';
import type { FileReference } from './names.ts';

/** A file that an image refers to, as a policy function sees it. */
export interface ReferencedFile {
  /** Path of the host file. */
  path: string;
  /** What it is to the image. */
  role: 'backing file' | 'external data file';
  /** Path of the image that refers to it. */
  referrer: string;
}

/**
 * Which referenced files may be opened: all of them, none, those below the directory of the image
 * that was opened, or those for which a function returns true.
 */
export type ReferencePolicy =
  'follow' | 'refuse' | 'same-directory' | ((file: ReferencedFile) => boolean);

/** What the policy for one opening is. */
export interface PolicyOptions {
  references: ReferencePolicy;
  allowProtocolNames: boolean;
  /** Path of the image that the caller opened. */
  root: string;
}

/**
 * The path to open for a reference.
 * @throws {Qcow2Error} `REFUSED` if the policy does not allow it; `UNSUPPORTED` if the name does
 * not come down to a host file
 */
export function permittedPath(
  reference: FileReference,
  { role, referrer }: Omit<ReferencedFile, 'path'>,
  policy: PolicyOptions,
): string {
  const refuse = (problem: string, hint: string): Qcow2Error =>
    new Qcow2Error('REFUSED', problem, { file: referrer, structure: role, hint });
  const { name, kind, path } = reference;
  if (kind !== 'path' && !policy.allowProtocolNames) {
    throw refuse(
      `${quote(name)} is not a plain file name and is not opened by default`,
      'allow it with --allow-protocol-names if you trust the image',
    );
  }
  if (path === undefined) {
    throw new Qcow2Error('UNSUPPORTED', `${quote(name)} is not a file of this host`, {
      file: referrer,
      structure: role,
    });
  }
  if (!isAllowed({ path, role, referrer }, policy)) {
    throw refuse(`opening ${quote(path)} is not allowed`, 'allow it if you trust the image');
  }
  return path;
}

function isAllowed(file: ReferencedFile, { references, root }: PolicyOptions): boolean {
  if (references === 'follow') return true;
  if (references === 'refuse') return false;
  if (references === 'same-directory') return isBelow(file.path, dirname(root));
  return references(file);
}

/** Whether a file lies below a directory, symbolic links resolved. */
export function isBelow(path: string, directory: string): boolean {
  try {
    const way = relative(realpathSync(directory), realpathSync(path));
    return way !== '..' && !way.startsWith('../') && !way.startsWith('/');
  } catch {
    // A file that is not there is reported when it is opened.
    return true;
  }
}
