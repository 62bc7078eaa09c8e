/** Writes to an image of some variant, and records what the guest did and what the host was asked. */

import { CrashStates } from '../support/crash-states.ts';
import { DiskModel } from '../support/disk-model.ts';
import type { Holdings } from '../support/disk-model.ts';
import { DiskSession } from '../support/disk-session.ts';
import { initialContent } from '../support/image-variants.ts';
import type { FileRole, ImageVariant, VariantFiles } from '../support/image-variants.ts';
import { memoryDevices, openForReading, openForWriting, readAll } from '../support/open-variant.ts';
import type { VariantDevices } from '../support/open-variant.ts';
import type { Random } from '../support/random.ts';
import { RandomOperations, WEIGHTS } from '../support/random-operations.ts';
import { RecordingFile } from '../support/recording-file.ts';
import type { LoggedOperation } from '../support/recording-file.ts';
import type { HostFile } from '../../src/device/block-device.ts';
import { GuestHistory } from './guest-history.ts';
import { readContent } from './judge.ts';
import type { CrashedFiles } from './judge.ts';

/** What was done to an image, from both sides. */
export interface Recording {
  variant: ImageVariant;
  /** Which file each index of the log stands for. */
  roles: FileRole[];
  /** What the files held before the log. */
  initial: Uint8Array[];
  log: LoggedOperation[];
  history: GuestHistory;
}

/** Files to write to, and what is in them. */
export interface StartingPoint {
  variant: ImageVariant;
  files: CrashedFiles;
  holdings: Holdings;
}

/** A new image. */
export function newImage(variant: ImageVariant, made: VariantFiles): StartingPoint {
  const disk = initialContent(variant, made);
  const holdings = { disk, snapshots: [], backing: made.backingContent };
  return { variant, files: made.files, holdings };
}

/** What a crash left, whatever it holds. */
export function crashedImage(variant: ImageVariant, files: CrashedFiles): StartingPoint {
  const image = openForReading(variant, memoryDevices(files));
  const backing = image.backing === undefined ? undefined : readAll(image.backing);
  return { variant, files, holdings: { ...readContent(image), backing } };
}

/** Does `count` random operations to an image, and closes it. */
export function recordRandom(
  { variant, files, holdings }: StartingPoint,
  { random, count }: { random: Random; count: number },
): Recording {
  const roles = Object.keys(files) as FileRole[];
  const initial = roles.map((role) => files[role]!);
  const log: LoggedOperation[] = [];
  const devices: VariantDevices<HostFile> = {};
  roles.forEach((role, index) => {
    devices[role] = new RecordingFile(initial[index]!, log, index);
  });
  const model = new DiskModel({ ...variant, ...holdings });
  const history = new GuestHistory(holdings);
  const session = new DiskSession(model, () => openForWriting(variant, devices));
  const operations = new RandomOperations(variant, random, random.pick(WEIGHTS));
  for (let index = 0; index < count; index++) {
    // A good end to everything is closing it.
    const operation = index === count - 1 ? ({ kind: 'reopen' } as const) : operations.next(model);
    const logStart = log.length;
    if (!session.perform(operation)) continue;
    history.add({ operation, logStart, logEnd: log.length, after: model.holdings });
  }
  return { variant, roles, initial, log, history };
}

/** What a crash somewhere in a recording may leave. */
export function randomCrash({ log, initial, roles }: Recording, random: Random): CrashedFiles {
  const states = new CrashStates(log, initial);
  states.advanceTo(random.below(log.length + 1));
  return filesByRole(roles, states.torn(random));
}

/** The bytes of files by what they are. */
export function filesByRole(
  roles: readonly FileRole[],
  bytes: readonly Uint8Array[],
): CrashedFiles {
  const files: CrashedFiles = {};
  roles.forEach((role, index) => {
    files[role] = bytes[index]!;
  });
  return files;
}
