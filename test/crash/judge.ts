/** Judges what a crash left: is the image valid, and does it hold what was written? */

import type { HostFile } from '../../src/device/block-device.ts';
import { GrowableMemoryDevice } from '../../src/device/memory.ts';
import { checkImage, repairImage } from '../../src/operations/check.ts';
import type { CheckProblem } from '../../src/operations/check.ts';
import type { Qcow2Image } from '../../src/qcow2/image.ts';
import type { FileRole, ImageVariant } from '../support/image-variants.ts';
import { memoryDevices, openForReading, openForWriting, readAll } from '../support/open-variant.ts';
import type { VariantDevices } from '../support/open-variant.ts';
import { describeSector, SECTOR_BYTES } from '../support/stamps.ts';
import { firstForeignSector } from './guest-history.ts';
import type { World } from './guest-history.ts';

/** The files that a crash left. */
export type CrashedFiles = Partial<Record<FileRole, Uint8Array>>;

/** What a reader found in an image. */
export interface ReadContent {
  disk: Buffer;
  snapshots: SnapshotContent[];
}

/** What a reader found in a snapshot. */
export interface SnapshotContent {
  name: string;
  disk: Buffer;
  /** The reader shows it in another size than it has: only what both have is compared. */
  isOfOtherSize?: boolean;
}

/** What was wrong with what a crash left, or nothing; and how much space it wastes. */
export interface Verdict {
  problem: string | undefined;
  leaks: number;
  /** Its refcounts are to be made anew before it is written to. */
  isDirty: boolean;
}

/** What a crash left, and what may be left. */
export interface CrashCase {
  variant: ImageVariant;
  files: CrashedFiles;
  worlds: readonly World[];
  /** What the disk held when its bitmaps were made. */
  initial: Buffer;
}

/** Judges the files with our own reader and check. The bytes are not changed. */
export function judgeCrash({ variant, files, worlds, initial }: CrashCase): Verdict {
  try {
    const image = openForReading(variant, memoryDevices(files));
    const content = readContent(image);
    const problem = contentProblem(content, worlds) ?? bitmapProblem(image, content.disk, initial);
    const { isDirty } = image.header;
    if (problem !== undefined) return { problem, leaks: 0, isDirty };
    // Counts of dirty images are not to be trusted, and are made anew before anything is written.
    if (isDirty) return { ...judgeRepaired({ variant, files, worlds, initial }), isDirty };
    return { ...judgeCheck(image, Infinity), isDirty };
  } catch (error) {
    return { problem: `it cannot be read: ${String(error)}`, leaks: 0, isDirty: false };
  }
}

/** Reads the disk and all snapshots. */
export function readContent(image: Qcow2Image): ReadContent {
  return {
    disk: readAll(image),
    snapshots: image.snapshots.map(({ id, name }) => ({
      name,
      disk: readAll(image.openSnapshot(id)),
    })),
  };
}

/** Repairs a copy of the files, after which nothing may be wrong or wasted. */
function judgeRepaired({ variant, files, worlds }: CrashCase): Omit<Verdict, 'isDirty'> {
  const devices: VariantDevices<HostFile> = {};
  for (const [role, bytes] of Object.entries(files)) {
    devices[role as FileRole] = new GrowableMemoryDevice(bytes);
  }
  repairImage(openForWriting(variant, devices), { fix: 'all' });
  const repaired = openForReading(variant, devices);
  const verdict = judgeCheck(repaired, 0);
  let problem = contentProblem(readContent(repaired), worlds) ?? verdict.problem;
  if (repaired.header.isDirty) problem ??= 'it is still dirty';
  return { ...verdict, problem: problem && `after its repair: ${problem}` };
}

function judgeCheck(image: Qcow2Image, allowedLeaks: number): Omit<Verdict, 'isDirty'> {
  const messages: string[] = [];
  const onProblem = ({ kind, message }: CheckProblem): void => {
    // Leaks are many, and tell little.
    if (messages.length < 10 && (kind !== 'leak' || allowedLeaks === 0)) messages.push(message);
  };
  const result = checkImage(image, { onProblem });
  const { corruptions = 0, leaks = 0, 'check-errors': errors } = result;
  const counts = `${corruptions} corruptions, ${leaks} leaks, ${errors} errors`;
  const isBad = corruptions > 0 || errors > 0 || leaks > allowedLeaks;
  const problem = isBad ? `the check finds ${counts}:\n  ${messages.join('\n  ')}` : undefined;
  return { problem, leaks };
}

/** A change that a bitmap which is to be trusted does not know of. */
function bitmapProblem(image: Qcow2Image, disk: Buffer, initial: Buffer): string | undefined {
  if (!image.header.areBitmapsValid) return undefined;
  for (const { name, isInconsistent, isEnabled } of image.bitmaps) {
    if (isInconsistent || !isEnabled) continue;
    let at = 0;
    for (const { offset, length } of [
      ...image.dirtyRanges(name),
      { offset: Infinity, length: 0 },
    ]) {
      const end = Math.min(offset, disk.length, initial.length);
      if (at < end && disk.compare(initial, at, end, at, end) !== 0) {
        return `bitmap ${name} does not know that bytes ${at} to ${end} changed`;
      }
      at = offset + length;
    }
  }
  return undefined;
}

/** What is read that no world allows. */
export function contentProblem(content: ReadContent, worlds: readonly World[]): string | undefined {
  let problem = 'nothing may be there';
  // Most likely everything happened: the newest world is asked last, and its complaint is kept.
  for (const world of worlds) {
    const found = worldProblem(content, world);
    if (found === undefined) return undefined;
    problem = found;
  }
  const others = worlds.length === 1 ? '' : ` (and ${worlds.length - 1} older states do not fit)`;
  return problem + others;
}

function worldProblem({ disk, snapshots }: ReadContent, world: World): string | undefined {
  if (disk.length !== world.size) return `its size is ${disk.length} instead of ${world.size}`;
  const names = snapshots.map(({ name }) => name).join(' ');
  const expectedNames = world.snapshots.map(({ name }) => name).join(' ');
  if (names !== expectedNames) return `its snapshots are '${names}', not '${expectedNames}'`;
  const sector = firstForeignSector(world, disk);
  if (sector !== -1) return `the disk: ${describeForeign(world, disk, sector)}`;
  for (const [index, snapshot] of snapshots.entries()) {
    const found = snapshotProblem(snapshot, world.snapshots[index]!.disk);
    if (found !== undefined) return `snapshot ${snapshot.name}: ${found}`;
  }
  return undefined;
}

function snapshotProblem(
  { disk, isOfOtherSize = false }: SnapshotContent,
  expected: Buffer,
): string | undefined {
  if (disk.length !== expected.length && !isOfOtherSize) {
    return `it has ${disk.length} bytes, not ${expected.length}`;
  }
  const both = disk.subarray(0, expected.length);
  const contents = {
    base: expected.subarray(0, both.length),
    versions: new Map<number, Buffer[]>(),
  };
  const exact: World = { size: both.length, snapshots: [], contents };
  const sector = firstForeignSector(exact, both);
  return sector === -1 ? undefined : describeForeign(exact, both, sector);
}

function describeForeign({ contents }: World, disk: Buffer, sector: number): string {
  const at = sector * SECTOR_BYTES;
  const cut = (bytes: Buffer): Buffer => bytes.subarray(at, at + SECTOR_BYTES);
  const expected = [cut(contents.base), ...(contents.versions.get(sector) ?? [])];
  const found = describeSector(cut(disk));
  return `sector ${sector} holds ${found}; expected ${expected.map(describeSector).join(', or ')}`;
}
