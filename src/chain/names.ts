/**
 * The names by which an image refers to other files: plain paths, `protocol:` names, and `json:`
 * descriptions. What they mean is decided here; whether they may be opened, in `policy.ts`.
 */

import { dirname, isAbsolute, join } from 'node:path';
import { Qcow2Error } from '../errors.ts';

/** A reference to a file, taken apart. */
export interface FileReference {
  kind: 'path' | 'protocol' | 'json';
  /** The name as the image has it. */
  name: string;
  /** Path of a host file, where the name comes down to one. */
  path: string | undefined;
  /** Format that the name itself gives (`json:` only). */
  format: string | undefined;
}

/**
 * Takes a name apart.
 *
 * @param referrer path of the file that holds the name; relative paths start at its directory
 */
export function parseReference(name: string, referrer: string): FileReference {
  if (name.startsWith('json:')) return parseJson(name, referrer);
  // A colon before the first slash makes a protocol, even a one-letter one.
  const protocol = /^([^/:]*):/.exec(name)?.[1];
  if (protocol === undefined) {
    return { kind: 'path', name, path: resolvePath(name, referrer), format: undefined };
  }
  const path = protocol === 'file' ? resolvePath(name.slice('file:'.length), referrer) : undefined;
  return { kind: 'protocol', name, path, format: undefined };
}

function resolvePath(name: string, referrer: string): string {
  return isAbsolute(name) ? name : join(dirname(referrer), name);
}

/** A `json:` description of one file: `file.filename`, nested or in QEMU's dotted form. */
function parseJson(name: string, referrer: string): FileReference {
  const none: FileReference = { kind: 'json', name, path: undefined, format: undefined };
  let description: unknown;
  try {
    description = JSON.parse(name.slice('json:'.length));
  } catch (cause) {
    throw new Qcow2Error('CORRUPT', `the file name ${quote(name)} is not valid JSON`, { cause });
  }
  const driver = textAt(description, ['driver']);
  const fileDriver = textAt(description, ['file', 'driver']);
  const filename =
    textAt(description, ['file', 'filename']) ??
    (driver === 'file' ? textAt(description, ['filename']) : undefined);
  if (filename === undefined || (fileDriver !== undefined && fileDriver !== 'file')) return none;
  const format = driver === 'file' ? undefined : driver;
  return { ...none, path: resolvePath(filename, referrer), format };
}

/** The text at a path of keys, which may be joined by dots anywhere. */
function textAt(value: unknown, keys: readonly string[]): string | undefined {
  if (keys.length === 0) return typeof value === 'string' ? value : undefined;
  if (typeof value !== 'object' || value === null) return undefined;
  for (let count = keys.length; count > 0; count--) {
    const member: unknown = Reflect.get(value, keys.slice(0, count).join('.'));
    if (member !== undefined) return textAt(member, keys.slice(count));
  }
  return undefined;
}

/** A name for a message: quoted and not endless. */
export function quote(name: string): string {
  return `'${name.length > 120 ? `${name.slice(0, 120)}…` : name}'`;
}
