/** qemu-img's `-o` lists: what a new image of each format can be, in QEMU's words and order. */

import { COMPRESSION_TYPES } from '../compression/codec.ts';
import type { ImageFormat } from '../chain/open.ts';
import type { Qcow2Error } from '../errors.ts';
import type { CreateOptions } from '../operations/create.ts';
import { COMPAT_LEVELS } from '../operations/create-options.ts';
import type { CompatLevel } from '../operations/create-options.ts';
import { PREALLOCATION_MODES } from '../operations/resize.ts';
import { nearestName, usageError } from './command.ts';
import { parseSize } from './size.ts';

type ValueType = 'str' | 'bool (on/off)' | 'num' | 'size';

/** One creation option. */
export interface CreationOption {
  type: ValueType;
  description: string;
  /** What it is if it is not given. */
  otherwise?: string;
  /** An option of host files, whatever the format. */
  ofFile?: true;
}

const FILE_OPTIONS = {
  nocow: {
    type: 'bool (on/off)',
    description: 'Turn off copy-on-write (valid only on btrfs)',
    ofFile: true,
  },
  extent_size_hint: {
    type: 'size',
    description: 'Extent size hint for the image file, 0 to disable',
    ofFile: true,
  },
} as const satisfies Record<string, CreationOption>;

const SIZE: CreationOption = { type: 'size', description: 'Virtual disk size' };

/** Options by name. */
export type OptionTable = Readonly<Record<string, CreationOption>>;

/** In the order in which qemu-img tells them. */
export const CREATION_OPTIONS: Readonly<Record<ImageFormat, OptionTable>> = {
  qcow2: {
    encryption: {
      type: 'bool (on/off)',
      description:
        "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)",
    },
    cluster_size: { type: 'size', description: 'qcow2 cluster size', otherwise: '65536' },
    extended_l2: { type: 'bool (on/off)', description: 'Extended L2 tables', otherwise: 'off' },
    preallocation: {
      type: 'str',
      description: 'Preallocation mode (allowed values: off, metadata, falloc, full)',
    },
    compression_type: {
      type: 'str',
      description: 'Compression method used for image cluster compression',
      otherwise: 'zlib',
    },
    size: SIZE,
    compat: { type: 'str', description: 'Compatibility level (v2 [0.10] or v3 [1.1])' },
    backing_file: { type: 'str', description: 'File name of a base image' },
    backing_fmt: { type: 'str', description: 'Image format of the base image' },
    data_file: { type: 'str', description: 'File name of an external data file' },
    data_file_raw: {
      type: 'bool (on/off)',
      description: 'The external data file must stay valid as a raw image',
    },
    lazy_refcounts: {
      type: 'bool (on/off)',
      description: 'Postpone refcount updates',
      otherwise: 'off',
    },
    refcount_bits: {
      type: 'num',
      description: 'Width of a reference count entry in bits',
      otherwise: '16',
    },
    ...FILE_OPTIONS,
  },
  raw: {
    size: SIZE,
    nocow: FILE_OPTIONS.nocow,
    preallocation: {
      type: 'str',
      description: 'Preallocation mode (allowed values: off, falloc, full)',
      ofFile: true,
    },
    extent_size_hint: FILE_OPTIONS.extent_size_hint,
  },
};

/** Values of creation options by name, each valid for its type. */
export type CreationValues = ReadonlyMap<string, string>;

/** Whether `-o` asks for the list of options. */
export function asksForOptions(lists: readonly string[]): boolean {
  return lists.some((list) => splitList(list).some((item) => item === 'help' || item === '?'));
}

/**
 * The list of options that `-o help` shows.
 * @param withFile whether those of host files are part of it
 */
export function creationOptionsHelp(
  format: ImageFormat,
  { withFile }: { withFile: boolean },
): string {
  const lines = optionLines(CREATION_OPTIONS[format], ({ ofFile }) => withFile || ofFile !== true);
  const title = withFile ? 'Supported options:' : `Supported ${format} options:`;
  const more = withFile
    ? []
    : [
        '',
        'The protocol level may support further options.',
        'Specify the target filename to include those options.',
      ];
  return `${[title, ...lines, ...more].join('\n')}\n`;
}

/** A line for each option of a table that is selected, as qemu-img has them. */
export function optionLines(
  options: OptionTable,
  isSelected: (option: CreationOption) => boolean,
): string[] {
  return Object.entries(options)
    .filter(([, option]) => isSelected(option))
    .map(([name, { type, description }]) => `  ${name}=<${type}>`.padEnd(24) + ` - ${description}`)
    .sort();
}

/**
 * Reads `-o` lists: `name=value` items with commas between them; a comma in a value is doubled. A
 * switch may come without a value, or with `no` before its name.
 *
 * @throws {Qcow2Error} `INVALID_OPTION` for items that are malformed, unknown or not supported
 */
export function parseCreationOptions(
  format: ImageFormat,
  lists: readonly string[],
): Map<string, string> {
  return parseOptionLists(CREATION_OPTIONS[format], lists, (name) => unknownOption(name, format));
}

/**
 * Reads `-o` lists, with the options of a table.
 *
 * @param unknown makes the error for a name that is none of them
 * @throws {Qcow2Error} `INVALID_OPTION` as {@link parseCreationOptions}
 */
export function parseOptionLists(
  options: OptionTable,
  lists: readonly string[],
  unknown: (name: string) => Qcow2Error,
): Map<string, string> {
  const values = new Map<string, string>();
  for (const item of lists.flatMap(splitList)) {
    const [name, value] = parseItem(item, options);
    const option = Object.hasOwn(options, name) ? options[name] : undefined;
    if (option === undefined) throw unknown(name);
    if (value === undefined) throw usageError(`-o ${name} needs a value`);
    checkValue(name, option.type, value);
    checkSupported(name, value);
    values.set(name, value);
  }
  return values;
}

function splitList(list: string): string[] {
  const items = list.replaceAll(',,', '\0').split(',');
  if (items.includes('')) {
    throw usageError(`'${list}' is not a list of options with a comma between them`);
  }
  return items.map((item) => item.replaceAll('\0', ','));
}

function parseItem(item: string, options: OptionTable): [name: string, value: string | undefined] {
  const end = item.indexOf('=');
  if (end >= 0) return [item.slice(0, end), item.slice(end + 1)];
  const isSwitch = (name: string): boolean =>
    Object.hasOwn(options, name) && options[name]?.type === 'bool (on/off)';
  if (isSwitch(item)) return [item, 'on'];
  const rest = item.startsWith('no') ? item.slice(2) : '';
  return isSwitch(rest) ? [rest, 'off'] : [item, undefined];
}

const ON = ['on', 'yes', 'true', 'y'];
const OFF = ['off', 'no', 'false', 'n'];

function checkValue(name: string, type: ValueType, value: string): void {
  if (type === 'bool (on/off)' && ![...ON, ...OFF].includes(value)) {
    throw usageError(`-o ${name} is on or off, not '${value}'`);
  }
  if (type === 'size') parseSize(value, `-o ${name}`);
  if (type === 'num' && !/^\d{1,15}$/.test(value)) {
    throw usageError(`-o ${name} is a number, not '${value}'`);
  }
}

function checkSupported(name: string, value: string): void {
  if (name === 'encryption' && ON.includes(value)) throw noEncryption(name);
  if (name === 'nocow' && ON.includes(value)) {
    throw usageError('-o nocow=on is not supported; use chattr +C on the directory of the image');
  }
}

/** The error for options of encryption. */
export function noEncryption(name: string): Qcow2Error {
  return usageError(`-o ${name} is not supported: encrypted images are neither read nor written`);
}

function unknownOption(name: string, format: ImageFormat) {
  if (format === 'qcow2' && name.startsWith('encrypt.')) return noEncryption(name);
  const nearest = nearestName(name, Object.keys(CREATION_OPTIONS[format]));
  const advice = nearest === undefined ? 'see -o help' : `did you mean ${nearest}?`;
  return usageError(`a ${format} image has no option '${name}'; ${advice}`);
}

/** All options as qemu-img tells them: those given, and the defaults of others. */
export function describeCreation(format: ImageFormat, values: CreationValues): string {
  return Object.entries(CREATION_OPTIONS[format])
    .flatMap(([name, { type, otherwise }]) => {
      const value = values.get(name) ?? otherwise;
      if (value === undefined) return [];
      return [`${name}=${type === 'size' ? parseSize(value, name) : value.replaceAll(',', ',,')}`];
    })
    .join(' ');
}

/**
 * What the values say, for `createImage`.
 * @throws {Qcow2Error} `INVALID_OPTION` for values that are none of an option's
 */
export function toCreateOptions(format: ImageFormat, values: CreationValues): CreateOptions {
  const bytes = (name: string): number | undefined => {
    const value = values.get(name);
    return value === undefined ? undefined : parseSize(value, `-o ${name}`);
  };
  const isOn = (name: string): boolean => ON.includes(values.get(name) ?? 'off');
  const refcountBits = values.get('refcount_bits');
  return {
    format,
    size: bytes('size'),
    compat: choice(values, 'compat', Object.keys(COMPAT_LEVELS) as CompatLevel[]),
    clusterSize: bytes('cluster_size'),
    refcountBits: refcountBits === undefined ? undefined : Number(refcountBits),
    lazyRefcounts: isOn('lazy_refcounts'),
    extendedL2: isOn('extended_l2'),
    compressionType: choice(values, 'compression_type', COMPRESSION_TYPES),
    preallocation: choice(values, 'preallocation', PREALLOCATION_MODES),
    dataFile: values.get('data_file'),
    dataFileRaw: isOn('data_file_raw'),
    ...backingOf(values),
  };
}

/** The backing file and its format among the values. */
export function backingOf(
  values: CreationValues,
): Pick<CreateOptions, 'backingFile' | 'backingFormat'> {
  return { backingFile: values.get('backing_file'), backingFormat: values.get('backing_fmt') };
}

function choice<T extends string>(
  values: CreationValues,
  name: string,
  choices: readonly T[],
): T | undefined {
  const value = values.get(name);
  if (value === undefined) return undefined;
  const found = choices.find((candidate) => candidate === value);
  if (found === undefined) {
    throw usageError(`-o ${name} must be one of ${choices.join(', ')}, not '${value}'`);
  }
  return found;
}
