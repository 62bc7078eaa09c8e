/**
 * Images by their block options, as QEMU has them: `driver=qcow2,file.filename=disk.qcow2` behind
 * `--image-opts`, and names that begin with `json:`. Only the person who calls the command gives
 * these; names inside images are a matter of `chain/policy.ts`.
 *
 * Options that say how QEMU does its work (caches, asynchronous I/O) are checked and change nothing.
 */

import { IMAGE_FORMATS } from '../chain/description.ts';
import type {
  BackingDescription,
  ImageDescription,
  ImageFormat,
  LayerDescription,
} from '../chain/description.ts';
import type { FileWindow } from '../device/file.ts';
import type { Qcow2Error } from '../errors.ts';
import { MAX_CHAIN_DEPTH } from '../limits.ts';
import { imageName } from './image-name.ts';
import type { FileNode } from './image-name.ts';
import {
  FILE_OPTIONS,
  flattenJson,
  OptionReader,
  parseOptionList,
  QCOW2_OPTIONS,
  RAW_OPTIONS,
} from './option-reader.ts';
import type { NodeValues, OptionValues } from './option-reader.ts';

/** Drivers of QEMU that make no sense without what they reach, or are for other formats. */
const FOREIGN_DRIVERS = new Set(
  (
    'blkdebug blklogwrites blkreplay blkverify bochs cloop compress copy-before-write ' +
    'copy-on-read dmg ftp ftps gluster host_cdrom http https iscsi luks nbd nfs null-aio null-co ' +
    'nvme parallels preallocate qcow qed quorum rbd replication snapshot-access ssh throttle vdi ' +
    'vhdx vmdk vpc vvfat'
  ).split(' '),
);

/**
 * An image by a list of options, `name=value` with commas between them; a comma in a value is
 * doubled.
 *
 * @throws {Qcow2Error} `INVALID_OPTION` for what is malformed, missing or not an option of the
 * driver; `UNSUPPORTED` for drivers that are not here
 */
export function parseImageOptions(text: string): ImageDescription {
  return describe(parseOptionList(text), text);
}

/**
 * An image by a `json:` name.
 * @param format takes the place of the driver that the name gives
 * @throws {Qcow2Error} as {@link parseImageOptions}
 */
export function parseJsonName(name: string, format?: ImageFormat): ImageDescription {
  const values = flattenJson(name);
  if (format !== undefined) values.set('driver', format);
  return describe(values, name);
}

function describe(values: OptionValues, text: string): ImageDescription {
  const options = new OptionReader(values, text);
  const { path, ...layer } = parseLayer(options, 0);
  options.finish();
  if (path === undefined) throw missingFile(options);
  return { path, ...layer };
}

/** A layer's file, and the part of it. */
interface LayerFile {
  path: string;
  window: FileWindow | undefined;
  lock: boolean | undefined;
  /** What the file's own nodes say: an image is not written whose file is read-only. */
  readOnly: boolean;
  forceShare: boolean;
  node: FileNode;
}

function parseLayer(options: OptionReader, depth: number): BackingDescription {
  checkDepth(options, depth);
  const driver = options.driver();
  if (driver === 'file' || driver === 'host_device') return ofFile(parseFile(options, depth));
  const format = IMAGE_FORMATS.find((known) => known === driver);
  if (driver !== undefined && format === undefined) throw foreignDriver(options, driver);
  const allowed = format === 'raw' ? RAW_OPTIONS : QCOW2_OPTIONS;
  const common = options.read(format ?? 'qcow2', allowed);
  const child = options.child('file');
  const file = child === undefined ? undefined : parseFile(child, depth + 1);
  if (file === undefined && depth === 0) throw missingFile(options);
  const layer: LayerDescription = {
    format,
    readOnly: file?.readOnly === true || common.flag('read-only'),
    forceShare: file?.forceShare === true || common.flag('force-share'),
    lock: file?.lock,
  };
  if (format === 'raw') return describeRaw(options, layer, file);
  return describeQcow2(options, { ...layer, ...cachesOf(common) }, { file, depth });
}

function ofFile({ node, ...file }: LayerFile): BackingDescription {
  return { ...file, format: 'raw', shownName: imageName(node) };
}

function describeRaw(
  options: OptionReader,
  layer: LayerDescription,
  file: LayerFile | undefined,
): BackingDescription {
  const part = options.window();
  if (file === undefined) {
    if (part === undefined) return layer;
    throw missingFile(options);
  }
  const window = within(options, part, file.window);
  const node = { driver: 'raw', window: options.windowAsGiven(), file: file.node };
  const shownName = imageName(node);
  return { ...layer, path: file.path, window, shownName };
}

function describeQcow2(
  options: OptionReader,
  layer: LayerDescription,
  { file, depth }: { file: LayerFile | undefined; depth: number },
): BackingDescription {
  const backing = parseBacking(options, depth);
  const dataFile = options.child('data-file');
  const data = dataFile === undefined ? undefined : parseFile(dataFile, depth + 1);
  if (data?.window !== undefined) {
    throw options.error('UNSUPPORTED', 'data-file must be a whole file');
  }
  return {
    ...layer,
    readOnly: data?.readOnly === true || layer.readOnly,
    path: file?.path,
    window: file?.window,
    backing,
    dataFile: data?.path,
    shownName: file && imageName(file.node),
  };
}

function parseBacking(options: OptionReader, depth: number): BackingDescription | null | undefined {
  const value = options.take('backing');
  // An empty name is an older way to say that there is none.
  if (value === null || value === '') return null;
  if (value !== undefined) throw missingNode(options, value);
  const child = options.child('backing');
  return child === undefined ? undefined : parseLayer(child, depth + 1);
}

/** A node that is a file, or a part of one. */
function parseFile(options: OptionReader, depth: number): LayerFile {
  checkDepth(options, depth);
  const driver = options.driver() ?? 'file';
  if (driver === 'raw') return parsePart(options, depth);
  if (driver === 'qcow2') {
    throw options.error('UNSUPPORTED', 'an image inside of a qcow2 image is not read here', {
      hint: 'convert the outer one to raw first',
    });
  }
  if (driver !== 'file' && driver !== 'host_device') throw foreignDriver(options, driver);
  const common = options.read(driver, FILE_OPTIONS);
  const path = common.text('filename');
  if (path === undefined || path === '') {
    throw options.error('INVALID_OPTION', `The '${driver}' block driver requires a file name`);
  }
  // What is locked only if that is possible is locked here too.
  const lock = common.text('locking') === 'off' ? false : undefined;
  const access = accessOf(common);
  return { path, window: undefined, lock, ...access, node: { driver, filename: path } };
}

function parsePart(options: OptionReader, depth: number): LayerFile {
  const access = accessOf(options.read('raw', RAW_OPTIONS));
  const child = options.child('file');
  if (child === undefined) throw missingFile(options);
  const { window, node, ...file } = parseFile(child, depth + 1);
  const part = within(options, options.window(), window);
  const own = { driver: 'raw', window: options.windowAsGiven(), file: node };
  return {
    ...file,
    window: part,
    readOnly: access.readOnly || file.readOnly,
    forceShare: access.forceShare || file.forceShare,
    node: own,
  };
}

function accessOf(common: NodeValues): Pick<LayerFile, 'readOnly' | 'forceShare'> {
  return {
    readOnly: common.flag('read-only') === true,
    forceShare: common.flag('force-share') === true,
  };
}

/** A part of a part. */
function within(
  options: OptionReader,
  part: FileWindow | undefined,
  outer: FileWindow | undefined,
): FileWindow | undefined {
  if (part === undefined || outer === undefined) return part ?? outer;
  const room = outer.length === undefined ? Infinity : outer.length - part.offset;
  if ((part.length ?? 0) > room || room < 0) {
    throw options.error('INVALID_OPTION', 'offset and size are outside of the file below');
  }
  const length = part.length ?? (room === Infinity ? undefined : room);
  const offset = outer.offset + part.offset;
  if (Number.isSafeInteger(offset)) return { offset, length };
  throw options.error('INVALID_OPTION', 'offset is too large');
}

function cachesOf(common: NodeValues): LayerDescription {
  const total = common.bytes('cache-size');
  const tables = common.bytes('l2-cache-size');
  const request = common.flag('pass-discard-request');
  const snapshot = common.flag('pass-discard-snapshot');
  const other = common.flag('pass-discard-other');
  return {
    metadataCacheBytes: tables ?? total,
    passDiscard: { request, snapshot, other },
  };
}

function checkDepth(options: OptionReader, depth: number): void {
  if (depth <= MAX_CHAIN_DEPTH) return;
  throw options.error(
    'INVALID_OPTION',
    `there are more than ${MAX_CHAIN_DEPTH} files in each other`,
  );
}

function missingFile(options: OptionReader): Qcow2Error {
  return options.hasDriver
    ? options.error('INVALID_OPTION', 'A block device must be specified for "file"', {
        hint: 'say file.filename=NAME',
      })
    : options.error('INVALID_OPTION', 'Must specify either driver or file', {
        hint: 'say driver=qcow2,file.filename=NAME',
      });
}

function missingNode(options: OptionReader, name: string): Qcow2Error {
  return options.error('INVALID_OPTION', `Cannot find device='${name}' nor node-name='${name}'`, {
    hint: 'give the file by its name: file.filename=NAME',
  });
}

function foreignDriver(options: OptionReader, driver: string): Qcow2Error {
  const hint = 'qcow2, raw, file and host_device are here';
  if (!FOREIGN_DRIVERS.has(driver)) {
    return options.error('INVALID_OPTION', `Unknown driver '${driver}'`, { hint });
  }
  return options.error('UNSUPPORTED', `the driver '${driver}' is not here`, { hint });
}
