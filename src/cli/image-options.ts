/** Values of options that several image commands share, with qemu-img's meaning. */

import { IMAGE_FORMATS } from '../chain/open.ts';
import type { ImageFormat, OpenImageOptions } from '../chain/open.ts';
import type { OptionDefinition, ParsedArguments } from './command.ts';

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
