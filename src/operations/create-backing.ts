/** What is behind a new image: its backing file, which may decide its size. */

import { statSync } from 'node:fs';
import { resolve } from 'node:path';
import { IMAGE_FORMATS, openImage } from '../chain/open.ts';
import type { Image, ImageFormat } from '../chain/open.ts';
import { parseReference, quote } from '../chain/names.ts';
import { permittedPath } from '../chain/policy.ts';
import { Qcow2Error } from '../errors.ts';

/** What a caller says of the backing file of a new image. */
export interface BackingRequest {
  /** Format of the new image (default qcow2). */
  format?: ImageFormat | undefined;
  /** Name of the backing file, from the image's directory. */
  backingFile?: string | undefined;
  /** Format of the backing file. */
  backingFormat?: string | undefined;
  /** Take the name as it is, without looking for the file (default false). */
  withoutBacking?: boolean | undefined;
}

/** What is behind a new image. */
export interface Backing {
  /** Bytes; undefined if there is none, or it was not looked at. */
  size: number | undefined;
  /** All files of its chain by identity, each with what it is. */
  files: ReadonlyMap<string, string>;
}

/**
 * Opens the backing file of a new image at `path`, unless it is to be left alone, and looks at it.
 *
 * @throws {Qcow2Error} `INVALID_OPTION`, `UNKNOWN_FORMAT`; `REFUSED` if it is the new image itself;
 * what opening it throws
 */
export function findBacking(path: string, options: BackingRequest): Backing {
  const { backingFile, backingFormat, withoutBacking = false } = options;
  const files = new Map<string, string>();
  const isRaw = options.format === 'raw';
  if (isRaw && (backingFile ?? backingFormat) !== undefined) throw rawOption(path, 'backing file');
  if (backingFile === undefined) return { size: undefined, files };
  if (backingFile === '') {
    throw new Qcow2Error('INVALID_OPTION', 'the name of its backing file is empty', { file: path });
  }
  const reference = parseReference(backingFile, path);
  const known = knownFormat(path, backingFile, backingFormat);
  if (reference.path !== undefined) refuseItself(path, reference.path);
  if (withoutBacking) {
    if (reference.path !== undefined) addFile(files, reference.path);
    return { size: undefined, files };
  }
  const role = { role: 'backing file', referrer: path } as const;
  const found = permittedPath(reference, role, {
    references: 'follow',
    allowProtocolNames: true,
    root: path,
  });
  // It is only looked at: a virtual machine may be using it.
  using image = openImage(found, { format: known, forceShare: true });
  for (let layer: Image | undefined = image; layer !== undefined; layer = layer.backing) {
    addFile(files, layer.path);
    if (layer.format === 'qcow2' && layer.dataFile !== undefined) {
      addFile(files, layer.dataFile.path);
    }
  }
  return { size: image.size, files };
}

function refuseItself(path: string, backingPath: string): void {
  const [own, behind] = [path, backingPath].map((name) => identityOf(name) ?? resolve(name));
  if (own !== behind) return;
  throw new Qcow2Error('REFUSED', 'an image cannot be its own backing file', {
    file: path,
    hint: 'nothing was written',
  });
}

function knownFormat(path: string, name: string, format: string | undefined): ImageFormat {
  if (format === undefined) {
    throw new Qcow2Error(
      'INVALID_OPTION',
      `the format of the backing file ${quote(name)} is not given`,
      { file: path, hint: 'say -F qcow2 or -F raw; guessing it would be unsafe' },
    );
  }
  const known = IMAGE_FORMATS.find((candidate) => candidate === format);
  if (known !== undefined) return known;
  throw new Qcow2Error('UNKNOWN_FORMAT', `the backing format ${quote(format)} is not read here`, {
    file: path,
    hint: `${IMAGE_FORMATS.join(' and ')} are`,
  });
}

function rawOption(path: string, what: string): Qcow2Error {
  return new Qcow2Error('INVALID_OPTION', `a raw image has no ${what}`, { file: path });
}

function addFile(files: Map<string, string>, path: string): void {
  const identity = identityOf(path);
  if (identity !== undefined) files.set(identity, `${quote(path)}, which is behind it`);
}

/** What a file device calls its identity; undefined if there is no such file. */
function identityOf(path: string): string | undefined {
  try {
    const { dev, ino } = statSync(path);
    return `${dev}:${ino}`;
  } catch {
    // What is wrong with it is told when it is opened, if it is.
    return undefined;
  }
}
