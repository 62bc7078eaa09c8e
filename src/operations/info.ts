/** What an image says about itself, with the keys and the layout of `qemu-img info` (QEMU 7.2). */

import type { Image } from '../chain/open.ts';
import { FileDevice } from '../device/file.ts';
import type { BlockDevice } from '../device/block-device.ts';
import type { SnapshotRow } from '../format/qcow2/snapshot-table.ts';
import type { BitmapInfo } from '../qcow2/bitmaps.ts';
import { alignUp } from '../util/bytes.ts';
import { givenName, referencedName } from './file-names.ts';

/** One internal snapshot. */
export interface SnapshotDocument {
  id: string;
  name: string;
  /** Bytes. */
  'vm-state-size': number;
  /** Seconds since 1970, and nanoseconds of the next. */
  'date-sec': number;
  'date-nsec': number;
  'vm-clock-sec': number;
  'vm-clock-nsec': number;
  /** Instructions that the guest had executed, if it counted. */
  icount?: number;
}

/** One persistent bitmap. */
export interface BitmapDocument {
  flags: ('in-use' | 'auto')[];
  name: string;
  /** Bytes of the disk for each bit. */
  granularity: number;
}

/** What only qcow2 images have. Version 2 images lack most of it. */
export interface Qcow2Document {
  compat: '0.10' | '1.1';
  'compression-type': string;
  'lazy-refcounts'?: boolean;
  bitmaps?: BitmapDocument[];
  'refcount-bits': number;
  'data-file'?: string;
  'data-file-raw'?: boolean;
  encrypt?: { format: 'aes' | 'luks' };
  corrupt?: boolean;
  'extended-l2'?: boolean;
}

/** The document that `qemu-img info --output=json` prints. */
export interface ImageInfo {
  'backing-filename-format'?: string;
  snapshots?: SnapshotDocument[];
  /** Bytes. */
  'virtual-size': number;
  filename: string;
  /** Bytes. */
  'cluster-size'?: number;
  format: string;
  /** Bytes that the image's own file takes on the host; not those of an external data file. */
  'actual-size': number;
  'format-specific'?: { type: 'qcow2'; data: Qcow2Document };
  encrypted?: true;
  /** The backing file's name, starting from where the image's own name starts. */
  'full-backing-filename'?: string;
  /** The backing file's name as the image has it. */
  'backing-filename'?: string;
  'dirty-flag': boolean;
}

type Qcow2 = Extract<Image, { format: 'qcow2' }>;

/**
 * Describes one image. Its backing file is not looked at.
 *
 * @param filename the name to show for it (default: what it was opened by)
 * @throws {Qcow2Error} `CORRUPT`, `TOO_LARGE`, `TRUNCATED` or `UNSUPPORTED` if its snapshot table
 * or bitmap directory is damaged
 */
export function imageInfo(
  image: Image,
  filename: string = givenName(image) ?? image.path,
): ImageInfo {
  if (image.format === 'raw') {
    return {
      'virtual-size': alignUp(image.size, 512),
      filename,
      format: image.format,
      'actual-size': image.allocatedSize,
      'dirty-flag': false,
    };
  }
  const { header, snapshots } = image;
  const backingFile = header.backingFile === '' ? undefined : header.backingFile;
  const { backingFormat } = header.extensions;
  return {
    ...(backingFile !== undefined && backingFormat !== undefined
      ? { 'backing-filename-format': backingFormat }
      : {}),
    ...(snapshots.length > 0 ? { snapshots: snapshots.map(describeSnapshot) } : {}),
    'virtual-size': image.size,
    filename,
    'cluster-size': header.clusterSize,
    format: image.format,
    'actual-size': storedBytes(image.file),
    'format-specific': { type: 'qcow2', data: describeFormat(image) },
    ...(header.encryption === 'none' ? {} : { encrypted: true }),
    ...(backingFile === undefined
      ? {}
      : {
          'full-backing-filename': referencedName(filename, backingFile),
          'backing-filename': backingFile,
        }),
    'dirty-flag': header.isDirty,
  };
}

/** Describes an image that was opened with its backing chain, and each file of the chain. */
export function chainInfo(image: Image): ImageInfo[] {
  const documents: ImageInfo[] = [];
  let filename = givenName(image) ?? image.path;
  for (let layer: Image | undefined = image; layer !== undefined; layer = layer.backing) {
    const document = imageInfo(layer, filename);
    documents.push(document);
    const given = layer.backing && givenName(layer.backing);
    filename = given ?? document['full-backing-filename'] ?? '';
  }
  return documents;
}

/** As QEMU counts: an external data file is not among it. */
function storedBytes(device: BlockDevice): number {
  return device instanceof FileDevice ? device.allocatedSize : 0;
}

function describeFormat(image: Qcow2): Qcow2Document {
  const { header, bitmaps } = image;
  const { encryption, extensions, refcountOrder } = header;
  const compressionType = { 'compression-type': header.compressionType };
  const refcountBits = { 'refcount-bits': 2 ** refcountOrder };
  const encrypt =
    encryption === 'none'
      ? {}
      : { encrypt: { format: encryption === 'AES' ? 'aes' : 'luks' } as const };
  if (header.version === 2)
    return { compat: '0.10', ...compressionType, ...refcountBits, ...encrypt };
  // In QEMU's order, which the text for people keeps.
  return {
    compat: '1.1',
    ...compressionType,
    'lazy-refcounts': header.hasLazyRefcounts,
    ...(bitmaps.length > 0 ? { bitmaps: bitmaps.map(describeBitmap) } : {}),
    ...refcountBits,
    ...encrypt,
    ...(header.hasExternalDataFile && extensions.externalDataFile !== undefined
      ? { 'data-file': extensions.externalDataFile, 'data-file-raw': header.isDataFileRaw }
      : {}),
    corrupt: header.isCorrupt,
    'extended-l2': header.hasExtendedL2,
  };
}

function describeSnapshot(row: SnapshotRow): SnapshotDocument {
  const { id, name, vmStateSize, dateSeconds, dateNanoseconds, icount } = row;
  return {
    ...(icount === undefined ? {} : { icount: Number(icount) }),
    'vm-clock-nsec': Number(row.vmClockNanoseconds % 1_000_000_000n),
    name,
    'date-sec': dateSeconds,
    'date-nsec': dateNanoseconds,
    'vm-clock-sec': Number(row.vmClockNanoseconds / 1_000_000_000n),
    id,
    'vm-state-size': vmStateSize,
  };
}

function describeBitmap({
  name,
  granularity,
  isInconsistent,
  isEnabled,
}: BitmapInfo): BitmapDocument {
  const flags: BitmapDocument['flags'] = [];
  if (isInconsistent) flags.push('in-use');
  if (isEnabled) flags.push('auto');
  return { flags, name, granularity };
}
