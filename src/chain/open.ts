/**
 * Opening images: which format a file has, which files it refers to, and the chain of backing
 * files that comes of it.
 */

import { FileDevice } from '../device/file.ts';
import type { BlockDevice } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import { encryptedError, isQcow2 } from '../format/qcow2/header.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import { lockFile, LockRequests } from '../host/locks.ts';
import { MAX_CHAIN_DEPTH } from '../limits.ts';
import type { PassDiscard } from '../qcow2/allocator.ts';
import { Qcow2Image, readHeader } from '../qcow2/image.ts';
import type { CacheOptions } from '../qcow2/image.ts';
import { IMAGE_FORMATS } from './description.ts';
import type { ImageDescription, ImageFormat, LayerDescription } from './description.ts';
import { parseReference, quote } from './names.ts';
import { permittedPath } from './policy.ts';
import type { ReferencePolicy } from './policy.ts';
import { RawImage } from './raw-image.ts';

export { IMAGE_FORMATS };
export type { ImageFormat };

/** A qcow2 image whose backing file is an image too. */
export type ChainedQcow2Image = Qcow2Image<Image>;

/** An open image of any format: a device, and a link of a backing chain. */
export type Image = ChainedQcow2Image | RawImage;

/** How images are opened. */
export interface OpenImageOptions extends CacheOptions {
  /**
   * Format of the image (default: qcow2 if it begins like one, raw otherwise). Say it for images
   * from others: a guest can make a raw disk look like a qcow2 image.
   */
  format?: ImageFormat | undefined;
  /** Format of backing files that do not declare one; without it they are refused. */
  backingFormat?: ImageFormat | undefined;
  /** Which files the image may refer to (default `follow`: any plain path). */
  references?: ReferencePolicy | undefined;
  /** Open `file:` and `json:` names too (default false). */
  allowProtocolNames?: boolean | undefined;
  /** Leave backing files unopened: unallocated clusters read as zeroes (default false). */
  withoutBacking?: boolean | undefined;
  /**
   * Open the image for writing (default false); its backing files are only read. A file that
   * anyone else writes to, or reads and needs unchanged, is refused.
   */
  writable?: boolean | undefined;
  /**
   * With `writable`: open the backing file for writing too, but not what is behind that (default
   * false); or the one layer of the chain that is so many below the image, 1 being the backing
   * file. For committing to it: any other write to it changes what all its overlays show.
   */
  writableBacking?: boolean | number | undefined;
  /** Which freed clusters of a qcow2 image are given back to the host's filesystem. */
  passDiscard?: PassDiscard | undefined;
  /**
   * Open a qcow2 image for writing even if it is marked corrupt (default false). For repairing it:
   * any other write can destroy more.
   */
  forRepair?: boolean | undefined;
  /**
   * Read files that others write to (default false). What is read may be neither the old nor the
   * new, and may look damaged. Not for writing.
   */
  forceShare?: boolean | undefined;
  /**
   * Lock the files as QEMU does (default true), so that nobody else changes them. Say false only
   * where nothing else uses them: two writers destroy an image.
   */
  lock?: boolean | undefined;
}

/**
 * Opens an image with its backing chain, for reading unless `writable` is set. Close it when done;
 * that closes the chain.
 *
 * @param source path of a qcow2 or raw image, which is a file or a block device; or a description of
 * an image, whose options take precedence
 * @throws {Qcow2Error} `HOST` if a file cannot be opened; `NOT_THIS_FORMAT`, `UNSUPPORTED`,
 * `CORRUPT`, `TOO_LARGE` or `TRUNCATED` for a bad header; `REFUSED` where the policy forbids a
 * file or a backing file declares no format; `CYCLE` where the chain comes back to itself;
 * `LOCKED` where another's use of a file excludes this one; for writing, `MISSING_DEPENDENCY` where
 * Linux has no koffi to lock with, `CORRUPT` if the image is marked so, `UNSUPPORTED` if encrypted,
 * `READ_ONLY` if it is described as read-only
 * @example
 * using image = openImage('disk.qcow2');
 * const sector = new Uint8Array(512);
 * image.read(sector, 0);
 */
export function openImage(
  source: string | ImageDescription,
  options: OpenImageOptions = {},
): Image {
  const description: ImageDescription = typeof source === 'string' ? { path: source } : source;
  const { path, format = options.format } = description;
  if (options.writable === true && options.forceShare === true) throw notAlone(path);
  return openLayer({ path, format, description }, options, path);
}

/** One file of a chain that is about to be opened. */
interface LayerRequest {
  path: string;
  format: ImageFormat | undefined;
  /** What else the caller says of it. */
  description: LayerDescription;
}

function openLayer(top: LayerRequest, options: OpenImageOptions, root: string): Image {
  // From the top down, then put together from the base up, without recursion. What fails closes all
  // files: an open one would go on being locked.
  const links: PendingLink[] = [];
  let base: RawImage | undefined;
  try {
    const seen = new Map<string, string>();
    let next: LayerRequest | undefined = top;
    while (next !== undefined) {
      const access = accessOf(options, links.length, next);
      const file: RawImage = openFile(next, { seen, depth: links.length, options }, access);
      const format = closingOnError(file, () => prepareFile(file, next!, access));
      if (format === 'raw') {
        base = file;
        break;
      }
      const header = closingOnError(file, () => headerOf(file, access));
      const { writable } = access;
      const { description } = next;
      const link: PendingLink = { file, header, dataFile: undefined, writable, description };
      links.push(link);
      link.dataFile = openDataFile(link, { options, root, access, seen });
      next = options.withoutBacking === true ? undefined : backingRequest(link, options, root);
    }
    return assemble(links, base, options);
  } catch (error) {
    base?.close();
    for (const { file, dataFile } of links) {
      file.close();
      dataFile?.device.close();
    }
    throw error;
  }
}

/** Puts a chain together from the base up. */
function assemble(
  links: readonly PendingLink[],
  base: RawImage | undefined,
  { metadataCacheBytes, clusterCacheBytes, clusterCache, passDiscard }: OpenImageOptions,
): Image {
  let image: Image | undefined = base;
  for (const { file, header, dataFile, writable, description } of [...links].reverse()) {
    image = new Qcow2Image<Image>({
      path: file.path,
      file,
      header,
      dataFile,
      backing: image,
      writable,
      passDiscard: description.passDiscard ?? passDiscard,
      metadataCacheBytes: description.metadataCacheBytes ?? metadataCacheBytes,
      clusterCacheBytes,
      clusterCache,
    });
  }
  return image!;
}

interface PendingLink {
  file: RawImage;
  header: Qcow2Header;
  dataFile: { device: BlockDevice; path: string } | undefined;
  writable: boolean;
  description: LayerDescription;
}

/** How the files of one layer are opened. */
interface Access {
  writable: boolean;
  forRepair: boolean;
  /** Whether to lock, and if so whether against writers. */
  locking: 'none' | 'shared' | 'full';
}

function accessOf(
  options: OpenImageOptions,
  depth: number,
  { path, description }: LayerRequest,
): Access {
  const { writableBacking = false, forRepair = false } = options;
  const isWritten = depth === 0 || depth === Number(writableBacking);
  const writable = options.writable === true && isWritten;
  if (writable && description.readOnly === true) {
    throw new Qcow2Error('READ_ONLY', 'it is to be opened for reading only, by its options', {
      file: path,
      hint: 'leave out read-only=on',
    });
  }
  const isShared = options.forceShare === true || description.forceShare === true;
  if (writable && isShared) throw notAlone(path);
  const isLocked = options.lock !== false && description.lock !== false;
  const locking = !isLocked ? 'none' : isShared ? 'shared' : 'full';
  return { writable, forRepair, locking };
}

function notAlone(path: string): Qcow2Error {
  const problem = 'an image is written by one alone: not with force-share';
  return new Qcow2Error('INVALID_OPTION', problem, { file: path });
}

/** Before anything is read that a writer could be changing. */
function lockDevice(
  device: FileDevice,
  kind: 'qcow2' | 'raw' | 'dataFile',
  { writable, locking }: Access,
): void {
  if (locking === 'none') return;
  const target = { fd: device.descriptor, path: device.path };
  if (locking === 'shared') lockFile(target, LockRequests.shared.read);
  else lockFile(target, LockRequests[kind][writable ? 'write' : 'read']);
  device.updateSize();
}

function openFile(
  { path, description: { window, shownName } }: LayerRequest,
  { seen, depth, options }: { seen: Map<string, string>; depth: number; options: OpenImageOptions },
  { writable }: Access,
): RawImage {
  if (depth >= MAX_CHAIN_DEPTH) {
    throw new Qcow2Error('CYCLE', `the backing chain has more than ${MAX_CHAIN_DEPTH} layers`, {
      file: path,
    });
  }
  const file = new RawImage(path, { writable, window, shownName });
  const identity = window === undefined ? file.identity : `${file.identity}+${window.offset}`;
  const other = seen.get(identity) ?? otherPart(file, seen, options);
  if (other !== undefined) {
    file.close();
    const names = [...seen.values()];
    const loop = [...names.slice(names.indexOf(other)), path].join(' -> ');
    throw new Qcow2Error('CYCLE', `the backing chain comes back to itself: ${loop}`, {
      file: path,
    });
  }
  seen.set(identity, path);
  return file;
}

/** The path of a layer that shares the file where one of the two is written. Parts may be read. */
function otherPart(
  { identity, readOnly }: RawImage,
  seen: ReadonlyMap<string, string>,
  { writable }: OpenImageOptions,
): string | undefined {
  if (writable !== true) return undefined;
  const part = [...seen.keys()].find((key) => !readOnly && key.startsWith(`${identity}+`));
  return seen.get(part ?? identity);
}

/** Runs `action`; if it fails, closes the file that nobody else knows of yet. */
function closingOnError<T>(file: RawImage, action: () => T): T {
  try {
    return action();
  } catch (error) {
    file.close();
    throw error;
  }
}

/** Finds out the format of a file, and locks it as its format needs. */
function prepareFile(file: RawImage, { format }: LayerRequest, access: Access): ImageFormat {
  const known = format ?? probeFormat(file);
  file.isProbed = known === 'raw' && format === undefined;
  lockDevice(file, known, access);
  if (known === 'qcow2' && access.writable && file.window !== undefined) {
    throw new Qcow2Error('UNSUPPORTED', 'an image in a part of a file can only be read', {
      file: file.path,
      hint: 'it may have to grow; copy it to a file of its own',
    });
  }
  // A raw disk has the size that it has; a qcow2 file grows as clusters are allocated.
  file.growable = known === 'qcow2' && access.writable;
  return known;
}

/** Tells qcow2 from raw by the first bytes. */
export function probeFormat(file: BlockDevice): ImageFormat {
  const start = new Uint8Array(Math.min(8, file.size));
  file.read(start, 0);
  return isQcow2(start) ? 'qcow2' : 'raw';
}

function headerOf(file: RawImage, access: Access): Qcow2Header {
  try {
    const header = readHeader(file);
    if (access.writable) checkWritable(header, access);
    return header;
  } catch (error) {
    throw error instanceof Qcow2Error ? error.inFile(file.path) : error;
  }
}

function checkWritable({ isCorrupt, encryption }: Qcow2Header, { forRepair }: Access): void {
  if (isCorrupt && !forRepair) {
    throw new Qcow2Error('CORRUPT', 'it is marked corrupt, and can only be read', {
      structure: 'header',
      offset: 72,
      hint: 'repair it with: qcow2 check -r all',
    });
  }
  if (encryption !== 'none' && !forRepair) throw encryptedError(encryption);
}

interface DataFileContext {
  options: OpenImageOptions;
  root: string;
  access: Access;
  seen: ReadonlyMap<string, string>;
}

function openDataFile(
  link: PendingLink,
  { options, root, access, seen }: DataFileContext,
): PendingLink['dataFile'] {
  const { file, header, description } = link;
  if (!header.hasExternalDataFile) {
    if (description.dataFile === undefined) return undefined;
    throw new Qcow2Error('INVALID_OPTION', 'it has no external data file', { file: file.path });
  }
  const path = description.dataFile ?? dataFilePath(link, options, root);
  const { writable } = access;
  const device = new FileDevice(path, { writable, growable: writable });
  try {
    if (writable && seen.has(device.identity)) {
      throw new Qcow2Error('CYCLE', 'it is its own external data file', { file: file.path });
    }
    lockDevice(device, 'dataFile', access);
  } catch (error) {
    device.close();
    throw error;
  }
  return { device, path };
}

/** Path of the external data file that an image names. */
function dataFilePath(
  { file, header }: PendingLink,
  options: OpenImageOptions,
  root: string,
): string {
  const name = header.extensions.externalDataFile;
  if (name === undefined) {
    throw new Qcow2Error('CORRUPT', 'its data is in an external file that it does not name', {
      file: file.path,
      structure: 'header',
      offset: 72,
    });
  }
  const reference = parseReference(name, file.path);
  const role = { role: 'external data file', referrer: file.path } as const;
  return permittedPath(reference, role, policyOf(options, root));
}

function backingRequest(
  { file, header, description: { backing } }: PendingLink,
  options: OpenImageOptions,
  root: string,
): LayerRequest | undefined {
  const name = header.backingFile ?? '';
  if (backing === null || (name === '' && backing?.path === undefined)) return undefined;
  // What the caller names is no matter of the policy, which is for what images name.
  const reference = backing?.path === undefined ? parseReference(name, file.path) : undefined;
  const role = { role: 'backing file', referrer: file.path } as const;
  const path = reference
    ? permittedPath(reference, role, policyOf(options, root))
    : (backing?.path ?? '');
  const description = backing ?? {};
  if (description.format !== undefined) return { path, format: description.format, description };
  // An empty name declares nothing either.
  const declared = header.extensions.backingFormat || (reference?.format ?? options.backingFormat);
  if (declared === undefined) {
    throw new Qcow2Error('REFUSED', `the format of ${quote(name || path)} is not declared`, {
      file: file.path,
      structure: 'backing file',
      hint: 'say --backing-format qcow2 or --backing-format raw; guessing it would be unsafe',
    });
  }
  const format = IMAGE_FORMATS.find((known) => known === declared);
  if (format === undefined) {
    throw new Qcow2Error('UNKNOWN_FORMAT', `its format ${quote(declared)} is not read here`, {
      file: path,
      hint: `${IMAGE_FORMATS.join(' and ')} are`,
    });
  }
  return { path, format, description };
}

function policyOf(options: OpenImageOptions, root: string) {
  const { references = 'follow', allowProtocolNames = false } = options;
  return { references, allowProtocolNames, root };
}
