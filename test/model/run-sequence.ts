/** Does a sequence to an image and to its model, and compares the two, with QEMU as a witness. */

import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { openImage } from '../../src/chain/open.ts';
import { checkImage } from '../../src/operations/check.ts';
import { Qcow2Image } from '../../src/qcow2/image.ts';
import { DiskModel } from '../support/disk-model.ts';
import { DiskSession } from '../support/disk-session.ts';
import { describeOperation } from '../support/guest-operations.ts';
import {
  FILE_NAMES,
  initialContent,
  makeVariant,
  openingOptions,
  variantTraits,
} from '../support/image-variants.ts';
import type { ImageVariant } from '../support/image-variants.ts';
import { readAll } from '../support/open-variant.ts';
import { run, tryRun } from '../support/qemu.ts';
import { requireSame } from '../support/stamps.ts';
import { fitStep } from './sequences.ts';
import type { Sequence } from './sequences.ts';

/** What QEMU compares with. */
const EXPECTED = 'expected.raw';

/** What was wrong, with the script that led to it; undefined if nothing. */
export function sequenceProblem(sequence: Sequence, directory: string): string | undefined {
  const script: string[] = [];
  try {
    runSequence(sequence, directory, script);
    return undefined;
  } catch (error) {
    const what = error instanceof Error ? (error.stack ?? error.message) : String(error);
    return `${what}\nimage: ${JSON.stringify(sequence.variant)}\n  ${script.join('\n  ')}`;
  }
}

function runSequence({ variant, steps }: Sequence, directory: string, script: string[]): void {
  const made = makeVariant(variant, directory);
  const path = join(directory, FILE_NAMES.image);
  const disk = initialContent(variant, made);
  const { version, clusterSize } = variant;
  const model = new DiskModel({ disk, version, clusterSize, backing: made.backingContent });
  const session = new DiskSession(model, () => openQcow2(path, variant));
  try {
    for (const step of steps) {
      const operation = fitStep(step, variant, model);
      if (operation === undefined) continue;
      script.push(describeOperation(operation));
      if (!session.perform(operation)) script.push('(refused)');
      requireSame('the disk', readAll(session.image), model.disk);
    }
    compareSnapshots(session.image, model);
  } finally {
    session.close();
  }
  script.push('close');
  judgeAlone(path, model);
  judgeWithQemu(variant, directory, model);
}

/** @param variant for writing, in the way that it says; without it for reading */
function openQcow2(path: string, variant?: ImageVariant): Qcow2Image {
  const access = { writable: variant !== undefined, writableBacking: variant !== undefined };
  const how = variant === undefined ? {} : openingOptions(variant);
  const image = openImage(path, { format: 'qcow2', ...access, ...how });
  if (!(image instanceof Qcow2Image)) throw new Error('it is no qcow2 image');
  return image;
}

function compareSnapshots(image: Qcow2Image, model: DiskModel): void {
  const names = image.snapshots.map(({ name }) => name).join(' ');
  const expected = model.snapshots.map(({ name }) => name).join(' ');
  if (names !== expected) throw new Error(`its snapshots are '${names}', not '${expected}'`);
  for (const { name, disk } of model.snapshots) {
    requireSame(`snapshot ${name}`, readAll(image.openSnapshot(name)), disk);
  }
}

/** Opened anew, for reading. */
function judgeAlone(path: string, model: DiskModel): void {
  using image = openQcow2(path);
  requireSame('the closed disk', readAll(image), model.disk);
  compareSnapshots(image, model);
  const messages: string[] = [];
  const result = checkImage(image, { onProblem: ({ message }) => messages.push(message) });
  if (isUnsound(result)) throw new Error(`our check:\n${messages.slice(0, 20).join('\n')}`);
}

function judgeWithQemu(variant: ImageVariant, directory: string, model: DiskModel): void {
  const inDirectory = { cwd: directory };
  const { image } = FILE_NAMES;
  const checkArgs = ['check', '--output=json', '-f', 'qcow2', image];
  const { stdout, stderr } = tryRun('qemu-img', checkArgs, inDirectory);
  if (stdout === '' || isUnsound(JSON.parse(stdout) as Counts)) {
    throw new Error(`qemu-img check: ${stderr}${stdout}`);
  }
  const expected = join(directory, EXPECTED);
  writeFileSync(expected, model.disk);
  compareWithQemu(directory, { name: image, format: 'qcow2' });
  if (variant.dataFile === 'raw') {
    // Its last cluster is whole, as QEMU makes it.
    const data = readFileSync(join(directory, FILE_NAMES.data)).subarray(0, model.disk.length);
    requireSame('the raw data file', data, model.disk);
  }
  if (variant.backing !== undefined) {
    writeFileSync(expected, model.backing!);
    compareWithQemu(directory, { name: FILE_NAMES.backing, format: variant.backing.format });
  }
  // QEMU counts what it shares once more than it has to for a moment.
  if (!variantTraits(variant).canApplySnapshots || variant.refcountBits < 8) return;
  for (const { name, disk } of model.snapshots) {
    // Reading them where they are would show them in today's size.
    const applied = tryRun('qemu-img', ['snapshot', '-a', name, image], inDirectory);
    // QEMU cannot grow a disk whose last cluster is compressed and has subclusters.
    if (applied.stderr.includes('Failed to zero out new clusters')) continue;
    if (applied.exitCode !== 0) throw new Error(`qemu-img snapshot -a: ${applied.stderr}`);
    writeFileSync(expected, disk);
    compareWithQemu(directory, { name: image, format: 'qcow2' });
  }
}

/** Whether an image is the same as what is expected. */
function compareWithQemu(directory: string, image: { name: string; format: string }): void {
  // Names that the image has are relative to the directory.
  const args = ['compare', '-f', 'raw', '-F', image.format, EXPECTED, image.name];
  const said = run('qemu-img', args, { cwd: directory });
  // One that is longer by zeroes is told of and counts as the same.
  if (said.includes('size mismatch')) throw new Error(`qemu-img compare: ${said}`);
}

interface Counts {
  corruptions?: number;
  leaks?: number;
  'check-errors': number;
}

function isUnsound({ corruptions = 0, leaks = 0, 'check-errors': errors }: Counts): boolean {
  return corruptions + leaks + errors > 0;
}
