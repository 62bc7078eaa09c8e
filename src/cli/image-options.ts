/** Values of options that several image commands share, with qemu-img's meaning. */

import { existsSync } from 'node:fs';
import type { ImageDescription } from '../chain/description.ts';
import { IMAGE_FORMATS } from '../chain/open.ts';
import type { ImageFormat, OpenImageOptions } from '../chain/open.ts';
import { Qcow2Error } from '../errors.ts';
import { usageError } from './command.ts';
import type { OptionDefinition, ParsedArguments } from './command.ts';
import { parseImageOptions, parseJsonName } from './image-opts.ts';

export { IMAGE_FORMATS };

/** The options of every command that reads one image and describes it, with qemu-img's meaning. */
export const DESCRIBE_OPTIONS = {
  format: {
    kind: 'value',
    short: 'f',
    placeholder: 'FORMAT',
    description: 'format of the image (default: probed)',
    choices: IMAGE_FORMATS,
  },
  output: {
    kind: 'value',
    placeholder: 'FORMAT',
    description: 'text for people or JSON (default human)',
    choices: ['human', 'json'],
  },
} as const satisfies Record<string, OptionDefinition>;

/** An image as the command line gives it: the path of its file, or its options. */
export type GivenImage = string | ImageDescription;

/** `--image-opts`, and what is refused beside it. */
export const IMAGE_OPTS_OPTIONS = {
  'image-opts': {
    kind: 'flag',
    description: 'images are given by options, as in driver=qcow2,file.filename=disk.qcow2',
  },
  object: {
    kind: 'list',
    placeholder: 'OBJECT',
    description: 'refused: objects are for encryption and network drivers, which are not here',
  },
} as const satisfies Record<string, OptionDefinition>;

/**
 * The image that an operand of a command with {@link IMAGE_OPTS_OPTIONS} names: with `--image-opts`
 * a list of options, otherwise a path, which may have `file:` before it, or a `json:` name. The
 * person who calls is trusted; what the image itself refers to remains a matter of the policy.
 *
 * @param formatOption name of the option that says the format of this operand
 * @throws {Qcow2Error} `INVALID_OPTION` for options that cannot be; `UNSUPPORTED` for what is not
 * here: `--object`, drivers and protocols
 */
export function givenImage(
  args: ParsedArguments,
  operand: string,
  formatOption = 'format',
): GivenImage {
  refuseObjects(args);
  const format = args.value(formatOption);
  if (!args.flag('image-opts')) return namedImage(operand, format);
  if (format !== undefined) throw usageError('--image-opts and --format are mutually exclusive');
  return parseImageOptions(operand);
}

/**
 * The image that a name stands for: a path, which may have `file:` before it, or a `json:` name.
 * @param format takes the place of the format in a `json:` name
 * @throws {Qcow2Error} `INVALID_OPTION`, `UNSUPPORTED`
 */
export function namedImage(name: string, format?: string): GivenImage {
  if (name.startsWith('json:')) {
    return parseJsonName(
      name,
      IMAGE_FORMATS.find((known) => known === format),
    );
  }
  // A colon before the first slash makes a protocol.
  const protocol = /^([^/:]*):/.exec(name)?.[1];
  if (protocol === undefined) return name;
  if (OWN_PROTOCOLS.includes(protocol)) return name.slice(protocol.length + 1);
  const isForeign = FOREIGN_PROTOCOLS.has(protocol);
  // A file may have a colon in its name.
  if (!isForeign && existsSync(name)) return name;
  const hint = `images are files and block devices here; for a file of that name write ./${name}`;
  if (isForeign) {
    const problem = `the protocol '${protocol}' is not supported`;
    throw new Qcow2Error('UNSUPPORTED', problem, { file: name, hint });
  }
  throw new Qcow2Error('INVALID_OPTION', `Unknown protocol '${protocol}'`, { file: name, hint });
}

const OWN_PROTOCOLS = ['file', 'host_device'];
const FOREIGN_PROTOCOLS = new Set(
  (
    'blkdebug blkverify fat fat-rw ftp ftps gluster gluster+rdma gluster+tcp gluster+unix ' +
    'host_cdrom http https iscsi iser nbd nbd+tcp nbd+unix nbds nfs null-aio null-co nvme rbd ' +
    'sheepdog ssh tftp vvfat'
  ).split(' '),
);

/**
 * Refuses `--object`.
 * @throws {Qcow2Error} `UNSUPPORTED`
 */
export function refuseObjects(args: ParsedArguments): void {
  if (args.list('object').length === 0) return;
  const reason = 'objects are for encryption and network drivers, which are not supported';
  throw new Qcow2Error('UNSUPPORTED', `--object is not supported here: ${reason}`);
}

/** qemu-img's `-U`: read past the locks of those who write to an image. */
export const FORCE_SHARE_OPTION = {
  'force-share': {
    kind: 'flag',
    short: 'U',
    description: 'read images that are in use; what is read may be inconsistent',
  },
} as const satisfies Record<string, OptionDefinition>;

/** The options that say which of the files that an image refers to are opened, and as what. */
export const REFERENCE_OPTIONS = {
  'backing-format': {
    kind: 'value',
    placeholder: 'FORMAT',
    description: 'format of backing files that do not declare theirs',
    choices: IMAGE_FORMATS,
  },
  'allow-protocol-names': {
    kind: 'flag',
    description: 'open backing files with file: and json: names',
  },
} as const satisfies Record<string, OptionDefinition>;

/** The values of both {@link REFERENCE_OPTIONS} and {@link FORCE_SHARE_OPTION} for `openImage`. */
export function referenceOptions(
  args: ParsedArguments,
): Pick<OpenImageOptions, 'backingFormat' | 'allowProtocolNames' | 'forceShare'> {
  return {
    backingFormat: formatOption(args.value('backing-format')).format,
    allowProtocolNames: args.flag('allow-protocol-names'),
    forceShare: args.flag('force-share'),
  };
}

/** Cache modes of host files. What they say about reading is left to the page cache. */
export const CACHE_MODES = ['none', 'writeback', 'unsafe', 'writethrough', 'directsync'] as const;

/** The value of a format option as a property for `openImage`; empty where it is to be probed. */
export function formatOption(value: string | undefined): { format?: ImageFormat } {
  const format = IMAGE_FORMATS.find((candidate) => candidate === value);
  return format === undefined ? {} : { format };
}
