/** `qcow2 snapshot`: list, make, apply and delete the internal snapshots of an image. */

import { openImage } from '../../chain/open.ts';
import type { ChainedQcow2Image, Image } from '../../chain/open.ts';
import { Qcow2Error } from '../../errors.ts';
import { snapshotLines } from '../../operations/format-info.ts';
import { imageInfo } from '../../operations/info.ts';
import { usageError } from '../command.ts';
import type { CommandDefinition, CommandIo, ParsedArguments } from '../command.ts';
import { FORCE_SHARE_OPTION, formatOption, givenImage } from '../image-options.ts';
import { Interrupts } from '../progress.ts';
import { formatSize } from '../size.ts';
import { CHANGE_OPTIONS } from '../write-options.ts';

/** What can be done with a snapshot, by the option that asks for it. */
const ACTIONS = ['create', 'apply', 'delete'] as const;

export const command: CommandDefinition = {
  name: 'snapshot',
  summary: 'list, make, apply and delete the snapshots of an image',
  operands: 'IMAGE',
  operandCount: [1, 1],
  details:
    'Without -c, -a or -d the snapshots are listed. Each change takes effect in one instant: if ' +
    'it is interrupted, the image is what it was before. Applying a snapshot gives up what the ' +
    'disk has now; make a snapshot of that first if it is still needed.',
  examples: [
    'qcow2 snapshot -c before-upgrade disk.qcow2',
    'qcow2 snapshot -l disk.qcow2',
    'qcow2 snapshot -a before-upgrade disk.qcow2',
  ],
  options: {
    list: { kind: 'flag', short: 'l', description: 'list the snapshots' },
    create: {
      kind: 'list',
      short: 'c',
      placeholder: 'NAME',
      description: 'make a snapshot of the disk as it is',
    },
    apply: {
      kind: 'list',
      short: 'a',
      placeholder: 'SNAPSHOT',
      description: 'make the disk what it was at a snapshot, by ID or else by name',
    },
    delete: {
      kind: 'list',
      short: 'd',
      placeholder: 'NAME',
      description: 'delete the snapshot of that name',
    },
    ...CHANGE_OPTIONS,
    ...FORCE_SHARE_OPTION,
  },
  run,
};

function run(args: ParsedArguments, io: CommandIo): number {
  const [path = ''] = args.operands;
  const open = { ...formatOption(args.value('format')), forceShare: args.flag('force-share') };
  const given = givenImage(args, path);
  const change = changeOf(args);
  // Snapshots are a matter of the image alone.
  const alone = { ...open, withoutBacking: true };
  if (change === undefined) {
    using image = openImage(given, alone);
    io.stdout(listOf(image));
    return 0;
  }
  using image = openImage(given, { ...alone, writable: true });
  const qcow2 = withSnapshots(image);
  // Signals wait until it is done, and then there is nothing left to stop.
  const interrupts = new Interrupts();
  try {
    makeChange(qcow2, change);
  } finally {
    interrupts[Symbol.dispose]();
  }
  return 0;
}

/** What to do with which snapshot. */
interface Change {
  action: (typeof ACTIONS)[number];
  snapshot: string;
}

function changeOf(args: ParsedArguments): Change | undefined {
  const changes = ACTIONS.flatMap((action) =>
    args.list(action).map((snapshot) => ({ action, snapshot })),
  );
  if (changes.length > (args.flag('list') ? 0 : 1)) {
    throw usageError('only one of -l, -a, -c and -d at a time, and only once');
  }
  return changes[0];
}

function withSnapshots(image: Image): ChainedQcow2Image {
  if (image.format === 'qcow2') return image;
  throw new Qcow2Error('UNSUPPORTED', 'a raw image has no snapshots', { file: image.path });
}

function makeChange(image: ChainedQcow2Image, { action, snapshot }: Change): void {
  if (action === 'create') image.createSnapshot(snapshot);
  else if (action === 'apply') image.applySnapshot(snapshot);
  else image.deleteSnapshot(idOfName(image, snapshot));
}

/** As qemu-img, deletes by name only: what is meant as an ID could be another's name. */
function idOfName({ path, snapshots }: ChainedQcow2Image, wanted: string): string {
  const row = snapshots.find(({ name }) => name === wanted);
  if (row === undefined) {
    const byId = snapshots.find(({ id }) => id === wanted);
    throw new Qcow2Error('NOT_FOUND', `there is no snapshot named '${wanted}'`, {
      file: path,
      hint: byId && `the one with ID ${wanted} is named '${byId.name}'`,
    });
  }
  if (snapshots.filter(({ id }) => id === row.id).length === 1) return row.id;
  throw new Qcow2Error('CORRUPT', `several snapshots have the ID ${row.id}`, { file: path });
}

function listOf(image: Image): string {
  const { snapshots } = imageInfo(image);
  if (snapshots === undefined) return '';
  return `${['Snapshot list:', ...snapshotLines(snapshots, formatSize)].join('\n')}\n`;
}
