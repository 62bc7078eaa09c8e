/**
 * Opening images: which format a file has, which files it refers to, and the chain of backing
 * files that comes of it.
 */

import { FileDevice } from '../device/file.ts';
import type { BlockDevice } from '../device/block-device.ts';
import { Qcow2Error } from '../errors.ts';
import { isQcow2 } from '../format/qcow2/header.ts';
import type { Qcow2Header } from '../format/qcow2/header.ts';
import { MAX_CHAIN_DEPTH } from '../limits.ts';
import { Qcow2Image, readHeader } from '../qcow2/image.ts';
import type { CacheOptions } from '../qcow2/image.ts';
import { parseReference, quote } from './names.ts';
import { permittedPath } from './policy.ts';
import type { ReferencePolicy } from './policy.ts';
import { RawImage } from './raw-image.ts';

/** The formats that are read. */
export const IMAGE_FORMATS = ['qcow2', 'raw'] as const;

/** One of {@link IMAGE_FORMATS}. */
export type ImageFormat = (typeof IMAGE_FORMATS)[number];

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
}

/**
 * Opens an image with its backing chain for reading. Close it when done; that closes the chain.
 *
 * @param path of a qcow2 or raw image; a file or a block device
 * @throws {Qcow2Error} `HOST` if a file cannot be opened; `NOT_THIS_FORMAT`, `UNSUPPORTED`,
 * `CORRUPT`, `TOO_LARGE` or `TRUNCATED` for a bad header; `REFUSED` where the policy forbids a
 * file or a backing file declares no format; `CYCLE` where the chain comes back to itself
 * @example
 * using image = openImage('disk.qcow2');
 * const sector = new Uint8Array(512);
 * image.read(sector, 0);
 */
export function openImage(path: string, options: OpenImageOptions = {}): Image {
  return openLayer({ path, format: options.format }, options, path);
}

/** One file of a chain that is about to be opened. */
interface LayerRequest {
  path: string;
  format: ImageFormat | undefined;
}

function openLayer(top: LayerRequest, options: OpenImageOptions, root: string): Image {
  // From the top down, then put together from the base up, without recursion.
  const links: PendingLink[] = [];
  let base: RawImage | undefined;
  try {
    const seen = new Map<string, string>();
    let next: LayerRequest | undefined = top;
    while (next !== undefined) {
      const file: RawImage = openFile(next, seen, links.length);
      if (resolveFormat(file, next) === 'raw') {
        base = file;
        break;
      }
      const link: PendingLink = { file, header: headerOf(file), dataFile: undefined };
      links.push(link);
      link.dataFile = openDataFile(link, options, root);
      next = options.withoutBacking === true ? undefined : backingRequest(link, options, root);
    }
  } catch (error) {
    for (const { file, dataFile } of links) {
      file.close();
      dataFile?.device.close();
    }
    throw error;
  }
  let image: Image | undefined = base;
  const { metadataCacheBytes, clusterCacheBytes } = options;
  for (const { file, header, dataFile } of links.reverse()) {
    const caches = { metadataCacheBytes, clusterCacheBytes };
    image = new Qcow2Image<Image>({
      path: file.path,
      file,
      header,
      dataFile,
      backing: image,
      ...caches,
    });
  }
  return image!;
}

interface PendingLink {
  file: RawImage;
  header: Qcow2Header;
  dataFile: { device: BlockDevice; path: string } | undefined;
}

function openFile({ path }: LayerRequest, seen: Map<string, string>, depth: number): RawImage {
  if (depth >= MAX_CHAIN_DEPTH) {
    throw new Qcow2Error('CYCLE', `the backing chain has more than ${MAX_CHAIN_DEPTH} layers`, {
      file: path,
    });
  }
  const file = new RawImage(path);
  const other = seen.get(file.identity);
  if (other !== undefined) {
    file.close();
    const names = [...seen.values()];
    const loop = [...names.slice(names.indexOf(other)), path].join(' -> ');
    throw new Qcow2Error('CYCLE', `the backing chain comes back to itself: ${loop}`, {
      file: path,
    });
  }
  seen.set(file.identity, path);
  return file;
}

/** The format of a file, which is closed if it cannot be told. */
function resolveFormat(file: RawImage, { format }: LayerRequest): ImageFormat {
  try {
    return format ?? probeFormat(file);
  } catch (error) {
    file.close();
    throw error;
  }
}

/** Tells qcow2 from raw by the first bytes. */
export function probeFormat(file: BlockDevice): ImageFormat {
  const start = new Uint8Array(Math.min(8, file.size));
  file.read(start, 0);
  return isQcow2(start) ? 'qcow2' : 'raw';
}

function headerOf(file: RawImage): Qcow2Header {
  try {
    return readHeader(file);
  } catch (error) {
    file.close();
    throw error instanceof Qcow2Error ? error.inFile(file.path) : error;
  }
}

function openDataFile(
  { file, header }: PendingLink,
  options: OpenImageOptions,
  root: string,
): PendingLink['dataFile'] {
  if (!header.hasExternalDataFile) return undefined;
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
  const path = permittedPath(reference, role, policyOf(options, root));
  return { device: new FileDevice(path), path };
}

function backingRequest(
  { file, header }: PendingLink,
  options: OpenImageOptions,
  root: string,
): LayerRequest | undefined {
  const name = header.backingFile;
  if (name === undefined || name === '') return undefined;
  const reference = parseReference(name, file.path);
  const role = { role: 'backing file', referrer: file.path } as const;
  const path = permittedPath(reference, role, policyOf(options, root));
  // An empty name declares nothing either.
  const declared = header.extensions.backingFormat || (reference.format ?? options.backingFormat);
  if (declared === undefined) {
    throw new Qcow2Error('REFUSED', `the format of ${quote(name)} is not declared`, {
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
  return { path, format };
}

function policyOf(options: OpenImageOptions, root: string) {
  const { references = 'follow', allowProtocolNames = false } = options;
  return { references, allowProtocolNames, root };
}
