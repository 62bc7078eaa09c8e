/**
 * The steps in which a first cluster is rewritten so that a crash between or within them leaves
 * the old one or the new one: see the head of `header-writer.ts`.
 */

import { Qcow2Error } from '../errors.ts';
import { ExtensionType } from '../format/qcow2/extensions.ts';
import { checkFits, joinFirstCluster, splitFirstCluster } from '../format/qcow2/header-encode.ts';
import type { FirstCluster } from '../format/qcow2/header-encode.ts';
import { alignDown, alignUp } from '../util/bytes.ts';

/** Bytes that the host writes whole or not at all. */
export const SECTOR_BYTES = 512;

/** Type of an extension that means nothing and only takes up room; ASCII `FILL`. */
export const FILLER_EXTENSION = 0x46494c4c;

/** A write within the first cluster. */
export interface ClusterStep {
  /** The whole cluster after it. */
  bytes: Uint8Array;
  /** First byte that is written, a multiple of 512. */
  offset: number;
  /** Bytes that are written, a multiple of 512. */
  length: number;
}

/**
 * Plans how to turn the first cluster `before` into one with the parts `after`. Each step must be
 * durable before the next. The rest of the cluster, which means nothing, becomes zeroes.
 *
 * @throws {Qcow2Error} `TOO_LARGE` if there is no room for the parts, or for the copy of them that
 * the way there needs
 */
export function firstClusterSteps(before: Uint8Array, after: FirstCluster): ClusterStep[] {
  const content = joinFirstCluster(after);
  checkFits(content.length, before.length);
  const oldEnd = splitFirstCluster(before).end;
  const final = new Uint8Array(before.length);
  final.set(content);
  const direct = stepTo(final, before);
  if (direct === undefined) return [];
  if (direct.length === SECTOR_BYTES) return [direct];

  const copyOffset = alignUp(Math.max(oldEnd, content.length), 8);
  const staged = joinFirstCluster(stagedParts(after, copyOffset));
  if (staged.length > before.length || after.header.length + 8 > SECTOR_BYTES) {
    throw new Qcow2Error(
      'TOO_LARGE',
      `the first cluster of ${before.length} bytes has no room to change it safely`,
      { structure: 'header', hint: 'use shorter file names or larger clusters' },
    );
  }
  // What the old header says is still valid: the copy is where nothing is read.
  const copied = Uint8Array.from(before);
  copied.set(staged.subarray(copyOffset), copyOffset);
  // One sector: from here on the new header is valid.
  const switched = Uint8Array.from(copied);
  switched.set(staged.subarray(0, after.header.length + 8));
  const covered = Uint8Array.from(switched);
  covered.set(final.subarray(SECTOR_BYTES, copyOffset), SECTOR_BYTES);
  const settled = Uint8Array.from(covered);
  settled.set(final.subarray(0, SECTOR_BYTES));

  const states = [before, copied, switched, covered, settled, final];
  return states.slice(1).flatMap((state, index) => stepTo(state, states[index]!) ?? []);
}

/** A filler up to the copy, then all extensions that matter, and the backing file's name. */
function stagedParts(after: FirstCluster, copyOffset: number): FirstCluster {
  const filler = new Uint8Array(copyOffset - after.header.length - 8);
  const needed = after.extensions.filter(({ type }) => type !== ExtensionType.FEATURE_NAMES);
  return { ...after, extensions: [{ type: FILLER_EXTENSION, data: filler }, ...needed] };
}

/** The write of whole sectors that turns `from` into `to`; undefined if they are equal. */
function stepTo(to: Uint8Array, from: Uint8Array): ClusterStep | undefined {
  const first = to.findIndex((byte, index) => byte !== from[index]);
  if (first < 0) return undefined;
  const last = to.findLastIndex((byte, index) => byte !== from[index]);
  const offset = alignDown(first, SECTOR_BYTES);
  return { bytes: to, offset, length: alignUp(last + 1, SECTOR_BYTES) - offset };
}
