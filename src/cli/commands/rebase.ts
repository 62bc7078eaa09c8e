/** `qcow2 rebase`: give an overlay another backing file, or none. */

import { statSync } from 'node:fs';
import { parseReference, quote } from '../../chain/names.ts';
import { openImage } from '../../chain/open.ts';
import type { ChainedQcow2Image, Image } from '../../chain/open.ts';
import { permittedPath } from '../../chain/policy.ts';
import { prepareToRead } from '../../chain/prepare.ts';
import { Qcow2Error } from '../../errors.ts';
import { checkBacking, rebaseSteps } from '../../operations/rebase.ts';
import type { BackingReference } from '../../qcow2/image-writer.ts';
import { usageError } from '../command.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import {
  CACHE_MODES,
  FORCE_SHARE_OPTION,
  formatOption,
  givenImage,
  IMAGE_FORMATS,
  REFERENCE_OPTIONS,
  referenceOptions,
} from '../image-options.ts';
import { driveSteps, InterruptedError, ProgressReporter } from '../progress.ts';
import { CACHE_OPTION, CHANGE_OPTIONS, reportInterrupt } from '../write-options.ts';

/** Percent between two lines of progress. */
const STEP_PERCENT = 1;

export const command: CommandDefinition = {
  name: 'rebase',
  summary: 'give an overlay another backing file, or none',
  operands: 'IMAGE',
  operandCount: [1, 1],
  details:
    'IMAGE reads as before: where the new backing file differs from the old one, IMAGE is given ' +
    'what it shows, before it is made to name the new one. Interrupted, it still has the old one. ' +
    'With -u only the name and format are changed, for a backing file that was moved or whose ' +
    'content is known to be the same. The name is looked up from the directory of IMAGE. ' +
    'Internal snapshots show the new backing file where they have nothing of their own.',
  examples: [
    'qcow2 rebase -b new-base.qcow2 -F qcow2 overlay.qcow2',
    "qcow2 rebase -p -b '' overlay.qcow2",
    'qcow2 rebase -u -b moved/base.qcow2 -F qcow2 overlay.qcow2',
  ],
  options: {
    backing: {
      kind: 'value',
      short: 'b',
      placeholder: 'FILE',
      description: "the new backing file; '' for none",
    },
    'new-format': {
      kind: 'value',
      short: 'F',
      placeholder: 'FORMAT',
      description: 'format of the new backing file',
      choices: IMAGE_FORMATS,
    },
    unsafe: { kind: 'flag', short: 'u', description: 'change the name and format only' },
    compress: { kind: 'flag', short: 'c', description: 'compress what IMAGE is given' },
    progress: { kind: 'flag', short: 'p', description: 'show progress' },
    ...CHANGE_OPTIONS,
    ...CACHE_OPTION,
    'source-cache': {
      kind: 'value',
      short: 'T',
      placeholder: 'MODE',
      description: 'cache mode of the backing files; accepted, and all alike here',
      choices: CACHE_MODES,
    },
    ...FORCE_SHARE_OPTION,
    ...REFERENCE_OPTIONS,
  },
  run,
};

async function run(args: ParsedArguments, io: CommandIo): Promise<number> {
  const [path = ''] = args.operands;
  const isUnsafe = args.flag('unsafe');
  const format = formatOption(args.value('format'));
  const reference = referenceOf(args);
  // What is shared is what is only read: the new backing file.
  const references = { ...referenceOptions(args), forceShare: false };
  const open = { ...format, ...references, writable: true, withoutBacking: isUnsafe };
  using opened = openImage(givenImage(args, path), open);
  const image = withBacking(opened);
  checkBacking(image, reference);
  if (isUnsafe) {
    image.setBacking(reference);
    return 0;
  }
  warnOfSnapshots(image, io);
  using backing = openBacking(image, reference, args);
  await prepareToRead(image);
  if (backing !== undefined) await prepareToRead(backing);
  return await rebase(image, { ...reference, backing }, { args, io });
}

async function rebase(
  image: ChainedQcow2Image,
  target: BackingReference & { backing: Image | undefined },
  { args, io }: { args: ParsedArguments; io: CommandIo },
): Promise<number> {
  const show = args.flag('progress') && !args.flag('quiet');
  const reporter = new ProgressReporter(io, { show, stepPercent: STEP_PERCENT });
  try {
    const steps = rebaseSteps(image, target, { compress: args.flag('compress') });
    await driveSteps(steps, { reporter, interruptible: true });
    return 0;
  } catch (error) {
    if (!(error instanceof InterruptedError)) throw error;
    const outcome = `${image.path} still has its old backing file, and reads as before`;
    return reportInterrupt(error, outcome, io);
  } finally {
    reporter.end();
  }
}

function referenceOf(args: ParsedArguments): BackingReference {
  const file = args.value('backing');
  if (file === undefined && !args.flag('unsafe')) {
    throw usageError("say what the new backing file is: -b FILE -F FORMAT, or -b '' for none");
  }
  // As in QEMU, -u without -b is for none too.
  if (file === undefined || file === '') return { file: null, format: null };
  return { file, format: args.value('new-format') ?? null };
}

function withBacking(image: Image): ChainedQcow2Image {
  if (image.format === 'qcow2') return image;
  throw new Qcow2Error('UNSUPPORTED', 'a raw image cannot have a backing file', {
    file: image.path,
  });
}

/** Opens the new backing file by the name that the image will have for it. */
function openBacking(
  image: ChainedQcow2Image,
  { file, format }: BackingReference,
  args: ParsedArguments,
): Image | undefined {
  if (file === null) return undefined;
  const references = referenceOptions(args);
  const path = permittedPath(
    parseReference(file, image.path),
    { role: 'backing file', referrer: image.path },
    {
      references: 'follow',
      allowProtocolNames: references.allowProtocolNames ?? false,
      root: image.path,
    },
  );
  try {
    return openImage(path, { ...references, ...formatOption(format ?? undefined) });
  } catch (error) {
    throw isLockOf(error, image.path) ? ownBackingError(image.path, file) : error;
  }
}

/** Whether what could not be opened is the image itself, which we hold open. */
function isLockOf(error: unknown, path: string): boolean {
  if (!(error instanceof Qcow2Error) || error.code !== 'LOCKED') return false;
  return error.file !== undefined && identityOf(error.file) === identityOf(path);
}

/** The same for all names of a file, hard links among them. */
function identityOf(path: string): string {
  const { dev, ino } = statSync(path, { bigint: true });
  return `${dev}:${ino}`;
}

function ownBackingError(path: string, file: string): Qcow2Error {
  return new Qcow2Error('CYCLE', `it would be its own backing file, through ${quote(file)}`, {
    file: path,
  });
}

function warnOfSnapshots({ path, snapshots }: ChainedQcow2Image, io: CommandIo): void {
  if (snapshots.length === 0) return;
  io.stderr(
    `qcow2: warning: ${path}: its ${snapshots.length} snapshots are not rebased; ` +
      'where they have nothing of their own they will show the new backing file\n',
  );
}
