/** The images that `qcow2 serve` opens, as its options say. */

import { basename, extname } from 'node:path';
import type { OpenImageOptions } from '../chain/open.ts';
import { RawImage } from '../chain/raw-image.ts';
import type { ImageExports, WriteTarget } from '../export/nbd/image-exports.ts';
import type { ImageSpec } from '../export/nbd/image-set.ts';
import { usageError } from './command.ts';
import type { ParsedArguments } from './command.ts';
import { formatOption, referenceOptions } from './image-options.ts';
import { numberOption } from './serve-options.ts';

/**
 * The images that are to be opened, each with what is served of it.
 * @throws {Qcow2Error} `INVALID_OPTION` for options that make no sense together
 */
export function imageSpecs(args: ParsedArguments): ImageSpec[] {
  const paths = args.operands;
  const partition = numberOption(args, 'partition', { minimum: 1, maximum: 65_535 });
  for (const option of ['name', 'description', 'overlay']) {
    if (args.value(option) !== undefined && paths.length > 1) {
      throw usageError(`--${option} can be given for one image only`);
    }
  }
  const names = exportNames(paths, args.value('name'));
  const options = {
    description: args.value('description'),
    snapshot: args.value('snapshot'),
    partition,
    writes: writeTarget(args),
    bitmaps: args.list('bitmap'),
    resizable: args.flag('resize'),
    open: openOptions(args),
  };
  return paths.map((path, index) => ({ path, options: { ...options, name: names[index]! } }));
}

/**
 * Paths of the images that clients write to and whose format nobody said: a guest can make a raw disk
 * look like an image of another format.
 */
export function guessedRawImages(args: ParsedArguments, { exports }: ImageExports): string[] {
  if (writeTarget(args) !== 'image' || args.value('format') !== undefined) return [];
  const devices = exports.map(({ device }) => device);
  return devices.flatMap((device) => (device instanceof RawImage ? device.path : []));
}

/**
 * Where writes go.
 * @throws {Qcow2Error} `INVALID_OPTION` for options that contradict each other
 */
export function writeTarget(args: ParsedArguments): WriteTarget {
  const overlay = args.value('overlay');
  const given = [
    ...['read-only', 'rw', 'temp'].filter((name) => args.flag(name)),
    ...(overlay === undefined ? [] : ['overlay']),
  ];
  if (given.length > 1) {
    throw usageError(`--${given[0]} and --${given[1]} cannot be used together`);
  }
  if (overlay === '') throw usageError('--overlay needs a file name');
  if (overlay !== undefined) return { overlay };
  if (args.flag('rw')) return 'image';
  return args.flag('temp') ? 'temporary' : 'nowhere';
}

/** Names of the disks: the files' without extension, or with it where that tells them apart. */
function exportNames(paths: readonly string[], name: string | undefined): string[] {
  if (name !== undefined) return paths.map(() => name);
  const short = paths.map((path) => basename(path, extname(path)));
  if (new Set(short).size === paths.length) return short;
  const long = paths.map((path) => basename(path));
  if (new Set(long).size === paths.length) return long;
  throw usageError('two images have the same file name, by which their exports would be called');
}

function openOptions(args: ParsedArguments): OpenImageOptions {
  return { ...formatOption(args.value('format')), ...referenceOptions(args) };
}
