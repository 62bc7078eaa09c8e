/** Writes to an image of some variant, and records what the guest did and what the host was asked. */

import { DiskModel } from '../support/disk-model.ts';
import { DiskSession } from '../support/disk-session.ts';
import { initialContent } from '../support/image-variants.ts';
import type { FileRole, ImageVariant, VariantFiles } from '../support/image-variants.ts';
import { openForWriting } from '../support/open-variant.ts';
import type { VariantDevices } from '../support/open-variant.ts';
import type { Random } from '../support/random.ts';
import { RandomOperations, WEIGHTS } from '../support/random-operations.ts';
import { RecordingFile } from '../support/recording-file.ts';
import type { LoggedOperation } from '../support/recording-file.ts';
import type { HostFile } from '../../src/device/block-device.ts';
import { GuestHistory } from './guest-history.ts';

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

/** Does `count` random operations to a new image. */
export function recordRandom(
  variant: ImageVariant,
  made: VariantFiles,
  { random, count }: { random: Random; count: number },
): Recording {
  const roles = Object.keys(made.files) as FileRole[];
  const initial = roles.map((role) => made.files[role]!);
  const log: LoggedOperation[] = [];
  const devices: VariantDevices<HostFile> = {};
  roles.forEach((role, index) => {
    devices[role] = new RecordingFile(initial[index]!, log, index);
  });
  const disk = initialContent(variant, made);
  const { version, clusterSize } = variant;
  const model = new DiskModel({ disk, version, clusterSize, backing: made.backingContent });
  const history = new GuestHistory(model.holdings);
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
